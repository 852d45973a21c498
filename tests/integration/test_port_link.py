"""server/links: a port, here a pseudo terminal, on which every request is answered however many are under way."""

from __future__ import annotations

import os
import pty
import select
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from manager_vm.errors import BusyError
from manager_vm.server.links import PortLink
from manager_vm.vchan import virtio_serial
from manager_vm.wire import admin, framing
from manager_vm.wire.admin import Reply, Request, SignedRequest


class HostSide:
    """The other end of the port."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._decoder = framing.Decoder(admin.MAX_BODY, resync=True)
        self.replies: dict[int, Reply] = {}

    def ask(self, number: int, verb: str) -> None:
        """One request; its id is ``number``."""
        self.send(framing.encode(admin.to_frame(Request(number, verb))))

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        while data:
            data = data[os.write(self._fd, data) :]

    def collect(self, count: int, timeout: float = 20.0) -> None:
        """Wait until there are ``count`` replies."""
        deadline = time.monotonic() + timeout
        while len(self.replies) < count:
            assert select.select([self._fd], [], [], deadline - time.monotonic())[0], f"{len(self.replies)} replies"
            for frame in self._decoder.feed(os.read(self._fd, 65536)):
                reply = admin.from_frame(frame)
                assert isinstance(reply, Reply)
                self.replies[reply.id] = reply


def perform(request: Request | SignedRequest) -> object:
    """Some requests take long, one fails."""
    assert isinstance(request, Request)
    if request.verb == "slow":
        time.sleep(0.5)
    if request.verb == "fail":
        raise BusyError("not now")
    return request.id


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostSide]:
    """A served port."""
    host, guest = pty.openpty()
    tty.setraw(guest)
    tty.setraw(host)
    (tmp_path / "port").symlink_to(os.ttyname(guest))
    monkeypatch.setattr(virtio_serial, "PORTS", tmp_path)
    link = PortLink("virtio-serial:port", perform)
    yield HostSide(host)
    link.close()
    os.close(host)
    os.close(guest)


def ask_many(port: HostSide, count: int) -> None:
    """As fast as the port takes them."""
    for number in range(1, count + 1):
        port.ask(number, "quick")


def test_every_one_of_many_requests_is_answered(port: HostSide) -> None:
    asker = threading.Thread(target=ask_many, args=(port, 2000))
    asker.start()
    port.collect(2000)
    asker.join()
    assert {number: reply.ok for number, reply in port.replies.items()} == {n: n for n in range(1, 2001)}


def test_a_request_that_takes_long_does_not_hold_up_the_next(port: HostSide) -> None:
    port.ask(1, "slow")
    port.ask(2, "quick")
    port.collect(1)
    assert list(port.replies) == [2]
    port.collect(2)


def test_an_error_is_answered_as_the_class_it_has(port: HostSide) -> None:
    port.ask(1, "fail")
    port.collect(1)
    assert isinstance(port.replies[1].error, BusyError)


def test_half_a_frame_is_given_up_and_what_comes_behind_it_is_answered(port: HostSide) -> None:
    port.send(framing.encode(admin.to_frame(Request(1, "quick")))[:30])
    time.sleep(0.5)
    port.ask(2, "quick")
    port.collect(1)
    assert list(port.replies) == [2]


def test_a_request_under_way_is_answered_before_the_port_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, guest = pty.openpty()
    tty.setraw(guest)
    tty.setraw(host)
    (tmp_path / "port").symlink_to(os.ttyname(guest))
    monkeypatch.setattr(virtio_serial, "PORTS", tmp_path)
    link, side = PortLink("virtio-serial:port", perform), HostSide(host)
    side.ask(1, "slow")
    time.sleep(0.2)
    link.close()
    assert not link.alive
    side.collect(1)
    os.close(host)
    os.close(guest)
