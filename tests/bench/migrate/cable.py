"""Two network namespaces and a cable between them with a limited bandwidth: veth, and a token bucket at each end
(tc-tbf(8)), through pyroute2. Needs root, and nothing of the machine's own network."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pyroute2 import NetNS

NEAR, FAR = "10.77.0.1", "10.77.0.2"
_PREFIX = 24
_CLONE_NEWNET = 0x40000000
_BURST = 16_384  # bytes
_BACKLOG = "100ms"  # what waits longer is dropped

T = TypeVar("T")


class Cable:
    """``mbit``: 10^6 bits per second, in each direction. The end ``NEAR`` is in namespace 0, ``FAR`` in 1."""

    def __init__(self, mbit: float) -> None:
        self._holders = [subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) for _ in (NEAR, FAR)]
        try:
            for each in self._holders:
                _await_namespace(each.pid)
            self._lay(int(mbit * 125_000))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The namespaces end with their last process."""
        for each in self._holders:
            each.kill()
            each.wait()

    def prefix(self, end: int) -> list[str]:
        """What runs a program at one end."""
        return ["nsenter", f"--net={self._path(end)}"]

    def at(self, end: int, action: Callable[[], T]) -> T:
        """``action`` on a thread of that end: a socket that is made there stays there."""
        results: list[T] = []

        def run() -> None:
            _enter(self._path(end))
            results.append(action())

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if not results:
            raise OSError(f"nothing could be done in the network namespace {self._path(end)}")
        return results[0]

    def _path(self, end: int) -> str:
        return f"/proc/{self._holders[end].pid}/ns/net"

    def _lay(self, rate: int) -> None:
        with NetNS(self._path(0)) as near, NetNS(self._path(1)) as far:
            near.link("add", ifname="cable", kind="veth", peer={"ifname": "cable", "net_ns_pid": self._holders[1].pid})
            for end, address in ((near, NEAR), (far, FAR)):
                index = end.link_lookup(ifname="cable")[0]
                end.addr("add", index=index, address=address, prefixlen=_PREFIX)
                end.link("set", index=index, state="up")
                end.tc("add", kind="tbf", index=index, handle=0x10000, rate=rate, burst=_BURST, latency=_BACKLOG)


def _await_namespace(pid: int) -> None:
    deadline = time.monotonic() + 10
    while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        if time.monotonic() > deadline:
            raise OSError("unshare makes no network namespace; run the benchmark as root")
        time.sleep(0.01)


def _enter(path: str) -> None:
    """setns(2) of this thread."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(fd)
