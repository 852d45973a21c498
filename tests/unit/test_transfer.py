"""How long the source's end of a live migration waits. QEMU is played."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from image.host import transfer
from image.host.transfer import Outgoing
from image.host.vm import Vm
from manager_vm.errors import HostError

_SIZE = 100 << 20


class Qemu:
    """Sends ``step`` bytes of memory between two questions, at ten questions in a second; ``last``: the last bytes."""

    def __init__(self, step: int, last: int = _SIZE) -> None:
        self.now = 0.0
        self._sent, self._step, self._last = 0, step, last
        self.kvm = False
        self.looks = 1

    def execute(self, command: str, **_: Any) -> Any:
        if command == "query-kvm":
            return {"enabled": self.kvm, "present": True}
        if command == "query-block-jobs":
            return []
        if command != "query-migrate":
            return {}
        self.now += 0.1
        self._sent = min(self._sent + self._step, self._last)
        ram = {"transferred": self._sent, "remaining": _SIZE - self._sent, "mbps": 10.0, "dirty-sync-count": self.looks}
        return {"status": "completed" if self._sent == _SIZE else "pre-switchover", "ram": ram}


@pytest.fixture
def outgoing(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[Qemu, Outgoing]:
    qemu: Qemu = request.param
    monkeypatch.setattr(transfer, "time", SimpleNamespace(monotonic=lambda: qemu.now, sleep=lambda seconds: None))
    vm = SimpleNamespace(qmp=qemu, spec=SimpleNamespace(name="m"), check=lambda: None)
    return qemu, Outgoing(cast(Vm, vm))


@pytest.mark.parametrize("outgoing", [Qemu(1 << 12)], indirect=True)
def test_a_slow_link_has_all_the_time_it_takes(outgoing: tuple[Qemu, Outgoing]) -> None:
    qemu, out = outgoing
    out.await_last_round()
    assert qemu.now > 3 * 300
    out.finish()


@pytest.mark.parametrize("outgoing", [Qemu(1 << 20, 50 << 20)], indirect=True)
def test_memory_that_has_stopped_moving_is_given_up_after_five_minutes(outgoing: tuple[Qemu, Outgoing]) -> None:
    qemu, out = outgoing
    with pytest.raises(HostError, match="not within 300 s: most of the memory is sent"):
        out.await_last_round()
    assert 300 < qemu.now < 330
    with pytest.raises(HostError, match="the memory has arrived"):
        out.finish()


class Watching(Qemu):
    """Remembers what was asked, and how fast it may send."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.asked: list[str] = []
        self.running = True
        self.bandwidth = 0

    def execute(self, command: str, **args: Any) -> Any:
        if command in ("stop", "cont", "migrate", "migrate-continue"):
            self.asked.append(command)
            self.running = command == "cont" or (command != "stop" and self.running)
        self.bandwidth = args.get("max_bandwidth", self.bandwidth)
        return {"running": self.running} if command == "query-status" else super().execute(command, **args)


@pytest.mark.parametrize("outgoing", [Watching()], indirect=True)
def test_the_vm_stands_still_when_qemu_begins_to_note_what_it_writes(outgoing: tuple[Qemu, Outgoing]) -> None:
    qemu, out = outgoing
    assert isinstance(qemu, Watching)
    out.start("unix:x")
    assert qemu.asked == ["stop", "migrate", "cont"]


@pytest.mark.parametrize("outgoing", [Watching()], indirect=True)
def test_nothing_more_is_sent_until_the_vm_has_stopped_and_then_all_at_once(outgoing: tuple[Qemu, Outgoing]) -> None:
    qemu, out = outgoing
    assert isinstance(qemu, Watching)
    out.trickle(False)
    assert qemu.bandwidth == transfer._TRICKLE
    out.finish()
    assert qemu.bandwidth == transfer._FULL_SPEED and qemu.asked == ["migrate-continue"]


@pytest.mark.parametrize("outgoing", [Watching()], indirect=True)
@pytest.mark.parametrize("kvm", [False, True])
def test_the_end_of_the_first_round_is_come_to_slowly_where_qemu_emulates(
    outgoing: tuple[Qemu, Outgoing], kvm: bool
) -> None:
    qemu, out = outgoing
    assert isinstance(qemu, Watching)
    qemu.kvm = kvm
    out.start("unix:x")
    assert qemu.bandwidth == (transfer._FULL_SPEED if kvm else transfer._FIRST_SPEED)
    out.await_last_round()
    assert qemu.bandwidth == (transfer._FULL_SPEED if kvm else transfer._SLOWER)


@pytest.mark.parametrize("outgoing", [Watching()], indirect=True)
@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("kvm", [False, True])
def test_memory_that_could_arrive_damaged_is_not_sent(outgoing: tuple[Qemu, Outgoing], on: bool, kvm: bool) -> None:
    qemu, out = outgoing
    qemu.kvm = kvm
    out.start("unix:x")
    qemu.looks = 2
    if kvm:
        out.trickle(on)
        return
    with pytest.raises(HostError, match="too busy to see the end of the first round; try again"):
        out.trickle(on)
