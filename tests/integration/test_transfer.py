"""Live migration of a VM without an operating system, through the tunnel, over a link slower than its memory."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from image.host import transfer
from image.host.process import Process
from image.host.qmp import Qmp
from image.host.transfer import Incoming, Outgoing
from image.host.tunnel import Entrance, Exit
from image.host.vm import Vm
from manager_vm.crypto import Key
from manager_vm.protocol.tunnel import Suite
from tests.integration.conftest import short_directory

LIMIT = 12_500_000  # bytes/s: 100 Mbit/s
BUSY = 16 << 20  # bytes that the VM writes to, over and over
_WRITER = bytes.fromhex(
    "fa 31c0 8ed8"  # no interrupts, ds = 0
    "660f0116397c"  # lgdt [0x7c39]
    "0f20c0 0c01 0f22c0"  # protected mode
    "bb0800 8edb"  # ds: all of the memory
    "24fe 0f22c0"  # real mode again, ds stays as it is
    "66bf00000001"  # again: edi = 16 MiB
    "6766ff07"  # next: inc dword [edi]
    "6681c700100000"  # edi += 4096
    "6681ff00000002"  # at 32 MiB?
    "72ec ebe4"  # next, or again
    "0f00 3f7c0000"  # of the table: its last byte, its address
    "0000000000000000 ffff00000092cf00"
)


@dataclass(slots=True)
class Bare:
    """A VM with 64 MiB that starts ``_WRITER``; what of ``Vm`` a transfer needs."""

    process: Process
    qmp: Qmp
    spec: Any = field(default_factory=lambda: SimpleNamespace(name="bare"))

    def check(self) -> None:
        self.process.check()

    def status(self) -> str:
        return str(self.qmp.execute("query-status")["status"])

    def byte(self) -> str:
        """Of the memory that it writes to."""
        return str(self.qmp.execute("human-monitor-command", command_line="xp /1bx 0x1000000"))

    def memory(self, file: Path) -> str:
        """SHA-256 of all of it but what firmware has for itself, by way of this file."""
        self.qmp.execute("pmemsave", val=1 << 20, size=63 << 20, filename=str(file))
        return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def bare(directory: Path, *words: str) -> Iterator[Bare]:
    directory.mkdir()
    disk = directory / "disk"
    disk.write_bytes((_WRITER.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    argv = ["qemu-system-x86_64", "-M", "pc-q35-7.2", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]
    argv += ["-drive", f"format=raw,file={disk}", "-qmp", f"unix:{directory / 'monitor'},server=on,wait=off", *words]
    with Process("QEMU", argv, directory / "log") as process:
        qmp = Qmp("bare", directory / "monitor")
        try:
            yield Bare(process, qmp)
        finally:
            qmp.close()


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_vm_that_writes_faster_than_the_link_carries_stops_once_it_may_and_arrives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "_PATIENCE", 20.0)
    key = Key(os.urandom(32))
    with (
        short_directory() as directory,
        bare(directory / "1") as source,
        bare(directory / "2", "-incoming", "defer") as target,
    ):
        until(lambda: (first := source.byte()) != source.byte() and ": 0x" in first)
        incoming, out = Incoming(cast(Vm, target)), Outgoing(cast(Vm, source))
        incoming.listen(directory / "far")
        with (
            Exit(("127.0.0.1", 0), key, Suite.AES, {"ram": directory / "far"}) as end,
            Entrance(directory / "near", end.address, key, Suite.AES, "ram", LIMIT),
        ):
            out.start(f"unix:{directory / 'near'}")
            out.await_sent()
            time.sleep(0.5)
            assert source.status() == "running"
            assert source.qmp.execute("query-migrate")["ram"]["dirty-sync-count"] == 1
            began = time.monotonic()
            out.stop()
            out.finish()
            took = time.monotonic() - began
            incoming.await_arrived()
        assert source.status() == "postmigrate"
        assert source.memory(directory / "sent") == target.memory(directory / "came")
        target.qmp.execute("cont")
        until(lambda: (first := target.byte()) != target.byte() and ": 0x" in first)
        assert took < 2 * BUSY / LIMIT + 3.0
