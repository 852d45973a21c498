"""A relay on loopback that holds each piece back for half a round-trip time: what a network between hosts does."""

from __future__ import annotations

import queue
import socket
import threading
import time
from contextlib import suppress


class Delay:
    """``address`` leads to ``target`` ("host:port"). ``rtt``: milliseconds; with 0 there is no relay."""

    def __init__(self, target: str, rtt: float) -> None:
        self.address = target
        self._half = rtt / 2000
        self._socket: socket.socket | None = None
        if rtt > 0:
            host, port = target.rsplit(":", 1)
            self._target = (host, int(port))
            self._socket = socket.create_server(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
            threading.Thread(target=self._accept, args=(self._socket,), daemon=True).start()

    def close(self) -> None:
        """No new connections."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                time.sleep(2 * self._half)  # of the connection itself
                far = socket.create_connection(self._target)
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        """One connection. Each direction ends by itself: whoever has said all may still be told something."""
        writers = []
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pieces: queue.Queue[tuple[float, bytes]] = queue.Queue()
            threading.Thread(target=self._read, args=(one, pieces), daemon=True).start()
            writers.append(threading.Thread(target=self._write, args=(other, pieces), daemon=True))
            writers[-1].start()
        for writer in writers:
            writer.join()
        near.close()
        far.close()

    def _read(self, one: socket.socket, pieces: queue.Queue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            try:
                data = one.recv(65536)
            except OSError:
                data = b""
            pieces.put((time.monotonic() + self._half, data))

    def _write(self, other: socket.socket, pieces: queue.Queue[tuple[float, bytes]]) -> None:
        with suppress(OSError):
            while True:
                due, data = pieces.get()
                time.sleep(max(due - time.monotonic(), 0))
                if not data:
                    return other.shutdown(socket.SHUT_WR)
                other.sendall(data)
        with suppress(OSError):  # it has gone: nobody waits for the rest
            other.shutdown(socket.SHUT_RDWR)
