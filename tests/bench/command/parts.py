"""Where the time of (b) goes: processor time by process, and what the pieces of the way cost one by one."""

from __future__ import annotations

import mmap
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from manager_vm.protocol.channel_client import ChannelClient
from manager_vm.protocol.channel_server import ChannelServer
from manager_vm.vchan.ring import MEMORY_SIZE, RingClient, RingServer
from manager_vm.wire import channel, framing, tpm
from manager_vm.wire.channel import Command, Hello, Response, Welcome
from tests.bench.command import workload
from tests.bench.command.host import Lane, running_on
from tests.bench.stats import quantile

_SHARE_COMMANDS = 4000
_REPEATS = 9  # of each piece; the median counts
_PER_REPEAT = 400
_SYNCS = 40
_SESSION = b"0123456789abcdef"
_COMMAND = tpm.get_random(16)
_RESPONSE = tpm.HEADER.pack(tpm.TPM_ST_NO_SESSIONS, 28, 0) + bytes(18)


@dataclass(frozen=True, slots=True)
class Share:
    """Processor time (us) and context switches per command of one process on one path."""

    path: str
    process: str
    microseconds: float
    switches: float


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of (b)'s way, alone in a loop: us each, how many of it a command needs, who does it."""

    name: str
    who: str
    each: float
    times: int


def shares(lane: Lane) -> list[Share]:
    """Who used the processor for GetRandom on this path."""
    pids = {"client": os.getpid(), **lane.pids}
    execute, command = lane.target.execute, workload.work({workload.GET_RANDOM: 1})[0][2][0]
    with running_on(lane.cpus):
        before = {who: _used(pid) for who, pid in pids.items()}
        for _ in range(_SHARE_COMMANDS):
            execute(command)
        after = {who: _used(pid) for who, pid in pids.items()}
    return [
        Share(
            lane.path, who, *(round((b - a) / _SHARE_COMMANDS, 2) for a, b in zip(before[who], after[who], strict=True))
        )
        for who in pids
    ]


def pieces(cpus: frozenset[int], scratch: Path) -> list[Piece]:
    """Each piece of the way, hot: in a loop of its own its code and data are in the caches, on the way they are not."""
    with running_on(cpus):
        return [*_message_pieces(), *_automaton_pieces(), *_carrier_pieces(), *_system_pieces(scratch)]


def sync_time(scratch: Path) -> float:
    """Median us of what follows each NV_Write: fsync of a new state file of 4 kB, and of its directory."""
    samples = []
    for number in range(_SYNCS):
        (scratch / "new").write_bytes(bytes([number]) * 4096)
        (scratch / "new").rename(scratch / "state")
        start = time.perf_counter_ns()
        for path in (scratch / "state", scratch):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.fsync(fd)
            os.close(fd)
        samples.append((time.perf_counter_ns() - start) / 1000)
    return quantile(sorted(samples), 0.5)


def _used(pid: int) -> tuple[float, float]:
    """(microseconds on a processor, context switches) of all threads so far (proc(5), schedstat)."""
    nanoseconds = switches = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        nanoseconds += int((task / "schedstat").read_text().split()[0])
        lines = (task / "status").read_text().splitlines()
        switches += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return nanoseconds / 1000, switches


def _each(action: Callable[[], object]) -> float:
    """Median us of one ``action``."""
    samples = []
    for _ in range(_REPEATS):
        start = time.perf_counter_ns()
        for _ in range(_PER_REPEAT):
            action()
        samples.append((time.perf_counter_ns() - start) / 1000 / _PER_REPEAT)
    return round(quantile(sorted(samples), 0.5), 2)


def _message_pieces() -> list[Piece]:
    frame = channel.to_frame(Command(1, 0, _COMMAND))
    data = framing.encode(frame)
    decoder = framing.Decoder(channel.MAX_BODY)
    encode = _each(lambda: framing.encode(channel.to_frame(Command(1, 0, _COMMAND))))
    decode = _each(lambda: [channel.from_frame(each) for each in decoder.feed(data)])
    return [
        Piece("message to bytes (with CRC)", "client, manager", encode, 2),
        Piece("bytes to message (with CRC)", "client, manager", decode, 2),
    ]


def _automaton_pieces() -> list[Piece]:
    server, client = ChannelServer(), ChannelClient(_SESSION)
    server.receive(Hello(_SESSION))
    client.connected(0.0)
    client.receive(Welcome(_SESSION, 1, False), 0.0)
    numbers = iter(range(1, 1 << 30))
    others = iter(range(1, 1 << 30))

    def serve() -> None:
        server.receive(Command(next(numbers), 0, _COMMAND))
        server.executed(_RESPONSE)

    def ask() -> None:
        client.deadline(0.1)
        client.submit(_COMMAND, 0, 0.1)
        client.receive(Response(next(others), _RESPONSE), 0.1)
        client.tick(0.1)

    return [
        Piece("client's automaton", "client", _each(ask), 1),
        Piece("manager's automaton", "manager", _each(serve), 1),
    ]


def _carrier_pieces() -> list[Piece]:
    memory = memoryview(mmap.mmap(-1, MEMORY_SIZE))
    server = RingServer(memory, lambda: None)
    client = RingClient(memory, lambda: None)
    server.update()
    client.update()
    data = framing.encode(channel.to_frame(Command(1, 0, _COMMAND)))
    ring = _each(lambda: (client.update(), client.write(data), server.update(), server.read(1 << 16)))
    kick = _event()
    return [
        Piece("ring: one write, one read", "client, manager", ring, 2),
        Piece("event: signal, take", "client, manager", kick, 2),
    ]


def _event() -> float:
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def signal_and_take() -> None:
        os.eventfd_write(event, 1)
        os.eventfd_read(event)

    try:
        return _each(signal_and_take)
    finally:
        os.close(event)


def _system_pieces(scratch: Path) -> list[Piece]:
    path = str(scratch / "state")
    Path(path).touch()
    poller = select.poll()
    left, right = socket.socketpair()
    with left, right:
        poller.register(right.fileno(), select.POLLOUT)
        poll = _each(lambda: poller.poll(1000))
        talk = _each(lambda: left.send(_COMMAND) and right.recv(4096))
    return [
        Piece("poll or epoll, ready", "client, manager", poll, 5),
        Piece("socket to swtpm: send, receive", "manager, swtpm", talk, 2),
        Piece("stat of the state file", "manager", _each(lambda: os.stat(path)), 1),
        Piece("thread switch: signal, wait, take", "kernel", _hop(), 2),
    ]


def _hop() -> float:
    """Half a round trip between two threads that wait for each other's event with poll()."""
    events = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2)]
    rounds = _REPEATS * _PER_REPEAT

    def side(own: int, other: int) -> None:
        poller = select.poll()
        poller.register(own, select.POLLIN)
        for _ in range(rounds):
            poller.poll()
            os.eventfd_read(own)
            os.eventfd_write(other, 1)

    threads = [threading.Thread(target=side, args=pair) for pair in (events, events[::-1])]
    for thread in threads:
        thread.start()
    start = time.perf_counter_ns()
    os.eventfd_write(events[0], 1)
    for thread in threads:
        thread.join()
    taken = (time.perf_counter_ns() - start) / 1000
    for event in events:
        os.close(event)
    return round(taken / rounds / 2, 2)
