"""What the shim answers to a QEMU, and when the vTPM is touched. Pure: requests in, effects out, rules as a table
(QEMU.md has the bytes).

STOP, SHUTDOWN and QEMU's leaving take this VM off its vTPM and do nothing to the vTPM itself: that happens at INIT,
which is a new boot. What comes and goes as a state blob is a ticket: the vTPM itself moves from manager to manager.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from manager_vm.protocol.channel_client import KERNEL_PATIENCE
from manager_vm.wire import swtpm as wire
from manager_vm.wire import tpm
from manager_vm.wire.swtpm import Blob, Cmd, Request

FIRMWARE_PATIENCE = 60.0  # seconds; EDK2 waits 90 s for a response (TIS_TIMEOUT_MAX, PTP_TIMEOUT_MAX)
LOCALITIES = 5  # 0 to 4
BUFFER = 2808, tpm.MAX_COMMAND  # bytes, least and most: as libtpms has it
BLOBS = (Cmd.CMD_GET_STATEBLOB, Cmd.CMD_SET_STATEBLOB)  # without them QEMU refuses to migrate or save, at once
_RESETS = (3, 4)  # localities that may reset the established bit

# what OVMF measures into PCR 5 as its last word (TCG PC Client Platform Firmware Profile, 7.2.2)
_LAST_WORD = b"Exit Boot Services Returned with Success"
_LAST_PCR = 5
_LAST_DIGESTS = tuple(hashlib.new(name, _LAST_WORD).digest() for name in ("sha1", "sha256", "sha384", "sha512"))
# among the first questions of Linux (tpm2_probe, tpm2_get_cc_attrs_tbl): where there is no EFI there is no last word
_LINUX_PROBE = tpm.get_capability(tpm.TPM_CAP_TPM_PROPERTIES, 0x129, 1)  # TPM_PT_TOTAL_COMMANDS


@dataclass(frozen=True, slots=True)
class Answer:
    """QEMU gets these bytes; the vTPM is not touched."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Begins:
    """A QEMU begins. Its VM boots, or comes (``-incoming``: then nothing more is heard before its ticket). The manager
    is told that it may come; QEMU gets these bytes.
    """

    data: bytes


@dataclass(frozen=True, slots=True)
class PowerOn:
    """Report a new boot of the VM, or leave that to its first command; then ``Session.powered``, or ``waits``."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Have the vTPM parked, and get a ticket for it; then ``Session.left``."""


@dataclass(frozen=True, slots=True)
class Redeem:
    """Have the manager take the vTPM of this ticket; then ``Session.redeemed``."""

    ticket: bytes


@dataclass(frozen=True, slots=True)
class GoOn:
    """The VM that has come goes on with the boot that it had; then ``Session.powered``."""


@dataclass(frozen=True, slots=True)
class Execute:
    """The vTPM executes this command. ``patience``: seconds before TPM_RC_RETRY if it cannot be written."""

    command: bytes
    locality: int
    patience: float


Effect = Answer | Begins | PowerOn | Leave | Redeem | GoOn | Execute

_DONE, _FAILED = Answer(wire.result()), Answer(wire.result(wire.TPM_FAIL))
_NOT_NOW = Answer(wire.result(wire.TPM_BAD_ORDINAL))
_NO_STATE = Answer(wire.result(tpm.RC.TPM_RC_FAILURE))


class Session:
    """One QEMU, from its arrival to its leaving. ``movable``: whose VM this is is known, so its vTPM can follow it."""

    def __init__(self, *, movable: bool = False) -> None:
        self.movable = movable
        self.on = False  # its VM has power, and the manager knows this boot
        self.begun = False  # it has said how large its buffer is
        self.expected = False  # the manager has been told that this VM may come
        self.waiting = False  # for a ticket, or for a command that shows that none comes: the VM is to boot then
        self.arrived = False  # with a ticket
        self.used = False  # a command has come since
        self.firmware = True  # no kernel has taken over yet
        self.locality = 0
        self.buffer_size = BUFFER[1]

    def control(self, request: Request) -> Effect:
        """A control command; SET_DATAFD is a matter of sockets and not ours."""
        return _RULES[request.command](self, request)

    def execute(self, command: bytes) -> Effect:
        """A TPM command. QEMU's probe comes before INIT."""
        if (rc := tpm.check_frame(command)) is not None:
            return Answer(tpm.error_response(rc))
        if self.waiting:
            self.waiting = False
            return PowerOn()
        if not self.on:
            return Answer(tpm.error_response(tpm.RC.TPM_RC_FAILURE))
        self.used = True
        self.firmware = self.firmware and command != _LINUX_PROBE
        effect = Execute(command, self.locality, FIRMWARE_PATIENCE if self.firmware else KERNEL_PATIENCE)
        self.firmware = self.firmware and not is_last_word(command)
        return effect

    def powered(self, success: bool) -> bytes:
        """The manager knows the new boot, or does not; the answer to INIT."""
        self.on = success
        self.firmware = success and not self.arrived
        self.waiting = False
        self.expected = self.expected and not success
        return wire.result(0 if success else wire.TPM_FAIL)

    def waits(self) -> bytes:
        """The answer to INIT of a VM that may come with a ticket: its vTPM is elsewhere, or parked for one."""
        self.waiting = True
        return wire.result()

    def left(self, ticket: bytes | None) -> bytes:
        """The answer to GET_STATEBLOB: a ticket, or a veto. The VM that goes on asks its vTPM, and that is in time."""
        return wire.no_blob(tpm.RC.TPM_RC_FAILURE) if ticket is None else wire.blob(ticket)

    def redeemed(self, success: bool) -> bytes:
        """The answer to SET_STATEBLOB."""
        self.arrived, self.used, self.waiting = success, False, False
        self.expected = self.expected and not success
        return wire.result(0 if success else tpm.RC.TPM_RC_FAILURE)


def is_last_word(command: bytes) -> bool:
    """Whether firmware hands over to a kernel with this command."""
    if tpm.command_code(command) != tpm.CC.TPM2_PCR_Extend:
        return False
    return int.from_bytes(command[10:14], "big") == _LAST_PCR and any(digest in command for digest in _LAST_DIGESTS)


def _done(session: Session, request: Request) -> Effect:
    return _DONE


def _capabilities(session: Session, request: Request) -> Effect:
    return Answer(wire.capabilities(() if session.movable else BLOBS))


def _off(session: Session, request: Request) -> Effect:
    session.on = False
    return _DONE


def _init(session: Session, request: Request) -> Effect:
    """The flag says that the VM has come: then with a ticket, and its boot goes on."""
    session.on = False
    if request.value & wire.PTM_INIT_FLAG_DELETE_VOLATILE:
        return GoOn() if session.arrived else _FAILED
    session.arrived = False
    return PowerOn()


def _buffer_size(session: Session, request: Request) -> Effect:
    """0 asks. QEMU waits for the whole structure, whatever the result."""
    least, most = BUFFER
    refused = bool(request.value and session.on)
    if request.value and not refused:
        session.buffer_size = min(max(request.value, least), most)
    answer = wire.buffersize(session.buffer_size, least, most, wire.TPM_BAD_ORDINAL if refused else 0)
    if not request.value or session.begun or not session.movable:
        return Answer(answer)
    session.begun = True
    return Begins(answer)


def _locality(session: Session, request: Request) -> Effect:
    if request.value not in range(LOCALITIES):
        return Answer(wire.result(wire.TPM_BAD_LOCALITY))
    session.locality = request.value
    return _DONE


def _established(session: Session, request: Request) -> Effect:
    """Never set: what sets it in a TPM are the hash sequences of a late launch, which QEMU does not pass on."""
    return Answer(wire.established(False))


def _reset_established(session: Session, request: Request) -> Effect:
    if not session.on:
        return _NOT_NOW
    return _DONE if request.value in _RESETS else Answer(wire.result(wire.TPM_BAD_LOCALITY))


def _cancel(session: Session, request: Request) -> Effect:
    """As swtpm: without any effect."""
    return _DONE if session.on else _NOT_NOW


def _get_blob(session: Session, request: Request) -> Effect:
    """The first blob is the ticket, the others are absent."""
    if not session.movable or not session.on:
        return Answer(wire.no_blob(tpm.RC.TPM_RC_FAILURE))
    return Leave() if request.kind is Blob.PERMANENT else Answer(wire.blob(b""))


def _set_blob(session: Session, request: Request) -> Effect:
    if not session.movable or request.kind is not Blob.PERMANENT:
        return _NO_STATE
    return Redeem(request.data)


_RULES: dict[Cmd, Callable[[Session, Request], Effect]] = {
    Cmd.CMD_GET_CAPABILITY: _capabilities,
    Cmd.CMD_INIT: _init,
    Cmd.CMD_SHUTDOWN: _off,
    Cmd.CMD_GET_TPMESTABLISHED: _established,
    Cmd.CMD_SET_LOCALITY: _locality,
    Cmd.CMD_CANCEL_TPM_CMD: _cancel,
    Cmd.CMD_RESET_TPMESTABLISHED: _reset_established,
    Cmd.CMD_GET_STATEBLOB: _get_blob,
    Cmd.CMD_SET_STATEBLOB: _set_blob,
    Cmd.CMD_STOP: _off,
    Cmd.CMD_SET_BUFFERSIZE: _buffer_size,
}
