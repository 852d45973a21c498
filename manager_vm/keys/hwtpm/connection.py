"""One ESAPI context on one thread, and the sessions in which everything secret travels.

Each request opens its own session, salted to the SRK whose Name the manager has pinned, and flushes it again: nothing
is left in the TPM, and a TPM that was reset meanwhile is no special case. Commands and responses carry an HMAC, their
first parameter is encrypted (Part 1, 19 and 21): a listener on the bus learns nothing, and who has not the authValue of
an object cannot answer for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from manager_vm.errors import HardwareTpmError, VtpmManagerError
from manager_vm.trust import policy

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI, ESYS_TR

SRK_HANDLE = 0x81000001  # TCG TPM v2.0 Provisioning Guidance, table 2
# the ECC SRK of the TCG TPM v2.0 Provisioning Guidance, 7.5.1, and noDA
SRK_TEMPLATE = "ecc256:aes128cfb"
SRK_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
_SYMMETRIC = "aes128cfb"
_PATIENCE = 60.0  # seconds for one request: a slow hardware TPM makes an RSA key in 20
_AGAIN = 30.0  # seconds during which a TPM may say "not now" (TPM_RC_RETRY, TPM_RC_YIELDED, TPM_RC_TESTING)
_PAUSE = 0.05
_WARNINGS = frozenset((0x922, 0x908, 0x90A))
_RSP_AUTH_FAILED = 0x7001B  # TSS2_ESYS_RC_RSP_AUTH_FAILED: the response's HMAC is wrong

T = TypeVar("T")


class Tpm(Protocol):
    """Anything that executes TPM commands, for instance a swtpm process."""

    def execute(self, command: bytes) -> bytes:
        """One command, its response."""


class Connection:
    """``where``: "device:PATH", or a ``Tpm``. Thread-safe; requests take turns on one thread. ``close`` ends it.

    Each request has an ESAPI context of its own, so whatever went wrong in one (a cut wire, a reset of the TPM) is over
    with it, and behind /dev/tpmrm0 the kernel forgets all that it made.
    """

    def __init__(self, where: str | Tpm) -> None:
        self._where = where
        self._worker = ThreadPoolExecutor(1, "hwtpm")
        self._pinned: bytes | None = None
        self._srk: ESYS_TR | None = None

    def request(self, what: str, action: Callable[[ESAPI], T]) -> T:
        """``action(esapi)`` on the TPM's thread; HardwareTpmError naming ``what`` if the TPM refuses or is silent."""
        try:
            return self._worker.submit(self._patiently, what, action).result(_PATIENCE)
        except FutureTimeout:
            raise HardwareTpmError(
                f"cannot {what}: the hardware TPM does not answer within {_PATIENCE:.0f} s; reset the manager's VM"
            ) from None

    def protected(self, what: str, action: Callable[[ESAPI, ESYS_TR], T]) -> T:
        """The same with a salted, encrypting HMAC session, which the TPM forgets afterwards."""

        def inside(tpm: ESAPI) -> T:
            with self.session(tpm) as session:
                return action(tpm, session)

        return self.request(what, inside)

    @contextmanager
    def session(self, tpm: ESAPI, *, for_policy: bool = False, encrypts: bool = True) -> Iterator[ESYS_TR]:
        """A session salted to the SRK, on the TPM's thread. A command takes one that ``encrypts``, and others."""
        from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_SESSION

        kind = TPM2_SE.POLICY if for_policy else TPM2_SE.HMAC
        session = tpm.start_auth_session(self.srk(tpm), ESYS_TR.NONE, kind, _SYMMETRIC, TPM2_ALG.SHA256)
        try:
            wanted = TPMA_SESSION.CONTINUESESSION
            if encrypts:
                wanted |= TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT
            tpm.trsess_set_attributes(session, wanted)
            yield session
        finally:
            _flush(tpm, session)

    def pin(self, name: bytes) -> None:
        """Salt sessions to the SRK with this Name from now on; HardwareTpmError if the TPM has none, or another."""
        self._pinned = name
        self.request("find the SRK", self.srk)

    def srk(self, tpm: ESAPI) -> ESYS_TR:
        """The pinned SRK, on the TPM's thread."""
        if self._srk is None:
            handle = tpm.tr_from_tpmpublic(SRK_HANDLE)
            if bytes(tpm.tr_get_name(handle)) != self._pinned:
                raise HardwareTpmError("this hardware TPM has another SRK than the pinned one: it is another TPM")
            self._srk = handle
        return self._srk

    def close(self) -> None:
        """Let go of the TPM; idempotent."""
        self._worker.shutdown()

    def _patiently(self, what: str, action: Callable[[ESAPI], T]) -> T:
        """Once more while the TPM asks for it; tpm2-tss itself repeats a few times without a pause."""
        end = time.monotonic() + _AGAIN
        while True:
            try:
                return self._once(what, action)
            except HardwareTpmError as error:
                if error.rc not in _WARNINGS or time.monotonic() > end:
                    raise
            time.sleep(_PAUSE)

    def _once(self, what: str, action: Callable[[ESAPI], T]) -> T:
        """In a new context; tpm2-tss's exceptions become ours."""
        os.environ.setdefault("TSS2_LOG", "all+none")  # what it would say is in the exceptions
        from tpm2_pytss import ESAPI, TCTILdr, TSS2_Exception

        tcti: Any = None
        self._srk = None
        try:
            tcti = TCTILdr(*self._where.split(":", 1)) if isinstance(self._where, str) else _over(self._where)
            with tcti, ESAPI(tcti) as tpm:
                return action(tpm)
        except TSS2_Exception as error:
            if (failure := getattr(tcti, "failure", None)) is not None:
                raise HardwareTpmError(f"cannot {what}: {failure}") from None
            raise HardwareTpmError(f"cannot {what}: {_meaning(int(error.rc), str(error))}", int(error.rc)) from None


def _meaning(rc: int, text: str) -> str:
    if rc == _RSP_AUTH_FAILED:
        return "the hardware TPM's answer does not prove that it has the secret (response HMAC)"
    return f"the hardware TPM answers 0x{rc:x} ({text})"


def response_is_forged(error: HardwareTpmError) -> bool:
    """Whether an answer did not carry the right HMAC."""
    return error.rc == _RSP_AUTH_FAILED


def _flush(tpm: ESAPI, handle: ESYS_TR) -> None:
    """Best effort: a TPM that was reset has forgotten it already."""
    from tpm2_pytss import TSS2_Exception

    with suppress(TSS2_Exception):
        tpm.flush_context(handle)


@contextmanager
def flushed(tpm: ESAPI, handle: ESYS_TR) -> Iterator[ESYS_TR]:
    """A transient object that leaves the TPM with the block."""
    try:
        yield handle
    finally:
        _flush(tpm, handle)


def _over(tpm: Tpm) -> Any:
    """A TCTI whose commands go to an object with ``execute``. ``failure``: why the last one did not get there."""
    from tpm2_pytss.TCTI import PyTCTI

    class Over(PyTCTI):  # type: ignore[misc]
        failure: VtpmManagerError | None = None
        _answer = b""

        def do_transmit(self, command: bytes) -> None:
            try:
                self._answer = tpm.execute(command)
            except VtpmManagerError as error:
                self.failure = error
                raise

        def do_receive(self, timeout: int) -> bytes:
            return self._answer

    return Over(max_size=4096)


def srk_name(connection: Connection) -> bytes | None:
    """Name of the key at the SRK's handle, computed from its public area; None if there is none."""

    def look(tpm: ESAPI) -> bytes | None:
        from tpm2_pytss.constants import TPM2_CAP

        _, data = tpm.get_capability(TPM2_CAP.HANDLES, SRK_HANDLE, 1)
        if SRK_HANDLE not in [int(handle) for handle in data.data.handles]:
            return None
        handle = tpm.tr_from_tpmpublic(SRK_HANDLE)
        try:
            public, _, _ = tpm.read_public(handle)
            return policy.name(public.publicArea.marshal())
        finally:
            tpm.tr_close(handle)

    return connection.request("look for the SRK", look)
