"""The QEMU shim of a host: one service for all guests that know nothing of us (guest_frontend/QEMU.md)."""

from __future__ import annotations

import sys
import time
from concurrent.futures import Executor
from pathlib import Path

from image.host.links import Links
from image.host.process import Process
from manager_vm.errors import HostError

_PATIENCE = 20.0  # seconds for the service to take up a guest, or to let go of one
_LOOK = 0.05


class Shims:
    """Owns ``directory`` and the service, which starts with the first guest and lives as long as the host.

    It is never started anew: QEMU does not connect a second time, so its guests' TPMs end with it.
    """

    def __init__(self, links: Links, directory: Path, spawner: Executor) -> None:
        self._links = links
        self._directory = directory
        self._spawner = spawner
        self._service: Process | None = None

    def add(self, name: str, vm: str) -> Path:
        """Serve a guest's QEMU at this socket. ``vm``: the VM's UUID."""
        if self._service is None:
            self._service = self._start()
        (self._directory / f"{name}.guest").write_text(vm)
        path = self._directory / f"{name}.sock"
        self._await(path, there=True)
        return path

    def remove(self, name: str) -> None:
        """The guest has gone."""
        (self._directory / f"{name}.guest").unlink(missing_ok=True)
        if self._service is not None and self._service.running():
            self._await(self._directory / f"{name}.sock", there=False)

    def close(self) -> None:
        """End the service; idempotent."""
        if self._service is not None:
            self._service.close()
            self._service = None

    def _start(self) -> Process:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for left in self._directory.glob("*.guest"):
            left.unlink()
        argv = [sys.executable, "-m", "guest_frontend", "qemu", f"socket:{self._links.shims_socket}"]
        argv += ["--host-link", str(self._links.host_socket), "--directory", str(self._directory)]
        log = self._directory / "shim.log"
        return self._spawner.submit(Process, "the QEMU shim", argv, log).result()

    def _await(self, path: Path, *, there: bool) -> None:
        deadline = time.monotonic() + _PATIENCE
        while path.exists() is not there:
            assert self._service is not None  # a guest was added
            self._service.check()
            if time.monotonic() > deadline:
                what = "serve" if there else "let go of"
                raise HostError(f"the QEMU shim does not {what} {path}; see {self._directory / 'shim.log'}")
            time.sleep(_LOOK)
