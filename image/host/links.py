"""The host's links to its manager: admin (operators), host (wiring, boot numbers), and the carrier of QEMU shims."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manager_vm.ctl.client import Client
from manager_vm.errors import UnreachableError, VtpmManagerError
from manager_vm.trust.signing import SigningKey

log = logging.getLogger(__name__)

ADMIN_PORT, HOST_PORT, SHIMS_PORT = "org.vtpm.admin", "org.vtpm.host", "org.vtpm.shims"
_CALL = 30.0  # seconds for one request
_RETRY = 0.2  # seconds between two tries
_COMPLAIN = 5.0  # seconds between two lines about the same trouble


class Links:
    """Thread-safe. The sockets take one client at a time, so each request has a connection of its own."""

    def __init__(self, directory: Path) -> None:
        self.admin_socket = directory / "admin.sock"
        self.host_socket = directory / "host.sock"
        self.shims_socket = directory / "shims.sock"  # a QEMU shim's, not ours
        self.key: SigningKey | None = None  # the operator's
        self._closed = threading.Event()
        self._locks = {self.admin_socket: threading.Lock(), self.host_socket: threading.Lock()}

    @property
    def ports(self) -> tuple[tuple[str, Path], ...]:
        """The manager VM's virtio-serial ports for these links."""
        return (ADMIN_PORT, self.admin_socket), (HOST_PORT, self.host_socket), (SHIMS_PORT, self.shims_socket)

    def admin(self, verb: str, *, timeout: float = 180.0, **args: Any) -> Any:
        """An operator's request, signed with ``key``."""
        return self._call(self.admin_socket, verb, timeout, args, self.key)

    def host(self, verb: str, *, timeout: float = _CALL, **args: Any) -> Any:
        """A request of the host side."""
        return self._call(self.host_socket, verb, timeout, args)

    def insist(self, what: str, request: Callable[[], Any], given_up: threading.Event) -> bool:
        """Repeat ``request`` until it succeeds (True), or until ``given_up`` or ``close`` (False)."""
        told = time.monotonic()
        while not self._closed.is_set() and not given_up.is_set():
            try:
                request()
                return True
            except VtpmManagerError as error:
                if time.monotonic() - told > _COMPLAIN:
                    told = time.monotonic()
                    log.warning("%s: %s; trying again", what, error)
            given_up.wait(_RETRY)
        return False

    def wait_answering(self, check: Callable[[], None], timeout: float) -> dict[str, Any]:
        """The manager's status, once it answers, provisioned or not. ``check`` raises if its VM has ended."""
        return self._wait(lambda: dict(self.admin("status", timeout=2.0)), check, timeout)

    def wait_serving(self, check: Callable[[], None], timeout: float) -> dict[str, Any]:
        """The same of a manager that serves vTPMs: one that is not provisioned has no host link."""
        return self._wait(lambda: dict(self.host("status", timeout=2.0)), check, timeout)

    def _wait(self, ask: Callable[[], dict[str, Any]], check: Callable[[], None], timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while True:
            try:
                return ask()
            except UnreachableError:
                check()
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY)

    def close(self) -> None:
        """Give up whatever is repeated."""
        self._closed.set()

    def _call(
        self, socket: Path, verb: str, timeout: float, args: dict[str, Any], key: SigningKey | None = None
    ) -> Any:
        with self._locks[socket], Client.connect(socket, timeout, key) as client:
            if timeout > _CALL:  # it may change something, and must neither be lost nor be asked twice
                client.reach()
            return client.call(verb, **args)


class Beside(threading.Thread):
    """A request that takes long, beside what else is to be done. It is made at once."""

    def __init__(self, request: Callable[[], object]) -> None:
        super().__init__(name="request", daemon=True)
        self._request = request
        self.error: VtpmManagerError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._request()
        except VtpmManagerError as error:
            self.error = error

    @property
    def over(self) -> bool:
        """Whether it has its answer."""
        return not self.is_alive()
