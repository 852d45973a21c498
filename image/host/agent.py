"""A shell in a debug image: qemu-guest-agent on a virtio-serial port. Nothing of a TPM's path uses it."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manager_vm.errors import HostError

_POLL = 0.02


@dataclass(frozen=True, slots=True)
class Done:
    """A finished command."""

    status: int
    out: str
    err: str


class Agent:
    """``socket`` is the host side of port org.qemu.guest_agent.0. One caller at a time."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path
        self._socket: socket.socket | None = None
        self._buffer = b""

    def wait(self, timeout: float) -> None:
        """Until the agent answers (the VM has booted)."""
        deadline, patience = time.monotonic() + timeout, 2.0
        while True:
            try:
                self._synchronise(patience)
                return
            except (OSError, HostError):
                self.close()
                patience *= 1.5  # an agent that is slow now answers each of us, after we have gone
                if time.monotonic() > deadline:
                    raise HostError(
                        f"{self._name} has not booted within {timeout:.0f} s; see its console log"
                    ) from None
                time.sleep(0.1)

    def run(self, command: str, timeout: float = 60.0) -> Done:
        """Run a shell command line; its status, stdout and stderr."""
        deadline = time.monotonic() + timeout
        self._ensure(deadline)
        started = self._call("guest-exec", deadline, path="/bin/sh", arg=["-c", command], **{"capture-output": True})
        while not (state := self._call("guest-exec-status", deadline, pid=started["pid"]))["exited"]:
            time.sleep(_POLL)
        status = state.get("exitcode", 128 + state.get("signal", 0))
        return Done(status, _text(state.get("out-data", "")), _text(state.get("err-data", "")))

    def check(self, command: str, timeout: float = 60.0) -> str:
        """stdout of a command that must succeed; HostError otherwise."""
        done = self.run(command, timeout)
        if done.status:
            raise HostError(
                f"{self._name}: {command!r} ended with {done.status}: {(done.err or done.out).strip()[-600:]}"
            )
        return done.out

    def write(self, path: str, data: bytes) -> None:
        """Put a small file into the VM."""
        self.check(f"base64 -d >{path} <<'E'\n{base64.b64encode(data).decode()}\nE")

    def close(self) -> None:
        """Let go of the port; the next call takes it again."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._buffer = None, b""

    def _ensure(self, deadline: float) -> None:
        if self._socket is None:
            self.wait(deadline - time.monotonic())

    def _synchronise(self, timeout: float) -> None:
        """Skip what an earlier client left in the port (QEMU, guest-sync-delimited)."""
        self.close()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout)
        self._socket.connect(str(self._path))
        number = int.from_bytes(os.urandom(4), "little")
        self._socket.sendall(b"\xff\n")  # ends whatever half request is there
        self._send("guest-sync", id=number)
        deadline = time.monotonic() + timeout
        while self._message(deadline).get("return") != number:
            pass  # what an earlier client left, or the agent's complaint about it

    def _call(self, verb: str, deadline: float, **arguments: Any) -> Any:
        self._send(verb, **arguments)
        message = self._message(deadline)
        if "error" in message:
            raise HostError(f"{self._name}: guest agent: {message['error'].get('desc')}")
        return message["return"]

    def _send(self, verb: str, **arguments: Any) -> None:
        assert self._socket is not None
        self._socket.sendall(json.dumps({"execute": verb, "arguments": arguments}).encode() + b"\n")

    def _message(self, deadline: float) -> dict[str, Any]:
        while True:
            line = self._line(deadline).lstrip(b"\xff")
            with suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    return message

    def _line(self, deadline: float) -> bytes:
        assert self._socket is not None
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                self.close()
                raise HostError(f"{self._name}: no answer of the guest agent in time") from None
            if not data:
                self.close()
                raise HostError(f"{self._name}: the VM has ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _text(data: str) -> str:
    return base64.b64decode(data).decode(errors="replace")
