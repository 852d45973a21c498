"""What the stand-in answers to a QEMU, and when it touches the TPM. Pure: requests in, effects out, rules as a table.

A hardware TPM outlives the VMs that use it. QEMU's tpm-emulator drives one as if it were its own: it stops it at will,
and brings the state of an arriving VM's TPM along. So STOP only notes that this VM's power is off; what becomes of
the TPM itself is decided at INIT:

| INIT of | RESTORE | KEEP |
|---|---|---|
| a VM that was reset or powered on (flag 0) | real reset, zero PCRs | the same |
| an arriving VM (flag 1) | its TPM's state is loaded, once, into a fresh TPM | swallowed: the TPM goes on as it is |

GET_STATEBLOB gives a TPM's state in RESTORE mode only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from manager_vm.wire import swtpm as wire
from manager_vm.wire import tpm
from manager_vm.wire.swtpm import Blob, Cmd, Request

KEPT = b"the hardware TPM stays on its host"  # instead of a permanent state; no TPM takes it for one
_LOCALITIES = range(5)


class Arriving(StrEnum):
    """What the TPM state in an arriving VM's stream is."""

    RESTORE = "restore"  # a saved VM's own TPM, kept together with its memory and disks
    KEEP = "keep"  # another host's matter: the VM finds this host's TPM


@dataclass(frozen=True, slots=True)
class Answer:
    """QEMU gets these bytes; the TPM is not touched."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Reset:
    """Power-cycle the TPM in order (its attack counters stay right), then tell ``Session.powered``."""

    buffer_size: int  # bytes


@dataclass(frozen=True, slots=True)
class Load:
    """Load this state instead of the TPM's own, then tell ``Session.powered``."""

    blobs: tuple[Request, ...]
    buffer_size: int  # bytes


@dataclass(frozen=True, slots=True)
class Forward:
    """swtpm answers this control command."""

    request: Request


@dataclass(frozen=True, slots=True)
class Execute:
    """The TPM executes this command."""

    command: bytes
    locality: int


Effect = Answer | Reset | Load | Forward | Execute

_DONE, _REFUSED = Answer(wire.result()), Answer(wire.result(wire.TPM_FAIL))


class Desk:
    """What the sessions share. ``fresh``: nobody has used this TPM yet. ``bounds``: of its buffer's size, bytes."""

    def __init__(self, arriving: Arriving, *, fresh: bool, bounds: tuple[int, int]) -> None:
        self.arriving = arriving
        self.fresh = fresh
        self.bounds = bounds
        self._holder: Session | None = None

    def take(self, session: Session) -> bool:
        """Whether ``session`` may use the TPM: it has one user at a time, until that one leaves."""
        if self._holder is None:
            self._holder = session
        return self._holder is session

    def release(self, session: Session) -> None:
        """Let the next one use the TPM."""
        if self._holder is session:
            self._holder = None


class Session:
    """One QEMU, from its arrival to its leaving."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.on = False  # this VM's TPM has power
        self.locality = 0
        self.buffer_size = desk.bounds[1]
        self.blobs: dict[Blob, Request] = {}

    def control(self, request: Request) -> Effect:
        """A control command; SET_DATAFD is a matter of sockets and not ours."""
        return _RULES[request.command](self, request)

    def execute(self, command: bytes) -> Effect:
        """A TPM command. QEMU's probe comes before INIT; an arrived VM may find that another one still has the TPM."""
        if (rc := tpm.check_frame(command)) is not None:
            return Answer(tpm.error_response(rc))
        if not self.on:
            return Answer(tpm.error_response(tpm.RC.TPM_RC_FAILURE))
        if not self.desk.take(self):
            return Answer(tpm.error_response(tpm.RC.TPM_RC_RETRY))
        return Execute(command, self.locality)

    def powered(self, success: bool) -> bytes:
        """A Reset or a Load is over; the answer to INIT."""
        self.blobs.clear()
        self.on = success
        if success:
            self.desk.fresh = False
        else:
            self.desk.release(self)
        return wire.result(0 if success else wire.TPM_FAIL)

    def leave(self) -> None:
        """This QEMU has ended. The TPM stays as it is until the next INIT."""
        self.on = False
        self.blobs.clear()
        self.desk.release(self)


def _done(session: Session, request: Request) -> Effect:
    return _DONE


def _capabilities(session: Session, request: Request) -> Effect:
    return Answer(wire.capabilities())


def _stop(session: Session, request: Request) -> Effect:
    session.on = False
    session.blobs.clear()
    return _DONE


def _shutdown(session: Session, request: Request) -> Effect:
    session.leave()
    return _DONE


def _init(session: Session, request: Request) -> Effect:
    if request.value & wire.PTM_INIT_FLAG_DELETE_VOLATILE:
        return _arrive(session)
    if session.blobs or not session.desk.take(session):
        return _REFUSED
    return Reset(session.buffer_size)


def _arrive(session: Session) -> Effect:
    desk = session.desk
    if desk.arriving is Arriving.KEEP:
        session.on = True
        return _DONE
    if Blob.PERMANENT not in session.blobs or not desk.fresh or not desk.take(session):
        return _REFUSED
    return Load(tuple(session.blobs.values()), session.buffer_size)


def _buffer_size(session: Session, request: Request) -> Effect:
    """0 asks; otherwise for the next INIT."""
    least, most = session.desk.bounds
    if request.value and session.on:
        return _REFUSED
    if request.value:
        session.buffer_size = min(max(request.value, least), most)
    return Answer(wire.buffersize(session.buffer_size, least, most))


def _locality(session: Session, request: Request) -> Effect:
    if request.value not in _LOCALITIES:
        return Answer(wire.result(wire.TPM_BAD_PARAMETER))
    session.locality = request.value
    return _DONE


def _established(session: Session, request: Request) -> Effect:
    """QEMU asks before INIT too."""
    if session.on and session.desk.take(session):
        return Forward(request)
    return Answer(wire.established(False))


def _reset_established(session: Session, request: Request) -> Effect:
    return Forward(request) if session.on and session.desk.take(session) else _REFUSED


def _get_blob(session: Session, request: Request) -> Effect:
    if session.desk.arriving is Arriving.KEEP:
        return Answer(wire.blob(KEPT if request.kind is Blob.PERMANENT else b""))
    return Forward(request) if session.on and session.desk.take(session) else _REFUSED


def _set_blob(session: Session, request: Request) -> Effect:
    if session.on:
        return _REFUSED
    if session.desk.arriving is Arriving.KEEP:
        return _DONE
    if not session.desk.fresh or request.data == KEPT:
        return _REFUSED
    session.blobs[request.kind] = request
    return _DONE


_RULES: dict[Cmd, Callable[[Session, Request], Effect]] = {
    Cmd.CMD_GET_CAPABILITY: _capabilities,
    Cmd.CMD_INIT: _init,
    Cmd.CMD_SHUTDOWN: _shutdown,
    Cmd.CMD_GET_TPMESTABLISHED: _established,
    Cmd.CMD_SET_LOCALITY: _locality,
    Cmd.CMD_CANCEL_TPM_CMD: _done,  # nothing is under way: commands of one QEMU take turns
    Cmd.CMD_RESET_TPMESTABLISHED: _reset_established,
    Cmd.CMD_GET_STATEBLOB: _get_blob,
    Cmd.CMD_SET_STATEBLOB: _set_blob,
    Cmd.CMD_STOP: _stop,
    Cmd.CMD_SET_BUFFERSIZE: _buffer_size,
}
