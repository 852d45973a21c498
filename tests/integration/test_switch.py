"""The switch between simulated hosts: who gets which frame."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from image.host.network import Card, Switch
from tests.integration.conftest import short_directory

ONE, TWO, THREE, ALL = (bytes([2, 0, 0, 0, 0, number]) for number in (1, 2, 3, 0))
BROADCAST = b"\xff" * 6


@pytest.fixture
def cards() -> Iterator[list[socket.socket]]:
    """Three sockets as QEMU would have them, each known to the switch by one frame."""
    with ExitStack() as held:
        directory = held.enter_context(short_directory())
        switch = Switch(directory / "switch")
        held.callback(switch.close)
        found = []
        for number, own in enumerate((ONE, TWO, THREE)):
            card = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            card.bind(str(directory / f"card{number}"))
            card.connect(str(switch.path))
            card.settimeout(5)
            card.send(BROADCAST + own + b"\x88\xb5hello")
            found.append(card)
            for other in found[:-1]:
                assert other.recv(100)[6:12] == own
        yield found


def waits(card: socket.socket) -> bool:
    """Whether nothing has come."""
    card.settimeout(0.1)
    try:
        card.recv(100)
    except TimeoutError:
        return True
    return False


def test_a_frame_goes_to_the_card_that_it_is_for_and_to_no_other(cards: list[socket.socket]) -> None:
    cards[0].send(TWO + ONE + b"\x88\xb5data")
    assert cards[1].recv(100) == TWO + ONE + b"\x88\xb5data"
    assert waits(cards[2]) and waits(cards[0])


def test_a_frame_for_nobody_known_goes_to_all_others_and_half_a_frame_to_nobody(cards: list[socket.socket]) -> None:
    cards[0].send(b"short")
    cards[0].send(ALL + ONE + b"\x88\xb5data")
    assert [card.recv(100)[:6] for card in cards[1:]] == [ALL, ALL]
    assert waits(cards[0])


def test_a_card_that_has_gone_holds_up_nobody(cards: list[socket.socket]) -> None:
    cards[2].close()
    for _ in range(1000):
        cards[0].send(BROADCAST + ONE + b"\x88\xb5data")
        assert cards[1].recv(100)[:6] == BROADCAST


def test_cards_have_addresses_of_their_own_that_stay() -> None:
    macs = [Card(Path(name), Path("s"), ()).mac for name in ("/a/card", "/b/card", "/a/card")]
    assert macs[0] == macs[2] != macs[1] and all(int(mac[:2], 16) & 3 == 2 for mac in macs)
