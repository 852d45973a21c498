"""vchan/ring over plain memory: the two byte streams, and words that a corrupt peer wrote."""

from __future__ import annotations

import mmap
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.errors import RemoteProtocolError
from manager_vm.vchan.ring import LAYOUT, MAGIC, MEMORY_SIZE, RING_SIZE, RingServer
from tests.pairs import RingPair

C2S_DATA, S2C_DATA = 32 << 10, 64 << 10


def pattern(count: int, start: int = 0) -> bytes:
    """Bytes that do not repeat with the ring's size."""
    return bytes((start + i) % 251 for i in range(count))


# -- streams --------------------------------------------------------------------------------------------------


def test_the_words_and_data_stand_where_the_specification_says() -> None:
    line = RingPair()
    assert (line.get("magic"), line.get("layout"), line.get("server live")) == (0x7074766D, 1, 1)
    assert (MAGIC, LAYOUT, MEMORY_SIZE, RING_SIZE) == (0x7074766D, 1, 128 << 10, 32 << 10)
    assert line.get("client nonce") == line.get("server ack") != 0
    line.client.write(b"to the server")
    line.server.write(b"to the client!")
    assert line.memory[C2S_DATA : C2S_DATA + 13] == b"to the server"
    assert line.memory[S2C_DATA : S2C_DATA + 14] == b"to the client!"
    assert (line.get("c2s producer"), line.get("s2c producer")) == (13, 14)
    assert (line.server.read(5), line.client.read(99)) == (b"to th", b"to the client!")
    assert (line.get("c2s consumer"), line.get("s2c consumer")) == (5, 14)


def test_it_works_over_mapped_memory_and_lets_go_of_it() -> None:
    memory = mmap.mmap(-1, MEMORY_SIZE)
    line = RingPair(memory)
    line.client.write(b"x" * 10)
    assert line.server.read(20) == b"x" * 10
    with pytest.raises(BufferError):
        memory.close()
    line.server.release()
    line.client.release()
    memory.close()


def test_memory_that_is_too_small_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="instead of 131072"):
        RingServer(memoryview(bytearray(MEMORY_SIZE - 1)), lambda: None)


@pytest.mark.parametrize("chunk", [1000, 4096, RING_SIZE - 1, RING_SIZE])
def test_bytes_wrap_around_the_end(chunk: int) -> None:
    line = RingPair()
    for start in range(0, 3 * RING_SIZE, chunk):
        data = pattern(chunk, start)
        assert line.client.write(data) == chunk
        assert line.server.data_ready() == chunk
        assert line.server.read(chunk) == data
        assert line.server.write(data) == chunk
        assert line.client.read(chunk) == data


def test_a_full_ring_takes_what_fits_and_then_nothing() -> None:
    line = RingPair()
    data = pattern(RING_SIZE + 100)
    assert line.client.write(data) == RING_SIZE
    assert line.client.buffer_space() == 0
    assert line.client.write(b"more") == 0
    assert line.server.read(60) == data[:60]
    assert line.client.buffer_space() == 60
    assert line.client.write(data[RING_SIZE:]) == 60
    assert line.server.read(1 << 20) == data[60 : RING_SIZE + 60]


def test_an_empty_ring_gives_nothing() -> None:
    line = RingPair()
    assert (line.server.read(100), line.server.data_ready()) == (b"", 0)


def test_a_write_notifies_and_so_does_reading_from_a_ring_that_may_have_been_full() -> None:
    line = RingPair()
    server, client = line.kicks
    line.client.write(b"")
    assert line.kicks == [server, client]
    line.client.write(bytes(RING_SIZE))
    assert line.kicks == [server, client + 1]
    line.server.read(100)
    assert line.kicks == [server + 1, client + 1]


@pytest.mark.parametrize("turns", [0, 1])
def test_indices_run_on_past_thirty_two_bits(turns: int) -> None:
    line = RingPair()
    for side in (line.client._out, line.server._in):
        start = 0x100000000 - RING_SIZE // 2 - turns
        setattr(side, "_prod" if side is line.client._out else "_cons", start)
    line.put("c2s producer", start)
    line.put("c2s consumer", start)
    data = pattern(RING_SIZE)
    assert line.client.write(data) == RING_SIZE
    assert line.get("c2s producer") == RING_SIZE // 2 - turns
    assert line.client.buffer_space() == 0
    assert line.server.read(RING_SIZE) == data


@given(st.lists(st.tuples(st.sampled_from(["client", "server"]), st.booleans(), st.integers(0, RING_SIZE + 9))))
def test_each_direction_is_a_bounded_queue_of_bytes(steps: list[tuple[str, bool, int]]) -> None:
    line, counter = RingPair(), 0
    model: dict[str, deque[int]] = {"client": deque(), "server": deque()}
    for who, writes, count in steps:
        side, peer = (line.client, "server") if who == "client" else (line.server, "client")
        if writes:
            data = pattern(count, counter)
            done = side.write(data)
            assert done == min(count, RING_SIZE - len(model[who]))
            model[who].extend(data[:done])
            counter += done
        else:
            got = side.read(count)
            assert len(got) == min(count, len(model[peer]))
            assert got == bytes(model[peer].popleft() for _ in got)
    assert (line.server.data_ready(), line.client.data_ready()) == (len(model["client"]), len(model["server"]))


# -- a corrupt peer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [RING_SIZE + 11, 9, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_producer_index_that_cannot_be_is_an_error_and_nothing_else(value: int) -> None:
    line = RingPair()
    line.client.write(bytes(10))
    line.server.read(10)
    line.put("c2s producer", value)
    before = bytes(line.memory)
    for action in (line.server.data_ready, lambda: line.server.read(100)):
        with pytest.raises(RemoteProtocolError, match="producer index"):
            action()
    assert bytes(line.memory) == before
    line.put("c2s producer", 15)
    assert len(line.server.read(100)) == 5


@pytest.mark.parametrize("value", [11, 0x7FFFFFFF, 0x80000000, 10 - RING_SIZE - 1, 0xFFFF0000])
def test_a_consumer_index_that_cannot_be_is_an_error_and_nothing_else(value: int) -> None:
    line = RingPair()
    line.server.write(bytes(10))
    line.put("s2c consumer", value)
    before = bytes(line.memory)
    for action in (line.server.buffer_space, lambda: line.server.write(b"x")):
        with pytest.raises(RemoteProtocolError, match="consumer index"):
            action()
    assert bytes(line.memory) == before
    line.put("s2c consumer", 10)
    assert line.server.buffer_space() == RING_SIZE


@given(st.integers(0, 2**32 - 1))
def test_whatever_stands_in_an_index_we_read_at_most_a_ring_or_refuse(value: int) -> None:
    line = RingPair()
    line.client.write(bytes(100))
    line.put("c2s producer", value)
    if value <= RING_SIZE:
        assert len(line.server.read(1 << 20)) == value
    else:
        with pytest.raises(RemoteProtocolError):
            line.server.read(1 << 20)


def test_what_the_peer_does_to_the_image_of_our_own_indices_is_without_effect() -> None:
    line = RingPair()
    line.client.write(b"first")
    line.server.read(2)
    line.server.write(b"reply")
    line.put("c2s consumer", 0x1234)
    line.put("s2c producer", 0x4321)
    assert line.server.read(100) == b"rst"
    assert line.server.write(b"!") == 1
    assert (line.get("c2s consumer"), line.get("s2c producer")) == (5, 6)
