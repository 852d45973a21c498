"""The admin link and the host link: requests in, replies out, over UNIX sockets or a virtio-serial port.

A UNIX connection has a thread, and a request is answered before its next one is read; a port has workers. A client that
breaks the framing loses its connection (UNIX) or the garbled bytes (virtio-serial), nobody else notices.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from manager_vm.errors import ConfigError, ProtocolError, StoreError, UnreachableError, VtpmManagerError
from manager_vm.vchan import address
from manager_vm.vchan.endpoint import Endpoint, State
from manager_vm.wire import admin, framing

log = logging.getLogger(__name__)

Perform = Callable[[admin.Request | admin.SignedRequest], object]

_EXPIRE = 0.3  # seconds: the rest of a frame on a lossy carrier that has not come by then is given up
_TICK = 1.0
_SEND_TIMEOUT = struct.pack("ll", 10, 0)  # struct timeval: seconds, microseconds
_PAUSE = 0.2  # seconds after an error of accept(2)
_CHUNK = 65536
_WORKERS = 8  # requests of one port that are performed at once


def open_link(where: str, perform: Perform) -> UnixLink | PortLink:
    """Serve requests at ``where``: ``unix:PATH`` or ``virtio-serial:NAME``."""
    kind, _, argument = where.partition(":")
    if kind == "unix" and argument:
        return UnixLink(Path(argument), perform)
    if kind == "virtio-serial" and argument:
        return PortLink(where, perform)
    raise ConfigError(f"a link is unix:PATH or virtio-serial:NAME, not {where!r}")


class UnixLink:
    """A listening UNIX socket (mode 0600), any number of clients."""

    def __init__(self, path: Path, perform: Perform) -> None:
        self._path = path
        self._perform = perform
        self._socket = _listen(path)
        self._closing = threading.Event()
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, name=f"link {path.name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still listens."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop listening and drop the clients; a request that is being performed is finished first."""
        self._closing.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        self._path.unlink(missing_ok=True)
        with self._lock:
            clients = dict(self._clients)
        for client, thread in clients.items():
            with suppress(OSError):
                client.shutdown(socket.SHUT_RD)
            thread.join()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._socket.accept()
            except OSError as error:
                if not self._closing.is_set():  # too many open files, for instance: it passes
                    log.error("%s: a client cannot be accepted: %s", self._path.name, error.strerror)
                    self._closing.wait(_PAUSE)
                continue
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)  # one that does not read is dropped
            thread = threading.Thread(target=self._serve, args=(client,), name=self._thread.name, daemon=True)
            with self._lock:
                self._clients[client] = thread
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        decoder = framing.Decoder(admin.MAX_BODY)
        try:
            while data := client.recv(_CHUNK):
                for frame in decoder.feed(data):
                    if self._closing.is_set():
                        return
                    client.sendall(_answer(frame, self._perform))
        except (ProtocolError, OSError) as error:
            log.info("%s: a client was dropped: %s", self._path.name, error)
        finally:
            with self._lock:
                self._clients.pop(client)
            client.close()


class PortLink:
    """A virtio-serial port: one client at a time, whose bytes may be cut off when it leaves.

    Requests are performed by workers: one that takes long (a stuck vTPM) must not hold up the next client's. The end
    point belongs to the loop's thread alone; workers hand it their answers.
    """

    def __init__(self, where: str, perform: Perform) -> None:
        self._where = where
        self._perform = perform
        self._endpoint = address.serve(address.parse(where))
        self._closing = threading.Event()
        self._answers: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()  # for which visit; what
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._workers = ThreadPoolExecutor(_WORKERS, f"request {where}")
        self._thread = threading.Thread(target=self._run, name=f"link {where}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still serves; not when the port was taken away."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop serving; a request that is being performed is finished first, and answered."""
        self._closing.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        with self._endpoint as endpoint:
            try:
                self._loop(endpoint)
            finally:
                self._workers.shutdown(cancel_futures=True)
            endpoint.update()
            self._send_answers(endpoint)

    def _loop(self, endpoint: Endpoint) -> None:
        decoder = framing.Decoder(admin.MAX_BODY, resync=True)
        epoch, fed = endpoint.epoch, 0.0
        poller = select.poll()
        poller.register(endpoint.fileno(), select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while not self._closing.is_set():
            poller.poll(1000 * (_EXPIRE if decoder.pending else _TICK))
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            if endpoint.update() is State.CLOSED:
                log.error("%s is closed for good", self._where)
                return
            if endpoint.epoch != epoch:
                epoch = endpoint.epoch
                decoder.reset()
            self._send_answers(endpoint)
            now = time.monotonic()
            if data := endpoint.read(_CHUNK):
                fed = now
            for frame in decoder.feed(data) if data else decoder.expire() if now - fed >= _EXPIRE else []:
                self._workers.submit(self._serve, epoch, frame)

    def _serve(self, visit: int, frame: framing.Frame) -> None:
        self._answers.put((visit, _answer(frame, self._perform)))
        os.eventfd_write(self._wake, 1)

    def _send_answers(self, endpoint: Endpoint) -> None:
        """What a client that has left, or does not read, was to be told is dropped."""
        reads = True
        with suppress(queue.Empty):
            while True:
                visit, answer = self._answers.get_nowait()
                if reads and visit == endpoint.epoch:
                    reads = _send(endpoint, answer)


def _send(endpoint: Endpoint, data: bytes) -> bool:
    """Whether the client took it."""
    try:
        endpoint.send(data)
    except UnreachableError:
        log.info("a client of a port left before its reply")
        return False
    return True


def _answer(frame: framing.Frame, perform: Perform) -> bytes:
    """The reply's bytes; every VtpmManagerError becomes an error reply."""
    try:
        request = admin.from_frame(frame)
        if not isinstance(request, admin.Request | admin.SignedRequest):
            raise ProtocolError("only requests travel to the manager")
        reply = admin.Reply(request.id, perform(request))
    except VtpmManagerError as error:
        reply = admin.Reply(frame.seq, error=error)
    return framing.encode(admin.to_frame(reply))


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if path.is_socket():
            path.unlink()  # the state directory's lock is held: nobody else serves here
        old = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise StoreError(f"cannot listen at {path}: {error.strerror}; is the path shorter than 108 bytes?") from error
    return listener
