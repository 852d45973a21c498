"""Streams of the tunnel that go into files of the destination host: a disk, a memory file."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from image.host import unix
from image.host.tunnel import open_file
from manager_vm.crypto import Key
from manager_vm.errors import HostError, VtpmManagerError
from manager_vm.protocol.tunnel import Suite

Store = Callable[[int], object]


class Stored:
    """Takes each stream in a thread of its own. ``close`` ends those whose stream never comes."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._failure = ""

    def take(self, path: Path, store: Store) -> None:
        """Have ``store(descriptor)`` take what comes over the one connection to ``path``."""
        listener = unix.listen(path, 1)
        self._sockets.append(listener)
        thread = threading.Thread(target=self._run, args=(listener, store), name=path.name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self) -> None:
        """Until all is stored; HostError if it is not whole."""
        for thread in self._threads:
            thread.join()
        if self._failure:
            raise HostError(self._failure)

    def close(self) -> None:
        """End what still waits or comes; idempotent."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _run(self, listener: socket.socket, store: Store) -> None:
        try:
            connection, _ = listener.accept()
            self._sockets.append(connection)
            try:
                store(connection.fileno())
            finally:
                connection.shutdown(socket.SHUT_RDWR)
        except (VtpmManagerError, OSError) as error:
            self._failure = f"what came for {threading.current_thread().name} cannot be stored: {error}"


def memory_into(path: Path) -> Store:
    """The file as it comes: encrypted."""

    def store(fd: int) -> None:
        with open(fd, "rb", closefd=False) as source, open(path, "wb") as file:
            shutil.copyfileobj(source, file)

    return store


def decrypted(path: Path, key: Key, suite: Suite, read: Callable[[int], None]) -> None:
    """Have ``read(descriptor)`` read the memory in the file, decrypted on its way. HostError if it was changed."""
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    readable, writable = os.pipe2(os.O_CLOEXEC)
    failed: list[Exception] = []

    def decrypt() -> None:
        try:
            open_file(source, writable, key, suite)
        except (VtpmManagerError, OSError) as error:
            failed.append(error)
        finally:
            os.close(writable)
            os.close(source)

    thread = threading.Thread(target=decrypt, name="decrypt", daemon=True)
    thread.start()
    try:
        read(readable)
    finally:
        os.close(readable)
    thread.join()
    if failed:
        raise HostError(f"the memory file is not whole: {failed[0]}")
