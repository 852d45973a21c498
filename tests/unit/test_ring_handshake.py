"""vchan/ring over plain memory: who comes, who leaves, and what the other side sees of it."""

from __future__ import annotations

import pytest

from manager_vm.vchan.endpoint import State
from manager_vm.vchan.ring import MEMORY_SIZE, RING_SIZE, RingClient, RingServer
from tests.pairs import RingPair


def test_both_sides_wait_until_the_server_has_acknowledged() -> None:
    line = RingPair()
    server = line.new_server()
    client = line.new_client()
    assert (server.state, client.state) == (State.WAITING, State.WAITING)
    assert server.update() is State.OPEN
    assert client.state is State.WAITING
    assert client.update() is State.OPEN
    assert server.arrivals == 1


def test_a_client_may_come_before_the_server() -> None:
    memory = bytearray(MEMORY_SIZE)
    client = RingClient(memoryview(memory), lambda: None)
    assert (client.update(), bytes(memory)) == (State.WAITING, bytes(MEMORY_SIZE))
    server = RingServer(memoryview(memory), lambda: None)
    assert client.update() is State.WAITING
    assert server.update() is State.OPEN
    assert client.update() is State.OPEN


@pytest.mark.parametrize(("word", "value"), [("magic", 1), ("layout", 2), ("server live", 0), ("server live", 2)])
def test_a_client_does_not_ask_where_no_server_of_its_layout_lives(word: str, value: int) -> None:
    line = RingPair()
    line.client.leave()
    line.put(word, value)
    client = line.new_client()
    assert client.update() is State.WAITING
    assert line.get("client nonce") == 0


def test_a_client_that_leaves_makes_room_for_the_next_with_empty_streams() -> None:
    line = RingPair()
    line.client.write(b"half a fra")
    line.server.write(b"half an ans")
    line.client.leave()
    assert line.client.update() is State.CLOSED
    assert line.server.update() is State.WAITING
    client = line.new_client()
    assert (line.server.update(), client.update()) == (State.OPEN, State.OPEN)
    assert line.server.arrivals == 2
    assert (line.server.data_ready(), client.data_ready()) == (0, 0)
    assert (line.server.buffer_space(), client.buffer_space()) == (RING_SIZE, RING_SIZE)


def test_a_second_client_takes_the_place_of_the_first() -> None:
    line = RingPair()
    second = line.new_client()
    line.server.update()
    assert (line.client.update(), second.update()) == (State.CLOSED, State.OPEN)
    line.client.leave()  # must not take the second one's place away
    assert (line.server.update(), second.update()) == (State.OPEN, State.OPEN)


def test_a_server_that_leaves_closes_its_client() -> None:
    line = RingPair()
    line.server.leave()
    assert line.get("server live") == 0
    assert line.client.update() is State.CLOSED


def test_a_server_that_died_and_came_again_has_a_new_epoch_and_every_client_comes_again() -> None:
    line = RingPair()
    epoch = line.get("epoch")
    server = line.new_server()
    assert line.get("epoch") == epoch + 1
    assert server.update() is State.WAITING
    assert line.client.update() is State.CLOSED
    client = line.new_client()
    assert (server.update(), client.update()) == (State.OPEN, State.OPEN)


def test_epoch_is_never_zero() -> None:
    line = RingPair()
    line.put("epoch", 0xFFFFFFFF)
    line.new_server()
    assert line.get("epoch") == 1


def test_a_dropped_client_is_closed_and_can_come_again() -> None:
    line = RingPair()
    line.server.drop_client()
    assert (line.server.update(), line.client.update()) == (State.WAITING, State.CLOSED)
    client = line.new_client()
    assert (line.server.update(), client.update()) == (State.OPEN, State.OPEN)
