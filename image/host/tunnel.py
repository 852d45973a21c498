"""The tunnel through which a manager's VM travels between two hosts: RAM, disk blocks, whole RAM files.

``Entrance`` stands at the source, ``Exit`` at the destination; QEMU sees UNIX sockets only. Each TCP connection
carries one stream, both ways, in the records of ``protocol/tunnel.py``. It begins with 32 random bytes of each side
in clear; the keys of both directions depend on them, so a recorded connection opens nowhere else. Then the source
names the stream. The end of one direction is passed on as such; anything else that ends it ends the whole stream.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

from image.host.tunnel_stream import Stream
from image.host.unix import listen
from manager_vm.crypto import Key
from manager_vm.errors import HostError, IntegrityError
from manager_vm.protocol.tunnel import RECORD, Opener, Sealer, Suite

log = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds for the other host to connect and to say who it is
_STRANGERS = 32  # connections that have not said yet who they are, at most
_RETRY = 0.2  # seconds after accept failed: no descriptors
_FILE, _FILE_NONCE = "file", 32


class Entrance:
    """The source's end of ``stream``: takes one local connection at ``path`` and carries it to the Exit at ``address``.

    ``limit``: bytes in a second towards the destination, 0 for as many as there are.
    ``failure`` says how the stream failed ("tampered: ..." or "lost: ..."), ``finished`` that both ends are through.
    """

    def __init__(
        self, path: Path, address: tuple[str, int], key: Key, suite: Suite, stream: str, limit: int = 0
    ) -> None:
        self.path = path
        self._address, self._key, self._suite = address, key, suite
        self._stream = Stream(stream, limit)
        listener = self._stream.own(listen(path, 1))
        self._thread = threading.Thread(target=self._serve, args=(listener,), name=f"tunnel {stream}", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str:
        """Why the stream failed; "" if it did not."""
        return self._stream.failure

    @property
    def finished(self) -> bool:
        """Whether all data and the ends of both directions went through."""
        return self._stream.finished

    @property
    def sent(self) -> int:
        """Bytes given to TCP."""
        return self._stream.sent

    @property
    def received(self) -> int:
        """Bytes taken from TCP."""
        return self._stream.received

    def wait(self, timeout: float) -> bool:
        """Whether the stream ended, well or not, within ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def close(self) -> None:
        """End the stream, wherever it is, and free everything; idempotent."""
        self._stream.abort()
        self._thread.join()

    def __enter__(self) -> Entrance:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, listener: socket.socket) -> None:
        stream = self._stream
        with closing(stream), stream.guarded():
            try:
                local = stream.own(listener.accept()[0])
            finally:
                self.path.unlink(missing_ok=True)
                stream.release(listener)
            deadline = time.monotonic() + _PATIENCE
            remote = stream.own(socket.create_connection(self._address, _PATIENCE))
            wire = stream.meet(remote, self._key, self._suite, deadline, at_source=True)
            stream.send(wire, wire.sealer.seal(stream.name.encode()))
            stream.pump(wire, local)


class Exit:
    """The destination's end of all streams: name -> the UNIX socket at which its receiver listens.

    A connection reaches that socket after it has proven to have the key, and each stream has one connection for as
    long as the Exit is there. ``strangers`` counts the others. ``failure``: of the first stream that failed.
    """

    def __init__(self, address: tuple[str, int], key: Key, suite: Suite, streams: Mapping[str, Path]) -> None:
        self._key, self._suite = key, suite
        self._names = frozenset(streams)
        self._open = dict(streams)  # not taken yet
        self._served: list[tuple[Stream, threading.Thread]] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.strangers = 0
        try:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            self._listener = socket.create_server(address, family=family, backlog=_STRANGERS)
        except OSError as error:
            raise HostError(f"cannot listen at {address[0]} port {address[1]}: {error}; is it in use?") from None
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._accept, name="tunnel exit", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str:
        """Why the first stream that failed did so; "" if none did."""
        return next((stream.failure for stream in self._known() if stream.failure), "")

    @property
    def finished(self) -> bool:
        """Whether every stream came and went through whole, both ways."""
        return {stream.name for stream in self._known() if stream.finished} == self._names

    @property
    def sent(self) -> int:
        """Bytes given to TCP, for all streams."""
        return sum(stream.sent for stream in self._known())

    @property
    def received(self) -> int:
        """Bytes taken from TCP, of all streams."""
        return sum(stream.received for stream in self._known())

    def close(self) -> None:
        """End every stream, wherever it is, and free everything; idempotent."""
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for stream, thread in self._served:
            stream.abort()
            thread.join()

    def __enter__(self) -> Exit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _known(self) -> list[Stream]:
        """The streams that a connection has proven to be."""
        return [stream for stream, _ in list(self._served) if stream.name]

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                remote, _ = self._listener.accept()
            except OSError as error:
                if not self._closed.wait(_RETRY):
                    log.warning("tunnel: cannot take a connection: %s", error)
                continue
            self._served = [(stream, thread) for stream, thread in self._served if stream.name or thread.is_alive()]
            if len(self._served) - len(self._known()) >= _STRANGERS:
                remote.close()
                continue
            stream = Stream()
            thread = threading.Thread(target=self._serve, args=(stream, remote), name="tunnel stream", daemon=True)
            self._served.append((stream, thread))
            thread.start()

    def _serve(self, stream: Stream, remote: socket.socket) -> None:
        with closing(stream):
            with stream.guarded():
                stream.own(remote)
                deadline = time.monotonic() + _PATIENCE
                wire = stream.meet(remote, self._key, self._suite, deadline, at_source=False)
                name, *first = stream.hear(wire, deadline)
                claimed = name.decode(errors="replace")
                path, stream.name = self._take(claimed), claimed
                stream.pump(wire, stream.own(_connect(path)), first)
            if not stream.name and not self._closed.is_set():
                log.warning("tunnel: a connection was closed; %s", stream.failure)
                with self._lock:
                    self.strangers += 1

    def _take(self, name: str) -> Path:
        """The socket of this stream, once."""
        with self._lock:
            path = self._open.pop(name, None)
        if path is None:
            raise ConnectionRefusedError(f"no stream {name!r}, or it had its connection")
        return path


def seal_file(source_fd: int, target_fd: int, key: Key, suite: Suite) -> int:
    """Write the rest of ``source_fd`` sealed; how many bytes that was before. OSError: the disk."""
    nonce = os.urandom(_FILE_NONCE)  # two files under one key must not share record numbers and key
    sealer, size = Sealer(key, _FILE, suite, nonce), 0
    _write(target_fd, nonce)
    while data := os.read(source_fd, RECORD):
        _write(target_fd, sealer.seal(data))
        size += len(data)
    _write(target_fd, sealer.finish())
    return size


def open_file(source_fd: int, target_fd: int, key: Key, suite: Suite) -> int:
    """The inverse; how many bytes were written. IntegrityError at the first bad record, or if the file was cut.

    What was written before an error is authentic, but not the whole file.
    """
    nonce, size = b"", 0
    while len(nonce) < _FILE_NONCE and (data := os.read(source_fd, _FILE_NONCE - len(nonce))):
        nonce += data
    opener = Opener(key, _FILE, suite, nonce)
    while data := os.read(source_fd, RECORD):
        for piece in opener.feed(data):
            _write(target_fd, piece)
            size += len(piece)
    if not opener.finished:
        raise IntegrityError("the sealed file ends before its end mark: it was truncated; copy it again")
    return size


def _write(fd: int, data: bytes) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])


def _connect(path: Path) -> socket.socket:
    """A connection to the stream's receiver."""
    local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        local.settimeout(_PATIENCE)
        local.connect(str(path))
        local.settimeout(None)
    except OSError as error:
        local.close()
        raise ConnectionError(f"nobody takes the stream at {path}: {error}") from None
    return local
