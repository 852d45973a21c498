"""One swtpm process: spawn, control channel, data channel, deadline, state file. Works with swtpm 0.7 and later.

Data and control are socket pairs whose other ends only the process has: no path, no port, nobody else can
connect. swtpm has one thread and blocks on a half-sent command, so commands are handed over whole.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from manager_vm.errors import SwtpmError
from manager_vm.vtpm.sandbox import Sandbox
from manager_vm.vtpm.statefile import StateFile
from manager_vm.wire import swtpm as wire
from manager_vm.wire import tpm

_MAX_RESPONSE = 4096
_CONTROL_TIMEOUT = 10.0  # seconds; control commands take microseconds, INIT a few milliseconds
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class StateBlobs:
    """All state of a TPM; b"" = absent."""

    permanent: bytes
    volatile: bytes
    savestate: bytes

    def __repr__(self) -> str:
        return f"StateBlobs({len(self.permanent)}, {len(self.volatile)}, {len(self.savestate)} bytes)"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What ``swtpm socket --print-capabilities`` says."""

    version: str
    features: frozenset[str]


def capabilities(binary: str) -> Capabilities:
    """Ask the binary; SwtpmError if it is missing or unusable."""
    try:
        done = subprocess.run(
            [binary, "socket", "--tpm2", "--print-capabilities"],
            capture_output=True,
            timeout=20,
            check=True,
            env={"PATH": _PATH},
        )
        said = json.loads(done.stdout)
        found = Capabilities(said.get("version", "unknown"), frozenset(said["features"]))
    except FileNotFoundError:
        raise SwtpmError(f"{binary} is not installed; install the package 'swtpm'") from None
    except (subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
        raise SwtpmError(f"{binary} does not work: {error}; reinstall the package 'swtpm'") from None
    missing = {"tpm-2.0", "cmdarg-key-fd", "cmdarg-seccomp"} - found.features
    if missing:
        raise SwtpmError(
            f"{binary} {found.version} is too old, it lacks {', '.join(sorted(missing))}; install 0.7 or later"
        )
    return found


class Swtpm:
    """A living swtpm. One user at a time; ``close`` ends and reaps it."""

    def __init__(
        self, process: subprocess.Popen[bytes], data: socket.socket, control: socket.socket, run_dir: Path
    ) -> None:
        self._process = process
        self._data = data
        self._control = control
        self._locality = 0
        self._answer = bytearray()
        self.state_file = StateFile(run_dir)

    @classmethod
    def spawn(cls, run_dir: Path, key: bytes, sandbox: Sandbox, *, binary: str = "swtpm") -> Swtpm:
        """Start swtpm on ``run_dir`` (owned by the sandbox's uid), its state encrypted under ``key`` (32 bytes).

        The TPM is not initialised yet. The key travels through a pipe that is closed again.
        """
        data, data_peer = socket.socketpair()
        control, control_peer = socket.socketpair()
        key_read, key_write = os.pipe()
        try:
            os.write(key_write, key)
            os.close(key_write)
            argv = _argv(binary, run_dir, data_peer.fileno(), control_peer.fileno(), key_read)
            process = _start(sandbox.wrap(argv), (data_peer.fileno(), control_peer.fileno(), key_read), run_dir)
        except SwtpmError:
            data.close()
            control.close()
            raise
        finally:
            os.close(key_read)
            data_peer.close()
            control_peer.close()
        control.settimeout(_CONTROL_TIMEOUT)
        return cls(process, data, control, run_dir)

    # -- control channel ------------------------------------------------------------------------------------

    def init(self) -> None:
        """CMD_INIT: _TPM_Init. SwtpmError if the state does not open (damaged, or of another key)."""
        self._command(wire.init(), wire.RESULT_SIZE, "INIT")
        self._locality = 0

    def stop(self) -> None:
        """CMD_STOP: the TPM has no power; the process waits for ``set_state`` or ``init``."""
        self._command(wire.plain(wire.Cmd.CMD_STOP), wire.RESULT_SIZE, "STOP")

    def get_state(self) -> StateBlobs:
        """All state of the running TPM; it goes on."""
        return StateBlobs(*(self._get_blob(kind) for kind in wire.Blob))

    def get_permanent(self) -> bytes:
        """The permanent state; swtpm writes nothing for it (for the volatile state it does)."""
        return self._get_blob(wire.Blob.PERMANENT)

    def set_state(self, blobs: StateBlobs) -> None:
        """Load state into the stopped TPM; ``init`` follows. Only authenticated blobs may come here."""
        parts = ((wire.Blob.PERMANENT, blobs.permanent), (wire.Blob.VOLATILE, blobs.volatile))
        for kind, data in (*parts, (wire.Blob.SAVESTATE, blobs.savestate)):
            if len(data) > wire.MAX_BLOB:
                raise SwtpmError(f"a state blob of {len(data)} bytes is larger than any swtpm makes; it is not loaded")
            if data:
                message = wire.set_stateblob(kind, 0, data)
                self._command(message, wire.RESULT_SIZE, f"SET_STATEBLOB({kind.name})")

    def _get_blob(self, kind: wire.Blob) -> bytes:
        what = f"GET_STATEBLOB({kind.name})"
        answer = self._command(wire.get_stateblob(kind), wire.BLOB_HEAD.size, what, check=False)
        head = wire.parse_blob_head(answer)
        if head.result == wire.ABSENT and kind is not wire.Blob.PERMANENT:
            return b""
        wire.check_result(answer, what)
        return self._receive(head.length, what)

    def _command(self, message: bytes, size: int, what: str, *, check: bool = True) -> bytes:
        try:
            self._control.settimeout(_CONTROL_TIMEOUT)
            self._control.sendall(message)
        except OSError as error:
            raise SwtpmError(f"swtpm is gone ({error.strerror or error}) at {what}; its log says why") from None
        answer = self._receive(size, what)
        if check:
            wire.check_result(answer, what)
        return answer

    def _receive(self, size: int, what: str) -> bytes:
        answer = bytearray()
        end = time.monotonic() + _CONTROL_TIMEOUT  # for the whole answer, however small its pieces
        while len(answer) < size:
            try:
                self._control.settimeout(max(end - time.monotonic(), 0.001))
                piece = self._control.recv(size - len(answer))
            except OSError as error:
                self.kill()  # an answer that still came would be taken for the next command's
                raise SwtpmError(f"swtpm does not answer {what} ({error.strerror or error}); it was killed") from None
            if not piece:
                raise SwtpmError(f"swtpm ended at {what}; its log says why")
            answer += piece
        return bytes(answer)

    # -- data channel ---------------------------------------------------------------------------------------

    def start_execute(self, command: bytes, locality: int = 0) -> None:
        """Hand over one whole command; ``finish_execute`` fetches the response."""
        if locality != self._locality:
            self._command(wire.set_locality(locality), wire.RESULT_SIZE, "SET_LOCALITY")
            self._locality = locality
        try:
            self._data.sendall(command)
        except OSError as error:
            raise SwtpmError(f"swtpm is gone: {error.strerror or error}") from None

    def finish_execute(self) -> bytes | None:
        """The response, None while it is not complete (never blocks); SwtpmError if the process died."""
        try:
            piece = self._data.recv(_MAX_RESPONSE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise SwtpmError(f"swtpm is gone: {error.strerror or error}") from None
        if not piece:
            raise SwtpmError("swtpm died while it executed a command")
        self._answer += piece
        if len(self._answer) < tpm.HEADER_SIZE:
            return None
        size = int.from_bytes(self._answer[2:6], "big")
        if not tpm.HEADER_SIZE <= size <= _MAX_RESPONSE or len(self._answer) > size:
            raise SwtpmError(f"swtpm's answer says {size} bytes and has {len(self._answer)}: it is not itself any more")
        if len(self._answer) < size:
            return None
        response = bytes(self._answer)
        self._answer.clear()
        return response

    def execute(self, command: bytes, locality: int = 0, *, deadline: float = 120.0) -> bytes:
        """One command, blocking. After ``deadline`` seconds the process is killed and SwtpmError raised."""
        self.start_execute(command, locality)
        end = time.monotonic() + deadline
        poller = select.poll()
        poller.register(self._data.fileno(), select.POLLIN)
        while poller.poll(max(end - time.monotonic(), 0.0) * 1000):
            response = self.finish_execute()
            if response is not None:
                return response
        self.kill()
        raise SwtpmError(f"a command took longer than {deadline:.0f} s; swtpm was killed")

    def fileno(self) -> int:
        """The data descriptor, for poll()."""
        return self._data.fileno()

    # -- process --------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def died(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process (both its sockets close, then SIGKILL), reap it; idempotent."""
        self._data.close()
        self._control.close()
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self.state_file.close()

    def __enter__(self) -> Swtpm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _argv(binary: str, run_dir: Path, data: int, control: int, key: int) -> list[str]:
    return [
        binary,
        "socket",
        "--tpm2",
        "--fd",
        str(data),
        "--ctrl",
        f"type=unixio,clientfd={control}",
        "--tpmstate",
        f"dir={run_dir},mode=0600",
        "--key",
        f"fd={key},mode=aes-256-cbc,format=binary",
        "--locality",
        "allow-set-locality",
        "--seccomp",
        "action=kill",
    ]


def _start(argv: list[str], fds: tuple[int, ...], run_dir: Path) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=fds, cwd="/", env={"PATH": _PATH}
        )
    except FileNotFoundError as error:
        raise SwtpmError(f"{error.filename} is not installed; install 'swtpm' and 'util-linux'") from None
    except OSError as error:
        raise SwtpmError(f"swtpm cannot be started for {run_dir.name}: {error.strerror}") from None
