"""The hardware TPM of a simulated host: a stand-in process that lives as long as the host, through all its VMs."""

from __future__ import annotations

import logging
import shutil
import socket
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from image.host import vendor
from image.host.process import Process
from image.host.standin.server import PID, SOCKET
from image.host.standin.session import Arriving
from manager_vm.errors import ConfigError, HostError

log = logging.getLogger(__name__)

__all__ = ["Arriving", "HardwareTpm", "Kind", "provide", "usable"]

PROGRAM = "image.host.standin"
_START = 30.0  # seconds for Python and swtpm on a busy machine
_ANSWER = 10.0  # seconds; a reset takes milliseconds, a TPM's longest command a few seconds


class Kind(StrEnum):
    """What serves as the host's hardware TPM."""

    EMULATOR = "emulator"  # a swtpm of this host, which so owns its seed
    PASSTHROUGH = "passthrough"  # the physical TPM


def usable(kind: Kind) -> None:
    """ConfigError for a kind that cannot be used, with the reason."""
    if kind is Kind.PASSTHROUGH:
        raise ConfigError(
            "the hardware TPM cannot be 'passthrough' yet: a physical TPM's PCRs show the host's boot and not the"
            " manager VM's, so it needs a policy, measured by the launcher, over the host's PCRs, and that is not"
            " designed; use 'emulator'"
        )


class HardwareTpm:
    """The stand-in for ``directory``, where the TPM's permanent state stays. QEMUs connect to ``socket``, one after
    another; the TPM keeps its power between them. Only one Host may use a directory. HostError if it does not start.

    It ends with the *thread* that made it (see Process), and loses its PCRs then as by a power cut.
    """

    def __init__(self, directory: Path, output: Path, *, arriving: Arriving = Arriving.RESTORE) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.socket = directory / SOCKET
        self._arriving = arriving
        self._link, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-m", PROGRAM, str(directory)]
        argv += ["--arriving", arriving, "--owner", str(link.fileno())]
        with link:
            self._process = Process("the hardware TPM's stand-in", argv, output, (link.fileno(),))
        try:
            self._hear(_START, "start")
        except HostError:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The stand-in's process."""
        return self._process.pid

    @property
    def swtpm_pid(self) -> int:
        """The process behind it."""
        return int(self._ask(PID))

    def running(self) -> bool:
        return self._process.running()

    def check(self) -> None:
        """HostError with the reason if the TPM has ended."""
        self._process.check()

    @property
    def arriving(self) -> Arriving:
        """What an arriving VM finds; assigning it counts from the next arrival (and the next save) on."""
        return self._arriving

    @arriving.setter
    def arriving(self, mode: Arriving) -> None:
        self._ask(mode.encode())
        self._arriving = mode

    def _ask(self, message: bytes) -> bytes:
        with suppress(OSError):  # it has ended; the answer that does not come tells why
            self._link.send(message)
        return self._hear(_ANSWER, message.decode())

    def _hear(self, timeout: float, what: str) -> bytes:
        with suppress(OSError):
            self._link.settimeout(timeout)
            message = self._link.recv(64)
            if message:
                return message
        self._process.wait(1.0)
        self._process.check()
        raise HostError(f"the hardware TPM's stand-in does not answer within {timeout:.0f} s: {what}")

    def close(self) -> None:
        """Switch the TPM off in order and end the process; idempotent."""
        self._process.close()
        self._link.close()


def provide(old: HardwareTpm | None, directory: Path, arriving: Arriving, *, new: bool) -> HardwareTpm:
    """The hardware TPM for the next VM: ``old``, or after its death the same one as after a power cut. The first one
    of a host has its vendor's EK certificates.

    ``new``: one without any state instead; what there was is gone for good.
    """
    if old is not None and not new:
        try:
            old.arriving = arriving
            return old
        except HostError as error:
            log.warning("the hardware TPM has lost its power: %s", error)
    if old is not None:
        old.close()
    if new:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        vendor.manufacture(directory, directory.with_suffix(".log"))
    return HardwareTpm(directory, directory.with_suffix(".log"), arriving=arriving)
