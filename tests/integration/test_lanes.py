"""vchan.lanes over a shared-memory ring: many channels on one carrier, either side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from manager_vm.errors import BusyError, LocalProtocolError
from manager_vm.vchan.endpoint import State
from manager_vm.vchan.lane import Lane
from manager_vm.vchan.lanes import Lanes
from manager_vm.vchan.local import LocalClient, LocalServer
from manager_vm.wire import channel, framing
from tests.integration.conftest import short_directory
from tests.integration.harness import until


class Ends:
    """A carrier's both sides."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manager = Lanes(lambda: LocalServer(path), "manager")
        until(path.exists, 5, "it listens")
        self.host = Lanes(lambda: LocalClient(path), "host")

    def lanes(self, name: str) -> tuple[Lane, Lane]:
        """(the manager's, the host's), open."""
        found = self.manager.lane(name), self.host.lane(name)
        for each in found:
            opened(each)
        return found

    def close(self) -> None:
        self.host.close()
        self.manager.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    with short_directory() as directory:
        found = Ends(directory / "carrier.sock")
        try:
            yield found
        finally:
            found.close()


def opened(lane: Lane) -> None:
    until(lambda: lane.update() is State.OPEN, 5, "the lane is open")


def ping(token: int, text: bytes = b"") -> bytes:
    """A frame; ``text`` makes it longer."""
    return framing.encode(framing.Frame(3 if text else 6, seq=token, body=text))


def heard(lane: Lane) -> list[int]:
    """The next frames' seqs."""
    found: list[framing.Frame] = []

    def look() -> bool:
        lane.update()
        found.extend(framing.Decoder(channel.MAX_BODY).feed(lane.read(1 << 16)))
        return bool(found)

    until(look, 5, "something comes")
    assert not any(frame.name for frame in found)
    return [frame.seq for frame in found]


def test_what_is_said_on_a_lane_comes_on_that_lane_only_in_either_direction(ends: Ends) -> None:
    (one, here), (two, there) = ends.lanes("one"), ends.lanes("two")
    here.send(ping(1))
    assert heard(one) == [1]
    there.send(ping(2))
    assert heard(two) == [2]
    two.send(ping(3))
    one.send(ping(4))
    assert (heard(here), heard(there)) == ([4], [3])
    assert not one.data_ready() and not two.data_ready()


def test_a_lane_has_one_owner_at_a_time(ends: Ends) -> None:
    one, _ = ends.lanes("one")
    with pytest.raises(BusyError, match="one consumer"):
        ends.manager.lane("one")
    one.close()
    one.close()
    assert one.update() is State.CLOSED
    again = ends.manager.lane("one")
    opened(again)


def test_a_lane_that_nobody_reads_keeps_a_few_frames_and_holds_up_no_other(ends: Ends) -> None:
    (deaf, speaks), (other, there) = ends.lanes("deaf"), ends.lanes("other")
    longest = b"x" * channel.MAX_BODY
    for number in range(100):
        speaks.send(ping(number, longest))
    there.send(ping(7))
    assert heard(other) == [7]
    deaf.update()
    kept = framing.Decoder(channel.MAX_BODY).feed(deaf.read(1 << 20))
    assert [frame.seq for frame in kept] == list(range(len(kept))) and 0 < len(kept) <= 8


def test_a_lane_that_always_speaks_leaves_the_others_their_turn(ends: Ends) -> None:
    (listens, floods), (other, there) = ends.lanes("flood"), ends.lanes("other")
    longest = b"x" * channel.MAX_BODY
    for number in range(40):
        floods.send(ping(number, longest))
    there.send(ping(99))
    seen: list[int] = []
    while not other.data_ready():
        other.update()
        listens.update()
        seen += [frame.seq for frame in framing.Decoder(channel.MAX_BODY).feed(listens.read(1 << 16))]
        assert len(seen) < 60
    assert heard(other) == [99]


def test_what_is_for_a_lane_that_nobody_has_is_dropped(ends: Ends) -> None:
    stray = ends.host.lane("stray")
    opened(stray)
    stray.send(ping(1))
    one, here = ends.lanes("one")
    here.send(ping(2))
    assert heard(one) == [2]
    stray.send(ping(3))
    late = ends.manager.lane("stray")
    opened(late)
    stray.send(ping(4))
    assert heard(late)[-1] == 4


@pytest.mark.parametrize("who", ["host", "manager"])
def test_lanes_outlive_the_other_side_and_notice_that_it_is_another(ends: Ends, who: str) -> None:
    one, here = ends.lanes("one")
    (one if who == "manager" else here).send(ping(1))
    stays, visit = (one, one.epoch) if who == "host" else (here, here.epoch)
    getattr(ends, who).close()
    until(lambda: stays.update() is State.WAITING, 5, "it is gone")
    make: Callable[[], Lanes] = {
        "host": lambda: Lanes(lambda: LocalClient(ends.path), "host"),
        "manager": lambda: Lanes(lambda: LocalServer(ends.path), "manager"),
    }[who]
    setattr(ends, who, make())
    comes = getattr(ends, who).lane("one")
    opened(comes)
    opened(stays)
    assert stays.epoch > visit and stays.data_ready() == 0  # what the one before has said is void
    comes.send(ping(5))
    assert heard(stays) == [5]


def test_a_peer_that_breaks_the_framing_is_dropped_and_the_next_one_is_served(ends: Ends) -> None:
    one = ends.manager.lane("one")
    ends.host.close()
    with ExitStack() as stack:
        rogue = stack.enter_context(LocalClient(ends.path))
        until(lambda: rogue.update() is State.OPEN, 5, "it is served")
        rogue.write(b"no frame at all, but long enough to be looked at")
        until(lambda: rogue.update() is State.CLOSED, 5, "it is dropped")
    ends.host = Lanes(lambda: LocalClient(ends.path), "host")
    here = ends.host.lane("one")
    opened(here)
    opened(one)
    here.send(ping(3))
    assert heard(one) == [3]


def test_a_lane_takes_whole_frames_only(ends: Ends) -> None:
    one, here = ends.lanes("one")
    for rubbish in (ping(1)[:-1], b"x" * 40, ping(1) + ping(2)[:5]):
        with pytest.raises(LocalProtocolError, match="whole frames"):
            here.write(rubbish)
    here.send(ping(1) + ping(2))
    assert heard(one) == [1, 2]


def test_closing_closes_all_lanes(ends: Ends) -> None:
    one, here = ends.lanes("one")
    ends.manager.close()
    ends.manager.close()
    assert one.update() is State.CLOSED
    assert one.write(ping(1)) == 0
    until(lambda: here.update() is State.WAITING, 5, "the other side waits")
