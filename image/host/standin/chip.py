"""The TPM itself: one swtpm process, driven over two socket pairs that nobody else has."""

from __future__ import annotations

import fcntl
import select
import socket
import time
from contextlib import suppress
from pathlib import Path

from image.host.process import Process
from manager_vm.errors import HostError, RemoteProtocolError, SwtpmRefusedError
from manager_vm.wire import swtpm as wire
from manager_vm.wire import tpm
from manager_vm.wire.swtpm import Cmd, Request

DEADLINE = 120.0  # seconds for a TPM command
_CONTROL = 10.0  # seconds for a control command
_END = 2.0  # seconds for the last TPM command, at the end
STATE_FILE, _LOCK_FILE = "tpm2-00.permall", ".lock"
_UNLOCK = 2.0  # seconds for the swtpm of a stand-in that was killed to end
_ANSWERS = {Cmd.CMD_GET_TPMESTABLISHED: 8, Cmd.CMD_RESET_TPMESTABLISHED: 4}  # bytes


class Chip:
    """A swtpm on ``directory``, powered on. HostError names its log, whatever goes wrong with it."""

    def __init__(self, directory: Path) -> None:
        self.new = not (directory / STATE_FILE).exists()  # it was never manufactured before
        self._directory = directory
        self._log = directory / "swtpm.log"
        _await_unlocked(directory)
        self._start()
        try:
            answer = self._exchange(wire.set_buffersize(0), len(wire.buffersize(0, 0, 0)), "SET_BUFFERSIZE")
        except HostError:
            self.close()
            raise
        self.bounds = int.from_bytes(answer[8:12], "big"), int.from_bytes(answer[12:16], "big")

    def _start(self) -> None:
        """A process with power."""
        self._locality: int | None = 0
        self._answer = bytearray()
        self._busy_until: float | None = None  # a command is under way
        self._data, data = socket.socketpair()
        self._control, control = socket.socketpair()
        self._control.settimeout(_CONTROL)
        state = f"dir={self._directory},mode=0600"
        argv = ["swtpm", "socket", "--tpm2", "--tpmstate", state, "--fd", str(data.fileno())]
        argv += ["--ctrl", f"type=unixio,clientfd={control.fileno()}"]
        with data, control:
            self._process = Process("the hardware TPM (swtpm)", argv, self._log, (data.fileno(), control.fileno()))
        try:
            self._command(wire.init(), "INIT")
        except SwtpmRefusedError as error:
            self.close()
            raise HostError(f"the hardware TPM in {self._directory} is damaged: {error} (log: {self._log})") from None
        except HostError:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    # -- power and state ------------------------------------------------------------------------------------

    def reset(self, buffer_size: int) -> None:
        """TPM2_Shutdown, so that an attack counter does not take it for an attack; power off and on: zero PCRs."""
        self._shut_down()
        self._stop(buffer_size)
        self._init(0)

    def load(self, blobs: tuple[Request, ...], buffer_size: int) -> None:
        """Replace all state. SwtpmRefusedError if it is none; then the TPM is what it was, in a new process."""
        self._stop(buffer_size)
        try:
            for blob in blobs:
                message = wire.set_stateblob(blob.kind, blob.value, blob.data)
                self._command(message, f"SET_STATEBLOB({blob.kind.name})")
            self._init(wire.PTM_INIT_FLAG_DELETE_VOLATILE)
        except SwtpmRefusedError:
            self.close()  # this one has taken the blobs before the bad one, and would go on with them
            self._start()
            raise

    def forward(self, request: Request) -> bytes:
        """The answer to a control command that only asks, or to RESET_TPMESTABLISHED."""
        self._settle()
        if request.command is Cmd.CMD_GET_STATEBLOB:
            what = f"GET_STATEBLOB({request.kind.name})"
            head = self._exchange(wire.get_stateblob(request.kind), wire.BLOB_HEAD.size, what)
            return head + self._receive(wire.parse_blob_head(head).length, what)
        message = wire.plain(request.command)
        if request.command is Cmd.CMD_RESET_TPMESTABLISHED:
            message += bytes([request.value, 0, 0, 0])
        return self._exchange(message, _ANSWERS[request.command], request.command.name)

    def _stop(self, buffer_size: int) -> None:
        self._settle()
        self._command(wire.plain(Cmd.CMD_STOP), "STOP")
        self._exchange(wire.set_buffersize(buffer_size), len(wire.buffersize(0, 0, 0)), "SET_BUFFERSIZE")

    def _init(self, flags: int) -> None:
        self._command(wire.init(flags), "INIT")
        self._locality = None  # whatever it is now: it is said again

    # -- commands -------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """For poll(): readable when ``finish`` has something to say."""
        return self._data.fileno()

    @property
    def busy_until(self) -> float | None:
        """When the command under way is too late (time.monotonic); None without one."""
        return self._busy_until

    def start(self, command: bytes, locality: int) -> None:
        """Hand over one whole command."""
        self._settle()
        if locality != self._locality:
            self._command(wire.set_locality(locality), "SET_LOCALITY")
            self._locality = locality
        self._busy_until = time.monotonic() + DEADLINE
        try:
            self._data.sendall(command)
        except OSError:
            raise self._gone("at a command") from None

    def finish(self) -> bytes | None:
        """The response, or None while it is not whole; never waits."""
        try:
            piece = self._data.recv(tpm.MAX_COMMAND, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            piece = b""
        if not piece:
            raise self._gone("by itself")
        self._answer += piece
        size = int.from_bytes(self._answer[2:6], "big") if len(self._answer) >= tpm.HEADER_SIZE else tpm.MAX_COMMAND
        if self._busy_until is None or not tpm.HEADER_SIZE <= size <= tpm.MAX_COMMAND or len(self._answer) > size:
            raise HostError(f"the hardware TPM (swtpm) says what nobody asked for (log: {self._log})")
        if len(self._answer) < size:
            return None
        response = bytes(self._answer)
        self._answer.clear()
        self._busy_until = None
        return response

    def _settle(self) -> None:
        """Wait for a command whose QEMU has left."""
        while self._busy_until is not None:
            self._await(self._busy_until)
            self.finish()

    def _await(self, deadline: float) -> None:
        poller = select.poll()
        poller.register(self._data, select.POLLIN)
        if not poller.poll(max(deadline - time.monotonic(), 0.0) * 1000):
            raise self.late()

    def late(self) -> HostError:
        """What to raise after ``busy_until``."""
        return HostError(f"the hardware TPM (swtpm) has not answered a command in time (log: {self._log})")

    def _shut_down(self) -> None:
        """TPM2_Shutdown(CLEAR); a TPM that was not started up answers TPM_RC_INITIALIZE, which is as good."""
        self.start(tpm.shutdown(), 0)
        self._settle()

    # -- control channel ------------------------------------------------------------------------------------

    def _command(self, message: bytes, what: str) -> None:
        wire.check_result(self._exchange(message, wire.RESULT_SIZE, what), what)

    def _exchange(self, message: bytes, size: int, what: str) -> bytes:
        try:
            self._control.sendall(message)
        except OSError:
            raise self._gone(f"at {what}") from None
        return self._receive(size, what)

    def _receive(self, size: int, what: str) -> bytes:
        answer = bytearray()
        while len(answer) < size:
            try:
                piece = self._control.recv(size - len(answer))
            except OSError:
                piece = b""
            if not piece:
                raise self._gone(f"at {what}")
            answer += piece
        return bytes(answer)

    def _gone(self, when: str) -> HostError:
        """The reason, if the process tells one."""
        self._process.wait(0.5)
        try:
            self._process.check()
        except HostError as error:
            return error
        return HostError(f"{self._process.name} does not answer any more, {when} (log: {self._log})")

    def close(self) -> None:
        """In order if it can be done at once: TPM2_Shutdown, power off, end of the process; idempotent."""
        with suppress(HostError, SwtpmRefusedError, RemoteProtocolError, OSError):
            if self._process.running() and self._control.fileno() >= 0:
                if self._busy_until is not None:
                    self._busy_until = min(self._busy_until, time.monotonic() + _END)
                self._shut_down()
                self._command(wire.plain(Cmd.CMD_SHUTDOWN), "SHUTDOWN")
        self._data.close()
        self._control.close()
        self._process.close()


def _await_unlocked(directory: Path) -> None:
    """HostError if another swtpm holds the directory."""
    deadline = time.monotonic() + _UNLOCK
    with open(directory / _LOCK_FILE, "ab") as file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise HostError(f"the hardware TPM in {directory} is in use by another host; end that") from None
            time.sleep(0.01)
