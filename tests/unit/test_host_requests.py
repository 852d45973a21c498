"""What one host tells the other, and what it says again to a manager that has just woken up. Managers are played."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from image.host import uplink
from image.host.host import Host
from image.host.landing import Landing
from image.host.links import Links
from image.host.network import Card
from image.host.requests import Other, Server
from image.host.uplink import Uplink
from image.host.vm import Vm
from manager_vm.errors import HostError, StateError, UnreachableError, VtpmManagerError


@contextmanager
def asked(directory: Path, verb: Callable[..., Any]) -> Iterator[Other]:
    path = directory / "s"
    with Server(path, {"word": lambda tell, **args: verb(**args)}):
        other = Other(path)
        try:
            yield other
        finally:
            other.close()


def test_a_manager_that_does_not_answer_its_host_is_told_of_in_its_words(tmp_path: Path) -> None:
    def silent() -> None:
        raise UnreachableError("the manager does not answer")

    with (
        asked(tmp_path, silent) as other,
        pytest.raises(HostError, match="or its manager, was lost when asked to word: the manager does not answer"),
    ):
        other.ask("word")


def test_a_host_that_was_lost_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Server(path, {}):
        other = Other(path)
        with pytest.raises(HostError, match="not served here"):
            other.ask("word")
    with pytest.raises(HostError, match="the other host, or its manager, was lost when asked to word"):
        other.ask("word")
    other.close()


class Waking:
    """Links to a manager whose first answers are these troubles."""

    def __init__(self, *troubles: VtpmManagerError) -> None:
        self.troubles = list(troubles)
        self.heard: list[str] = []

    def host(self, verb: str, **_: Any) -> dict[str, str]:
        self.heard.append(verb)
        if self.troubles:
            raise self.troubles.pop(0)
        return {"state": "claimed"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Each sleep is an hour."""
    found = SimpleNamespace(now=0.0)

    def sleep(_: float) -> None:
        found.now += 3600.0

    monkeypatch.setattr(uplink, "time", SimpleNamespace(monotonic=lambda: found.now, sleep=sleep))
    return found


def plugged(links: Waking) -> list[str]:
    plugs: list[str] = []
    found = Uplink(cast(Links, links), Path("card"))
    found.card = Card(Path("card"), Path("switch"), ("192.0.2.1/24",), "")
    found.plug(cast(Vm, SimpleNamespace(plug_card=lambda id_, card: plugs.append(id_))))
    return plugs


def test_a_card_is_plugged_once_and_told_of_until_it_was_heard(clock: SimpleNamespace) -> None:
    links = Waking(UnreachableError("lost"))
    assert plugged(links) == ["card"] and links.heard == ["network", "network"]


@pytest.mark.parametrize("trouble", [UnreachableError("lost"), StateError("no such card")])
def test_a_card_that_is_never_heard_of_ends_in_the_manager_s_words(
    clock: SimpleNamespace, trouble: VtpmManagerError
) -> None:
    links = Waking(*[trouble] * 9)
    with pytest.raises(type(trouble), match=str(trouble)):
        plugged(links)
    assert links.heard == ["network", "network"]


def test_the_source_has_its_word_also_where_the_card_of_the_manager_that_came_makes_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def no_card() -> None:
        raise StateError("no such card")

    host = SimpleNamespace(directory=tmp_path, links=Waking(), plug_card=no_card, manager=None)
    there = Landing(cast(Host, host), ("127.0.0.1", 1))
    try:
        with caplog.at_level(logging.ERROR):
            assert there._verbs()["word"]() == {"state": "claimed"}
        assert "has no network: no such card" in caplog.text
    finally:
        there.close()


def test_a_manager_that_has_claimed_is_not_given_up_where_its_host_cannot_move_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(vm: object) -> None:
        raise UnreachableError("lost")

    closed: list[bool] = []
    host = SimpleNamespace(directory=tmp_path, links=Waking(), manager=None)
    there = Landing(cast(Host, host), ("127.0.0.1", 1))
    vm = SimpleNamespace(go=lambda: None, close=lambda: closed.append(True))
    incoming = SimpleNamespace(await_arrived=lambda: None, close_export=lambda: None)
    for name, value in {
        "vm": vm,
        "_incoming": incoming,
        "busy": True,
        "_claim": lambda vm: None,
        "_move_in": fail,
    }.items():
        monkeypatch.setattr(there, name, value, raising=False)
    try:
        with pytest.raises(UnreachableError):
            there._verbs()["finish"](method="precopy")
        assert not there.busy  # the next one may come
        with pytest.raises(HostError, match="the manager is here"):
            there._verbs()["abort"]()
    finally:
        there.close()
    assert closed == []
