"""The bench's relay: it holds data back, and changes nothing else about a connection."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing

from tests.bench.migrate.delay import Delay

RTT = 40.0  # ms


def test_each_direction_ends_by_itself_and_late() -> None:
    """A host that has sent all of a stream hears the other end's answer after that."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(10)

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(10)
                sent = b"".join(iter(lambda: peer.recv(4096), b""))
                peer.sendall(sent[::-1])

        answering = threading.Thread(target=answer)
        answering.start()
        with closing(Delay(f"127.0.0.1:{listener.getsockname()[1]}", RTT)) as delay:
            host, port = delay.address.split(":")
            began = time.monotonic()
            with socket.create_connection((host, int(port)), 10) as near:
                near.sendall(b"abc")
                near.shutdown(socket.SHUT_WR)
                assert b"".join(iter(lambda: near.recv(4096), b"")) == b"cba"
            assert time.monotonic() - began >= RTT / 1000
        answering.join()
