"""QEMU's monitor: qemu.qmp behind plain calls. One asyncio loop in one thread for each monitor."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError

from manager_vm.errors import HostError

T = TypeVar("T")
Event = dict[str, Any]

_CONNECT = 10.0  # seconds for QEMU to make its monitor socket
_DEADLINE = 60.0  # seconds for one command


class Qmp:
    """Thread-safe. Events of the VM are kept in order for the one caller of ``next_event``."""

    def __init__(self, name: str, socket: Path) -> None:
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"qmp {name}", daemon=True)
        self._thread.start()
        self._client = QMPClient(name)
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._pump: asyncio.Task[None] | None = None
        try:
            self._run(self._connect(socket), _CONNECT + 5)
        except HostError:
            self.close()
            raise

    def execute(self, command: str, **arguments: Any) -> Any:
        """The result; HostError with QEMU's words otherwise. Underscores in names become hyphens."""
        plain = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self._run(self._client.execute(command, plain or None), _DEADLINE, command)

    def pass_fd(self, name: str, fd: int) -> None:
        """Give QEMU a descriptor under a name (getfd)."""

        async def send() -> None:
            self._client.send_fd_scm(fd)
            await self._client.execute("getfd", {"fdname": name})

        self._run(send(), _DEADLINE, "getfd")

    def next_event(self, timeout: float | None) -> Event | None:
        """The next event, or None after ``timeout`` seconds or when the monitor is closed."""
        with suppress(queue.Empty):
            return self._events.get(timeout=timeout)
        return None

    def close(self) -> None:
        """Hang up; idempotent."""
        if self._loop.is_closed():
            return
        with suppress(HostError):
            self._run(self._disconnect(), 5.0)
        # what is left of a broken connection complains when it is freed, in whatever is running then
        self._loop.set_exception_handler(lambda loop, context: None)
        self._events.put(None)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connect(self, socket: Path) -> None:
        deadline = time.monotonic() + _CONNECT
        while True:
            try:
                await self._client.connect(str(socket))
                break
            except (QMPError, OSError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)
        self._pump = asyncio.create_task(self._forward())

    async def _forward(self) -> None:
        async for event in self._client.events:
            self._events.put(dict(event))

    async def _disconnect(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
        await self._client.disconnect()

    def _run(self, what: Coroutine[Any, Any, T], timeout: float, command: str = "connect") -> T:
        if self._loop.is_closed():
            what.close()
            raise HostError(f"QEMU of {self._name} has ended; it was asked for {command}")
        future = asyncio.run_coroutine_threadsafe(what, self._loop)
        try:
            return future.result(timeout)
        except ExecuteError as error:
            raise HostError(f"QEMU of {self._name} refuses {command}: {error}") from None
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            future.cancel()
            raise HostError(
                f"QEMU of {self._name} does not answer {command}: {error or type(error).__name__}"
            ) from None
