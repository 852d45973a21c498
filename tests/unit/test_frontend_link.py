"""guest_frontend.link: which channel of several is tried when."""

from __future__ import annotations

import pytest

from guest_frontend.link import Link
from manager_vm.errors import UnreachableError
from manager_vm.vchan import address


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The channels that were tried; nobody is at any of them."""
    found: list[str] = []

    def connect(where: address.Address) -> object:
        found.append(str(where))
        raise UnreachableError("nobody is there")

    monkeypatch.setattr(address, "connect", connect)
    return found


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_all_channels_are_tried_without_a_pause_and_then_there_is_one(tried: list[str], channels: int) -> None:
    link = Link(",".join(f"unix:/{number}" for number in range(channels)))
    for _ in range(channels - 1):
        link.step()
        assert link.timeout() == 0.0
    link.step()
    assert link.timeout() > 0.0
    link.step()  # the pause is not over
    assert tried == [f"unix:/{number}" for number in range(channels)]


def test_each_later_round_has_one_pause_too(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link("unix:/0,unix:/1")
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pauses = []
    for _ in range(8):
        link.step()
        pauses.append(link.timeout() > 0.0)
        now += 1.0
    assert pauses == [False, True] * 4 and tried == ["unix:/0", "unix:/1"] * 4
