"""image/host/pair: the server of one ivshmem pair, spoken to as QEMU speaks to it (docs/specs/ivshmem-spec)."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import stat
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pytest

from image.host.pair import VECTORS, PairServer
from manager_vm.errors import HostError
from manager_vm.wire.channel import RING_MEMORY

_GREETING = 3 + 2 * VECTORS  # version, own id, memory, both peers' vectors
_RING, _ARRIVAL = range(VECTORS)  # vector 0: the ring changed; vector 1: the other VM came or left
_PATIENCE = 5.0  # seconds for what has to come


class Peer:
    """One QEMU: connects, takes what every QEMU is told, keeps the descriptors until ``close``."""

    def __init__(self, server: PairServer) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_PATIENCE)
        self._socket.connect(str(server.path))
        self.fds: list[int] = []
        self.told = [self._receive() for _ in range(_GREETING)]
        (self.version, _), (self.id, _), (_, self.memory) = self.told[:3]
        self.events = {peer: [fd for number, fd in self.told[3:] if number == peer] for peer in (0, 1)}

    def _receive(self) -> tuple[int, int | None]:
        data, fds, _, _ = socket.recv_fds(self._socket, 8, 2)
        self.fds += fds
        assert len(data) == 8 and len(fds) <= 1
        return struct.unpack("<q", data)[0], fds[0] if fds else None

    def mapped(self) -> mmap.mmap:
        """The shared memory."""
        return mmap.mmap(self._memory(), RING_MEMORY)

    def _memory(self) -> int:
        assert self.memory is not None
        return self.memory

    def ring(self, peer: int, vector: int) -> None:
        """What a write to the doorbell register does."""
        os.eventfd_write(self._event(peer, vector), 1)

    def interrupted(self, vector: int, timeout: float = _PATIENCE) -> bool:
        """Whether the own ``vector`` was signalled; takes the signal."""
        event = self._event(self.id, vector)
        if not select.select([event], [], [], timeout)[0]:
            return False
        os.eventfd_read(event)
        return True

    def _event(self, peer: int, vector: int) -> int:
        event = self.events[peer][vector]
        assert event is not None
        return event

    def dropped(self) -> bool:
        """Whether the server has closed the connection without a further word."""
        return self._socket.recv(8) == b""

    def close(self) -> None:
        """The VM ends."""
        self._socket.close()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path; the servers leave nothing in it."""
    with tempfile.TemporaryDirectory(prefix="vt") as name:
        yield Path(name)
        assert list(Path(name).iterdir()) == []


@pytest.fixture
def server(directory: Path) -> Iterator[PairServer]:
    """A server without peers."""
    served = PairServer(directory / "web.pair")
    yield served
    served.close()


Come = Callable[[], Peer]


@pytest.fixture
def come(server: PairServer) -> Iterator[Come]:
    """Makes one more peer of ``server``."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Peer(server))


@pytest.fixture
def two(come: Come) -> tuple[Peer, Peer]:
    """Both peers, which have seen each other come."""
    first, second = come(), come()
    assert first.interrupted(_ARRIVAL)
    second.interrupted(_ARRIVAL, 0)  # the first one's arrival, when nobody was there
    return first, second


def quiet(*peers: Peer) -> bool:
    """Whether none of them has an interrupt."""
    return not any(peer.interrupted(vector, 0) for peer in peers for vector in range(VECTORS))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_peer_is_told_version_id_memory_and_then_the_vectors_of_both(come: Come) -> None:
    for own in (0, 1):
        peer = come()
        assert [number for number, _ in peer.told] == [0, own, -1, *[1 - own] * VECTORS, *[own] * VECTORS]
        assert [fd is None for _, fd in peer.told] == [True, True, *[False] * (1 + 2 * VECTORS)]
        assert (peer.version, peer.id) == (0, own)


def test_the_memory_is_empty_has_its_size_and_can_neither_shrink_nor_grow(come: Come) -> None:
    peer = come()
    assert peer.memory is not None
    assert peer.mapped()[:] == bytes(RING_MEMORY)
    for size in (0, RING_MEMORY - 4096, RING_MEMORY + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(peer.memory, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(peer.memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert os.fstat(peer.memory).st_size == RING_MEMORY


def test_two_peers_share_the_memory(two: tuple[Peer, Peer]) -> None:
    with two[0].mapped() as here, two[1].mapped() as there:
        here[12345:12350] = b"hello"
        assert there[12345:12350] == b"hello"


@pytest.mark.parametrize("vector", range(VECTORS))
def test_each_peer_rings_the_other_on_the_vector_it_means_and_nobody_else(two: tuple[Peer, Peer], vector: int) -> None:
    for sender, receiver in (two, reversed(two)):
        sender.ring(receiver.id, vector)
        assert receiver.interrupted(vector, 0)
        assert quiet(*two)


def test_an_arrival_interrupts_the_other_once(come: Come) -> None:
    first = come()
    assert quiet(first)
    come()
    assert first.interrupted(_ARRIVAL)
    assert quiet(first)


def test_a_third_peer_is_turned_away_and_the_two_do_not_notice(server: PairServer, two: tuple[Peer, Peer]) -> None:
    first, second = two
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as third:
            third.settimeout(_PATIENCE)
            third.connect(str(server.path))
            assert socket.recv_fds(third, 8, 1)[:2] == (b"", [])
    assert quiet(first, second)
    second.ring(first.id, _RING)
    assert first.interrupted(_RING, 0)


@pytest.mark.parametrize("leaving", [0, 1])
def test_a_peer_that_leaves_interrupts_the_other_and_frees_its_place(
    come: Come, two: tuple[Peer, Peer], leaving: int
) -> None:
    stays, goes = two[1 - leaving], two[leaving]
    goes.close()
    assert stays.interrupted(_ARRIVAL)
    assert quiet(stays)
    assert come().id == leaving
    assert stays.interrupted(_ARRIVAL)
    assert quiet(stays)


def test_a_peer_that_comes_back_finds_the_same_memory_and_the_same_events(come: Come, two: tuple[Peer, Peer]) -> None:
    first, second = two
    second.mapped()[0:4] = b"left"
    second.close()
    assert first.interrupted(_ARRIVAL)
    second = come()
    assert first.interrupted(_ARRIVAL)
    assert second.mapped()[0:4] == b"left"
    first.ring(second.id, _RING)  # with what it was told about the visit before
    assert second.interrupted(_RING, 0)
    second.ring(first.id, _RING)
    assert first.interrupted(_RING, 0)


def test_two_pairs_have_nothing_in_common(directory: Path, server: PairServer, come: Come) -> None:
    other = PairServer(directory / "db.pair")
    try:
        mine = come()
        with Peer(other) as theirs:
            assert (mine.id, theirs.id) == (0, 0)
            mine.mapped()[0:4] = b"mine"
            assert theirs.mapped()[0:4] == bytes(4)
            mine.ring(0, _RING)
            assert not theirs.interrupted(_RING, 0)
    finally:
        other.close()


def test_closing_ends_the_peers_and_leaves_no_socket_no_descriptor_and_no_thread(directory: Path) -> None:
    before = open_files(), threading.active_count()
    server = PairServer(directory / "web.pair")
    first, second = Peer(server), Peer(server)
    server.close()
    assert first.dropped() and second.dropped()
    first.close()
    second.close()
    server.close()
    assert (open_files(), threading.active_count()) == before
    assert not server.path.exists()


def test_visits_leave_no_descriptor(server: PairServer, come: Come) -> None:
    first = come()
    with Peer(server):
        assert first.interrupted(_ARRIVAL)
    assert first.interrupted(_ARRIVAL)
    before = open_files()
    for _ in range(20):
        with Peer(server):
            assert first.interrupted(_ARRIVAL)
        assert first.interrupted(_ARRIVAL)
    assert open_files() == before


def test_the_socket_is_for_its_owner_only_and_takes_the_place_of_a_left_one(directory: Path) -> None:
    path = directory / "web.pair"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    server = PairServer(path)
    try:
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with Peer(server) as peer:
            assert peer.id == 0
    finally:
        server.close()


@pytest.mark.parametrize("name", ["x" * 120, "x" * 300, "none/web.pair"])
def test_a_path_that_cannot_be_is_an_error_of_the_host_that_names_it(directory: Path, name: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match=r"cannot listen at .*; is the directory's path short enough\?") as refused:
        PairServer(directory / name)
    assert str(directory / name) in str(refused.value)
    assert len(os.listdir("/proc/self/fd")) == before
