"""image/host/tunnel with real sockets and files: what comes out is what went in, or the stream ends as failed."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from image.host import tunnel, tunnel_stream
from image.host.tunnel import Entrance, Exit, open_file, seal_file
from image.host.unix import listen
from manager_vm.crypto import Key
from manager_vm.errors import HostError, IntegrityError
from manager_vm.protocol.tunnel import RECORD, Suite
from tests.integration.conftest import short_directory
from tests.integration.harness import until

KEY = Key(bytes(range(32)))
DATA = random.Random(1).randbytes(5_000_000)
BACK = random.Random(2).randbytes(3_000_000)
LOCAL = ("127.0.0.1", 0)
LATE = 4_000_000  # an offset late in the stream of DATA
# (whether they are the source's, offset in that direction, bytes) -> what goes on, None: cut here
Between = Callable[[bool, int, bytes], bytes | None]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    yield
    assert set(threading.enumerate()) - threads == set()
    assert open_descriptors() - descriptors == set()


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


def open_descriptors() -> set[str]:
    """What this process has open; sockets have a number that is never used again."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return found


class Middle:
    """Somebody on the way to ``target``. ``said``: what the source said so far, before it was changed."""

    def __init__(self, target: tuple[str, int], between: Between) -> None:
        self._target, self._between = target, between
        self._listener = socket.create_server(LOCAL)
        self.address: tuple[str, int] = self._listener.getsockname()
        self.said = b""
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Middle:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._cut()
        self._thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def _cut(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        with suppress(OSError):
            self._sockets.append(self._listener.accept()[0])
            self._sockets.append(socket.create_connection(self._target))
            near, far = self._sockets
            back = threading.Thread(target=self._pump, args=(False, far, near))
            back.start()
            self._pump(True, near, far)
            back.join()

    def _pump(self, is_source: bool, one: socket.socket, other: socket.socket) -> None:
        offset = 0
        with suppress(OSError):
            while data := one.recv(65536):
                if is_source:
                    self.said += data
                changed = self._between(is_source, offset, data)
                if changed is None:
                    return self._cut()
                other.sendall(changed)
                offset += len(data)
            other.shutdown(socket.SHUT_WR)


def honest(_source: bool, _offset: int, data: bytes) -> bytes:
    """Changes nothing."""
    return data


def flip(direction: bool, at: int) -> Between:
    """Changes one bit of the byte at this offset."""

    def between(is_source: bool, offset: int, data: bytes) -> bytes:
        if is_source is direction and offset <= at < offset + len(data):
            data = data[: at - offset] + bytes([data[at - offset] ^ 1]) + data[at - offset + 1 :]
        return data

    return between


def cut(direction: bool, at: int) -> Between:
    """Ends the connection before the byte at this offset."""
    return lambda is_source, offset, data: None if is_source is direction and offset + len(data) > at else data


@dataclass(frozen=True, slots=True)
class Ends:
    """A tunnel with a local socket at each end."""

    near: socket.socket
    far: socket.socket
    entrance: Entrance
    exit: Exit
    middle: Middle

    def finished(self) -> bool:
        """Whether both ends say that all went well."""
        until(lambda: self.exit.finished or self.exit.failure)
        return self.entrance.wait(10) and self.entrance.finished and self.exit.finished and not self.failures()

    def failures(self) -> str:
        return self.entrance.failure + self.exit.failure


def dial(path: Path) -> socket.socket:
    near = socket.socket(socket.AF_UNIX)
    near.settimeout(20)
    near.connect(str(path))
    return near


@contextmanager
def tunnelled(directory: Path, between: Between = honest, suite: Suite = Suite.AES, limit: int = 0) -> Iterator[Ends]:
    """One stream, "ram", with somebody in the middle."""
    with ExitStack() as stack:
        receiver = stack.enter_context(listen(directory / "far", 1))
        receiver.settimeout(20)
        out = stack.enter_context(Exit(LOCAL, KEY, suite, {"ram": directory / "far"}))
        middle = stack.enter_context(Middle(out.address, between))
        entrance = stack.enter_context(Entrance(directory / "near", middle.address, KEY, suite, "ram", limit))
        near = stack.enter_context(dial(entrance.path))
        far = stack.enter_context(receiver.accept()[0])
        far.settimeout(20)
        yield Ends(near, far, entrance, out, middle)


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[Future[object]]:
    """Runs beside the block, and has ended after it."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def say(end: socket.socket, data: bytes) -> bool:
    """Whether all of it, and that it is all, could be said."""
    try:
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    return True


def say_on(end: socket.socket) -> None:
    """Says data until nobody takes it any more; buffers on the way can hold all of DATA."""
    with suppress(ConnectionError):
        while True:
            end.sendall(DATA)


def hear(end: socket.socket) -> bytes:
    """Everything up to the end of the connection, in whatever way it ends; a silence is none."""
    heard = bytearray()
    with suppress(ConnectionError):
        while data := end.recv(1 << 20):
            heard += data
    return bytes(heard)


def nobody_calls(receiver: socket.socket) -> bool:
    receiver.setblocking(False)
    with suppress(BlockingIOError):
        receiver.accept()[0].close()
        return False
    return True


@pytest.mark.parametrize("suite", Suite)
def test_data_goes_both_ways_at_once_and_each_end_sees_the_other_finish(directory: Path, suite: Suite) -> None:
    with tunnelled(directory, suite=suite) as ends:
        with meanwhile(lambda: say(ends.near, DATA)), meanwhile(lambda: say(ends.far, BACK)):
            with meanwhile(lambda: hear(ends.near)) as back:
                assert hear(ends.far) == DATA
            assert back.result() == BACK
        assert ends.finished()
        assert ends.entrance.sent == ends.exit.received > len(DATA)
        assert ends.entrance.received == ends.exit.sent > len(BACK)
        assert (DATA[:64] in ends.middle.said) is (suite is Suite.NONE)


def test_an_end_that_has_finished_still_hears_the_other(directory: Path) -> None:
    with tunnelled(directory) as ends:
        with meanwhile(lambda: say(ends.near, DATA)):
            assert hear(ends.far) == DATA
        assert not ends.entrance.finished and not ends.exit.finished
        with meanwhile(lambda: say(ends.far, BACK)):
            assert hear(ends.near) == BACK
        assert ends.finished()


def test_a_few_bytes_go_to_and_fro_at_once(directory: Path) -> None:
    with tunnelled(directory) as ends:
        for number in range(100):
            ends.near.sendall(bytes([number]))
            assert ends.far.recv(10) == bytes([number])
            ends.far.sendall(bytes([number + 1]))
            assert ends.near.recv(10) == bytes([number + 1])


def test_the_entrance_takes_one_local_connection(directory: Path) -> None:
    with tunnelled(directory), pytest.raises(OSError):
        dial(directory / "near")


@pytest.mark.parametrize("suite", [Suite.AES, Suite.CHACHA])
def test_one_changed_bit_late_in_the_stream_ends_both_ends_and_is_never_delivered(
    directory: Path, suite: Suite
) -> None:
    with tunnelled(directory, flip(True, LATE), suite) as ends:
        with meanwhile(lambda: say(ends.near, DATA)):
            got = hear(ends.far)
            assert ends.exit.failure.startswith("tampered: ram: ")
            assert hear(ends.near) == b""
        assert LATE - 2 * RECORD < len(got) < LATE and DATA.startswith(got)
        assert ends.entrance.failure.startswith("lost: ram: ")
        assert not ends.finished()


def test_one_changed_bit_on_the_way_back_is_the_entrances_to_find(directory: Path) -> None:
    with tunnelled(directory, flip(False, 2_000_000)) as ends:
        with meanwhile(lambda: say(ends.far, BACK)):
            got = hear(ends.near)
            assert ends.entrance.failure.startswith("tampered: ram: ")
            assert hear(ends.far) == b""
        assert len(got) < 2_000_000 and BACK.startswith(got)
        assert ends.exit.failure.startswith("lost: ram: ")


@pytest.mark.parametrize("at", [1_000, LATE])
def test_a_connection_that_is_cut_ends_both_ends_as_lost(directory: Path, at: int) -> None:
    with tunnelled(directory, cut(True, at)) as ends:
        with meanwhile(lambda: say(ends.near, DATA)):
            got = hear(ends.far)
            assert hear(ends.near) == b""
        assert len(got) < at and DATA.startswith(got)
        assert ends.exit.failure.startswith("lost: ram: ") and ends.entrance.failure.startswith("lost: ram: ")


def test_a_connection_that_is_cut_just_before_the_end_mark_is_not_finished(directory: Path) -> None:
    hello, record, end = 32 + 4 + 3 + 16, 4 + 1 + 16, 4 + 16
    with tunnelled(directory, cut(True, hello + record + end - 1)) as ends:
        ends.near.sendall(b"x")
        assert ends.far.recv(10) == b"x"
        ends.near.shutdown(socket.SHUT_WR)
        assert hear(ends.far) == b""
        assert ends.exit.failure.startswith("lost: ram: ")
        assert not ends.finished()


def test_a_receiver_that_goes_away_ends_the_sender(directory: Path) -> None:
    with tunnelled(directory) as ends:
        with meanwhile(lambda: say_on(ends.near)) as ended:
            ends.far.recv(1000)
            ends.far.close()
            assert hear(ends.near) == b""
        ended.result()
        assert ends.exit.failure.startswith("lost: ") and ends.entrance.failure.startswith("lost: ")


@pytest.mark.parametrize("which", ["entrance", "exit"])
def test_closing_one_end_ends_the_stream_at_once_and_can_be_done_twice(directory: Path, which: str) -> None:
    with tunnelled(directory) as ends:
        closed, other = (ends.entrance, ends.exit) if which == "entrance" else (ends.exit, ends.entrance)
        ends.near.sendall(b"x")
        assert ends.far.recv(10) == b"x"
        closed.close()
        closed.close()
        assert hear(ends.near) == hear(ends.far) == b""
        assert closed.failure == "" and not closed.finished
        assert until(lambda: other.failure).startswith("lost: ")


def test_ends_that_nobody_uses_can_be_closed(directory: Path) -> None:
    with (
        Exit(LOCAL, KEY, Suite.AES, {}) as out,
        Entrance(directory / "near", out.address, KEY, Suite.AES, "ram") as one,
    ):
        assert one.path.exists() and not one.wait(0)
    assert not one.path.exists() and one.failure == out.failure == ""
    with pytest.raises(OSError):
        dial(one.path)


def test_the_limit_is_kept(directory: Path) -> None:
    limit, data = 2_000_000, DATA[:1_000_000]
    start = time.monotonic()
    with tunnelled(directory, limit=limit) as ends:
        with meanwhile(lambda: say(ends.near, data)):
            assert hear(ends.far) == data
        assert time.monotonic() - start >= (len(data) - limit * tunnel_stream._BURST) / limit


def test_a_limit_does_not_delay_the_close(directory: Path) -> None:
    limit = 500  # the name and one byte fit the burst; the next piece has to wait for eight seconds
    with tunnelled(directory, limit=limit) as ends:
        ends.near.sendall(b"x")
        assert ends.far.recv(10) == b"x"
        with meanwhile(lambda: say(ends.near, DATA)):
            start = time.monotonic()
            ends.entrance.close()
            assert time.monotonic() - start < 4096 / limit / 2


@contextmanager
def lone_exit(directory: Path) -> Iterator[tuple[Exit, socket.socket]]:
    """An Exit and the listener of the receiver of its only stream, "ram"."""
    with listen(directory / "far", 1) as receiver, Exit(LOCAL, KEY, Suite.AES, {"ram": directory / "far"}) as out:
        yield out, receiver


def serves(directory: Path, out: Exit, receiver: socket.socket) -> bool:
    """Whether whoever has the key still gets through."""
    receiver.settimeout(20)
    with Entrance(directory / "owner", out.address, KEY, Suite.AES, "ram") as entrance, dial(entrance.path) as near:
        assert say(near, b"data")
        with receiver.accept()[0] as far:
            return hear(far) == b"data"


@pytest.mark.parametrize(
    "said",
    [b"", bytes(31), bytes(32), bytes(32) + b"\0\0\0\x13" + bytes(19), bytes(32) + b"\xff" * 40],
    ids=["nothing", "half a nonce", "a nonce", "a forged name", "a length too large"],
)
def test_a_stranger_reaches_no_local_socket_and_harms_nobody(
    directory: Path, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lone_exit(directory) as (out, receiver):
        with monkeypatch.context() as patch, socket.create_connection(out.address, 20) as stranger:
            patch.setattr(tunnel, "_PATIENCE", 0.3)
            stranger.sendall(said)
            assert len(hear(stranger)) <= 32
            until(lambda: out.strangers == 1)
        assert nobody_calls(receiver)
        assert out.failure == ""
        assert serves(directory, out, receiver)


def test_only_so_many_strangers_are_listened_to_at_a_time(directory: Path) -> None:
    with lone_exit(directory) as (out, _), ExitStack() as stack:
        for _ in range(tunnel._STRANGERS):
            silent = stack.enter_context(socket.create_connection(out.address, 20))
            assert len(silent.recv(32)) == 32
        with socket.create_connection(out.address, 20) as one_more:
            assert hear(one_more) == b""


@pytest.mark.parametrize(
    ("key", "suite", "stream"),
    [
        (Key(bytes(32)), Suite.AES, "ram"),
        (KEY, Suite.CHACHA, "ram"),
        (KEY, Suite.NONE, "ram"),
        (KEY, Suite.AES, "other"),
    ],
)
def test_an_entrance_with_another_key_suite_or_stream_is_turned_away(
    directory: Path, key: Key, suite: Suite, stream: str
) -> None:
    with lone_exit(directory) as (out, receiver):
        with Entrance(directory / "near", out.address, key, suite, stream) as entrance, dial(entrance.path) as near:
            assert hear(near) == b""
            assert entrance.failure != "" and not entrance.finished
        until(lambda: out.strangers == 1)
        assert nobody_calls(receiver) and out.failure == ""
        assert serves(directory, out, receiver)


def test_a_second_connection_for_a_stream_is_turned_away_and_the_first_goes_on(directory: Path) -> None:
    with tunnelled(directory) as ends:
        with Entrance(directory / "two", ends.exit.address, KEY, Suite.AES, "ram") as second, dial(second.path) as near:
            assert hear(near) == b""
            assert second.failure.startswith("lost: ")
        ends.near.sendall(b"still here")
        assert ends.far.recv(100) == b"still here"
        assert ends.failures() == ""


@pytest.mark.parametrize("same", [True, False])
def test_a_recorded_connection_opens_nothing_when_it_is_replayed(directory: Path, same: bool) -> None:
    with tunnelled(directory) as ends, ExitStack() as stack:
        with meanwhile(lambda: say(ends.near, DATA)), meanwhile(lambda: say(ends.far, b"")):
            assert hear(ends.far) == DATA
        assert ends.finished()
        (directory / "again").mkdir()
        other, receiver = stack.enter_context(lone_exit(directory / "again"))
        target = ends.exit if same else other
        with socket.create_connection(target.address, 20) as replay:
            say(replay, ends.middle.said)
            hear(replay)
            until(lambda: target.strangers == 1)
        assert nobody_calls(receiver)
        assert target.failure == ""


def test_a_stream_without_a_receiver_is_lost_at_both_ends(directory: Path) -> None:
    with (
        Exit(LOCAL, KEY, Suite.AES, {"ram": directory / "nobody"}) as out,
        Entrance(directory / "near", out.address, KEY, Suite.AES, "ram") as entrance,
        dial(entrance.path) as near,
    ):
        assert hear(near) == b""
        assert out.failure.startswith("lost: ram: nobody takes the stream at ")
        assert entrance.failure.startswith("lost: ram: ")


def test_an_entrance_that_reaches_nobody_says_so(directory: Path) -> None:
    with socket.create_server(LOCAL) as unused:
        address = unused.getsockname()
    with Entrance(directory / "near", address, KEY, Suite.AES, "ram") as entrance, dial(entrance.path) as near:
        assert hear(near) == b""
        assert entrance.failure.startswith("lost: ram: ")


def test_an_exit_whose_port_is_taken_says_so() -> None:
    with socket.create_server(LOCAL) as taken, pytest.raises(HostError, match="cannot listen"):
        Exit(taken.getsockname(), KEY, Suite.AES, {})


def test_several_streams_go_through_one_exit(directory: Path) -> None:
    names = ("ram", "disk", "file")
    with ExitStack() as stack:
        listeners = {name: stack.enter_context(listen(directory / f"{name}.far", 1)) for name in names}
        out = stack.enter_context(Exit(LOCAL, KEY, Suite.AES, {name: directory / f"{name}.far" for name in names}))
        for name in reversed(names):
            entrance = stack.enter_context(Entrance(directory / name, out.address, KEY, Suite.AES, name))
            near = stack.enter_context(dial(entrance.path))
            assert not out.finished
            say(near, name.encode())
            listeners[name].settimeout(20)
            far = stack.enter_context(listeners[name].accept()[0])
            assert hear(far) == name.encode()
            say(far, b"")
            assert entrance.wait(20) and entrance.finished
        until(lambda: out.finished)


def sealed(tmp_path: Path, data: bytes, suite: Suite = Suite.AES) -> bytes:
    """``data`` as a sealed file's bytes."""
    (tmp_path / "plain").write_bytes(data)
    with open(tmp_path / "plain", "rb") as source, open(tmp_path / "sealed", "wb") as target:
        assert seal_file(source.fileno(), target.fileno(), KEY, suite) == len(data)
    return (tmp_path / "sealed").read_bytes()


def opened(tmp_path: Path, data: bytes, suite: Suite = Suite.AES, key: Key = KEY) -> bytes:
    """What a sealed file opens to."""
    (tmp_path / "sealed").write_bytes(data)
    with open(tmp_path / "sealed", "rb") as source, open(tmp_path / "opened", "wb") as target:
        size = open_file(source.fileno(), target.fileno(), key, suite)
    assert (tmp_path / "opened").stat().st_size == size
    return (tmp_path / "opened").read_bytes()


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("size", [0, 1, RECORD, 3 * RECORD + 1])
def test_a_file_opens_to_what_was_sealed(tmp_path: Path, suite: Suite, size: int) -> None:
    assert opened(tmp_path, sealed(tmp_path, DATA[:size], suite), suite) == DATA[:size]


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path: Path) -> None:
    short, long = sealed(tmp_path, b"data"), sealed(tmp_path, DATA[: 2 * RECORD])
    for data in [short[:size] for size in range(len(short))] + [long[:-20], long[: 32 + RECORD + 20]]:
        with pytest.raises(IntegrityError):
            opened(tmp_path, data)


def test_a_file_that_was_changed_anywhere_is_refused(tmp_path: Path) -> None:
    data = sealed(tmp_path, b"data")
    for at in range(len(data)):
        with pytest.raises(IntegrityError):
            opened(tmp_path, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(IntegrityError):
        opened(tmp_path, data + b"\0")


def test_only_records_before_the_first_bad_one_are_written(tmp_path: Path) -> None:
    data = bytearray(sealed(tmp_path, DATA[: 4 * RECORD]))
    data[32 + 2 * (RECORD + 20) + 100] ^= 1
    with pytest.raises(IntegrityError):
        opened(tmp_path, bytes(data))
    assert DATA.startswith((tmp_path / "opened").read_bytes())
    assert (tmp_path / "opened").stat().st_size <= 2 * RECORD


def test_a_file_opens_with_its_own_key_and_suite_alone(tmp_path: Path) -> None:
    data = sealed(tmp_path, b"data")
    with pytest.raises(IntegrityError):
        opened(tmp_path, data, key=Key(bytes(32)))
    with pytest.raises(IntegrityError):
        opened(tmp_path, data, Suite.CHACHA)


def test_the_same_file_is_never_sealed_to_the_same_bytes(tmp_path: Path) -> None:
    one, two = sealed(tmp_path, bytes(1000)), sealed(tmp_path, bytes(1000))
    assert one[36:] != two[36:]
