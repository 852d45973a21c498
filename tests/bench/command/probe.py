"""Times TPM commands on one path. Stand-alone, standard library only: the same file runs on the host and in guests.

``python3 probe.py PLAN`` prints {NAME: [microseconds...]}. PLAN is a JSON file
{"target": TARGET, "setup": [HEX...], "work": [[NAME, COUNT, [HEX...]]...]}. TARGET is

  /dev/tpmN           the kernel's device: one write, one read
  swtpm:DIRECTORY     a bare swtpm of our own on a socket pair, its state in DIRECTORY
  channel:CHANNEL     a front end's link to the manager, no kernel in between (guest_frontend/link.py)
  ping:CHANNEL        PING and PONG on that channel: the way to the manager's thread and back, no TPM behind it
  speed:              no TPM: the command b"loop" is 1000 turns of an empty loop, b"system" 100 system calls
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

_SUCCESS = bytes.fromhex("80010000000a00000000")
_LIMIT = 4096  # bytes of a response
_PATIENCE = 10.0  # seconds
_MAX_BODY = 4096
_FORGIVEN = 3  # I/O errors in one series
_WARM_UP = 4  # commands of each kind before those that count; even, because commands take turns

Work = list[tuple[str, int, list[bytes]]]


class Target(Protocol):
    """A TPM is one method."""

    def execute(self, command: bytes) -> bytes:
        """One command, its response."""

    def close(self) -> None:
        """Let go."""


class Device:
    """/dev/tpmN."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def execute(self, command: bytes) -> bytes:
        os.write(self._fd, command)
        return os.read(self._fd, _LIMIT)

    def close(self) -> None:
        os.close(self._fd)


class Swtpm:
    """A swtpm with nothing around it. ``encrypted``: its state file as the manager has it."""

    def __init__(self, directory: str, *, encrypted: bool = False) -> None:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket, peer = socket.socketpair()
        key_read, key_write = os.pipe()
        argv = ["swtpm", "socket", "--tpm2", "--fd", str(peer.fileno()), "--tpmstate", f"dir={directory}"]
        argv += ["--flags", "not-need-init,startup-clear"]
        if encrypted:
            argv += ["--key", f"fd={key_read},mode=aes-256-cbc,format=binary"]
        os.write(key_write, os.urandom(32))
        os.close(key_write)
        with peer, open(Path(directory) / "log", "wb") as log:
            fds = (peer.fileno(), key_read)
            self._process = subprocess.Popen(argv, pass_fds=fds, stdout=log, stderr=log, start_new_session=True)
        os.close(key_read)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """The data socket."""
        return self._socket.fileno()

    def execute(self, command: bytes) -> bytes:
        self._socket.sendall(command)
        response = self._socket.recv(_LIMIT)
        while len(response) < 6 or len(response) < int.from_bytes(response[2:6], "big"):
            piece = self._socket.recv(_LIMIT)
            if not piece:
                raise RuntimeError("swtpm ended")
            response += piece
        return response

    def close(self) -> None:
        self._socket.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Channel:
    """A front end's link."""

    def __init__(self, channel: str) -> None:
        from guest_frontend.link import Link

        self._link = Link(channel, _PATIENCE)
        self._link.open(_PATIENCE)
        self.execute: Callable[[bytes], bytes] = self._link.execute

    def close(self) -> None:
        self._link.close()


class Ping:
    """PING, PONG."""

    def __init__(self, channel: str) -> None:
        from manager_vm.vchan import address
        from manager_vm.wire import channel as messages
        from manager_vm.wire import framing

        self._framing, self._messages = framing, messages
        self._endpoint = address.connect(address.parse(channel))
        self._decoder = framing.Decoder(_MAX_BODY, resync=self._endpoint.lossy)
        self._poller = select.poll()
        self._poller.register(self._endpoint.fileno(), select.POLLIN)
        self._number = 0
        self._await_open()

    def execute(self, command: bytes) -> bytes:
        self._number += 1
        ping = self._messages.Ping(self._number)
        self._endpoint.send(self._framing.encode(self._messages.to_frame(ping)))
        while not self._answered():
            if not self._poller.poll(_PATIENCE * 1000):
                raise RuntimeError("the manager does not answer PING")
            self._endpoint.update()
        return _SUCCESS

    def _answered(self) -> bool:
        data = self._endpoint.read(1 << 16)
        frames = self._decoder.feed(data) if data else []
        return any(self._messages.from_frame(frame) == self._messages.Pong(self._number) for frame in frames)

    def _await_open(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while self._endpoint.wait(0.1).name != "OPEN":
            if time.monotonic() > deadline:
                raise RuntimeError("the channel does not open")

    def close(self) -> None:
        self._endpoint.close()


class Speed:
    """How fast the machine is."""

    def __init__(self, _: str) -> None:
        pass

    def execute(self, command: bytes) -> bytes:
        if command == b"loop":
            for _ in range(1000):
                pass
        else:
            for _ in range(100):
                os.getppid()
        return _SUCCESS

    def close(self) -> None:
        pass


def connect(target: str) -> Target:
    """What ``target`` names."""
    kind, _, rest = target.partition(":")
    makers: dict[str, Callable[[str], Target]] = {"swtpm": Swtpm, "channel": Channel, "ping": Ping, "speed": Speed}
    return makers[kind](rest) if kind in makers else Device(target)


def demand(target: Target, commands: list[bytes]) -> None:
    """Run commands that must succeed."""
    for command in commands:
        _check(command, target.execute(command))


def measure(target: Target, work: Work) -> dict[str, list[float]]:
    """Name -> microseconds of each of COUNT commands, which take turns."""
    return {name: _time(target.execute, commands, count) for name, count, commands in work}


def _time(execute: Callable[[bytes], bytes], commands: list[bytes], count: int) -> list[float]:
    samples: list[float] = []
    failures = 0
    now = time.perf_counter_ns
    while len(samples) < _WARM_UP + count:
        command = commands[len(samples) % len(commands)]
        start = now()
        try:
            response = execute(command)
        except OSError:  # a driver that lost its device for a moment (QEMU's tpm-crb on a loaded host): not counted
            failures += 1
            if failures > _FORGIVEN:
                raise
            time.sleep(0.2)
            continue
        taken = now() - start
        _check(command, response)
        samples.append(round(taken / 1000, 1))
    return samples[_WARM_UP:]


def _check(command: bytes, response: bytes) -> None:
    if response[6:10] != _SUCCESS[6:10]:
        raise RuntimeError(f"command {command[6:10].hex()} was answered with {response[6:10].hex()}")


def perform(plan: dict[str, Any]) -> dict[str, list[float]]:
    """Connect, set up, measure."""
    target = connect(plan["target"])
    try:
        demand(target, [bytes.fromhex(each) for each in plan["setup"]])
        return measure(target, [(name, count, [bytes.fromhex(c) for c in many]) for name, count, many in plan["work"]])
    finally:
        with suppress(OSError):
            target.close()


if __name__ == "__main__":
    print(json.dumps(perform(json.loads(Path(sys.argv[1]).read_text()))))
