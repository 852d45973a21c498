"""What QEMU's tpm-emulator says to a swtpm (QEMU 7.2, backends/tpm/tpm_emulator.c), without a VM."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path
from types import TracebackType

from manager_vm.wire import swtpm as wire
from manager_vm.wire import tpm
from manager_vm.wire.swtpm import BLOB_HEAD, Blob, Cmd

CRB_BUFFER = 3968  # bytes
PROBE_LIMIT = 1.0  # seconds
PATIENCE = 15.0  # seconds
KERNEL_PATIENCE = 20.0  # seconds; Linux has 6, on a machine that is not full of tests
_PAUSE = 0.02  # seconds; Linux begins with 20 ms
_RETRY = tpm.RC.TPM_RC_RETRY.to_bytes(4, "big")
Stream = dict[Blob, tuple[int, bytes]]  # kind -> flags, data


class Refused(Exception):
    """A TPM result other than success."""


class Gone(Exception):
    """The other end has closed the connection."""


class FakeQemu:
    """One QEMU with a tpm-emulator at ``path``, up to where it stops the TPM for the first time."""

    def __init__(self, path: Path) -> None:
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.control.settimeout(PATIENCE)
        self.control.connect(str(path))
        self.data, peer = socket.socketpair()
        with peer:
            socket.send_fds(self.control, [wire.plain(Cmd.CMD_SET_DATAFD)], [peer.fileno()])
        self.done(self.receive(4))
        self.data.settimeout(PROBE_LIMIT)
        self.probe = self.execute(tpm.read_clock())
        self.data.settimeout(PATIENCE)
        self.capabilities = int.from_bytes(self.ask(wire.plain(Cmd.CMD_GET_CAPABILITY), 8), "big")

    # -- a VM's life ----------------------------------------------------------------------------------------

    def power_on(self) -> FakeQemu:
        """What happens at each reset of the VM, the first one too (but for one that comes)."""
        self.stop(0)
        self.stop(CRB_BUFFER)
        self.done(self.ask(wire.init(), 4))
        self.ask(wire.plain(Cmd.CMD_GET_TPMESTABLISHED), 8)
        return self

    def incoming(self) -> FakeQemu:
        """-incoming, instead of a power-on: no INIT before the stream is there."""
        self.stop(0)
        self.stop(CRB_BUFFER)
        return self

    def boot(self) -> FakeQemu:
        """Power on, and firmware's TPM2_Startup."""
        self.power_on()
        assert self.execute(tpm.startup())[6:] == bytes(4)
        return self

    def arrive(self, stream: Stream) -> FakeQemu:
        """What post_load does with the TPM's part of the stream."""
        return self.load(stream).go_on()

    def load(self, stream: Stream) -> FakeQemu:
        """The first half of it."""
        self.done(self.ask(wire.plain(Cmd.CMD_STOP), 4))
        for kind, (flags, data) in stream.items():
            if data:
                self.done(self.ask(wire.set_stateblob(kind, flags, data), 4))
        return self

    def go_on(self) -> FakeQemu:
        """The other half: its VM does not boot."""
        self.done(self.ask(wire.init(wire.PTM_INIT_FLAG_DELETE_VOLATILE), 4))
        return self

    def save(self) -> Stream:
        """What pre_save puts into the stream."""
        return {kind: self._get_blob(kind) for kind in Blob}

    def leave(self) -> None:
        """The VM was powered off: QEMU ends in order."""
        self.done(self.ask(wire.plain(Cmd.CMD_SHUTDOWN), 4))
        self.close()

    def close(self) -> None:
        """QEMU was killed."""
        self.control.close()
        self.data.close()

    # -- messages -------------------------------------------------------------------------------------------

    def execute(self, command: bytes, locality: int | None = None) -> bytes:
        """One TPM command."""
        if locality is not None:
            self.done(self.ask(wire.set_locality(locality), 4))
        self.data.sendall(command)
        head = self._receive(self.data, tpm.HEADER_SIZE)
        return head + self._receive(self.data, int.from_bytes(head[2:6], "big") - len(head))

    def insist(self, command: bytes) -> bytes:
        """As a kernel: again after TPM_RC_RETRY, which a busy machine gives it, and a shim that is not connected."""
        deadline = time.monotonic() + KERNEL_PATIENCE
        while (answer := self.execute(command))[6:] == _RETRY and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        return answer

    def stop(self, size: int) -> None:
        """QEMU stops the TPM whenever it sets or asks (0) its buffer size."""
        self.done(self.ask(wire.plain(Cmd.CMD_STOP), 4))
        result, _, _, most = struct.unpack(">IIII", self.ask(wire.set_buffersize(size), 16))
        assert (result, most) == (0, tpm.MAX_COMMAND)

    def ask(self, message: bytes, size: int) -> bytes:
        """A control command and its answer of ``size`` bytes."""
        self.control.sendall(message)
        return self.receive(size)

    def receive(self, size: int) -> bytes:
        return self._receive(self.control, size)

    def done(self, answer: bytes) -> None:
        """Refused unless the answer is success."""
        if answer != bytes(4):
            raise Refused(answer.hex())

    def _get_blob(self, kind: Blob) -> tuple[int, bytes]:
        result, flags, total, length = BLOB_HEAD.unpack(self.ask(wire.get_stateblob(kind), BLOB_HEAD.size))
        if result and not result & wire.ABSENT:
            raise Refused(hex(result))
        assert total == length
        return flags, self.receive(length)

    def _receive(self, stream: socket.socket, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = stream.recv(size - len(data))
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise Gone
            data += piece
        return bytes(data)

    def __enter__(self) -> FakeQemu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
