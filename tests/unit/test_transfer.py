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
        self.asked: list[str] = []
        self.running = True
        self.limits: dict[str, int] = {}
        self._sent, self._step, self._last = 0, step, last
        self._status = "active"

    def execute(self, command: str, **args: Any) -> Any:
        if command == "query-block-jobs":
            return []
        if command == "query-status":
            return {"running": self.running}
        if command == "query-migrate":
            return self._info()
        self.asked.append(command)
        if command == "migrate-set-parameters":
            self.limits.update(args)
        elif command in ("stop", "cont"):
            self.running = command == "cont"
        elif command == "migrate-continue":
            self._status = "completed"
        return {}

    def _info(self) -> Any:
        self.now += 0.1
        self._sent = min(self._sent + self._step, self._last)
        if not self.running and self.limits.get("downtime_limit") and self._status == "active":
            self._status = "pre-switchover"
        ram = {"transferred": self._sent, "remaining": _SIZE - self._sent, "dirty-sync-count": 1}
        return {"status": self._status, "ram": ram}


@pytest.fixture
def outgoing(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[Qemu, Outgoing]:
    qemu = Qemu(*request.param)
    monkeypatch.setattr(transfer, "time", SimpleNamespace(monotonic=lambda: qemu.now, sleep=lambda seconds: None))
    vm = SimpleNamespace(qmp=qemu, spec=SimpleNamespace(name="m"), check=lambda: None)
    return qemu, Outgoing(cast(Vm, vm))


@pytest.mark.parametrize("outgoing", [(1 << 12,)], indirect=True)
def test_a_slow_link_has_all_the_time_it_takes(outgoing: tuple[Qemu, Outgoing]) -> None:
    qemu, out = outgoing
    out.await_sent()
    assert qemu.now > 3 * 300
    out.stop()
    out.finish()


@pytest.mark.parametrize("outgoing", [(1 << 20, 50 << 20)], indirect=True)
def test_memory_that_has_stopped_moving_is_given_up_after_five_minutes(outgoing: tuple[Qemu, Outgoing]) -> None:
    qemu, out = outgoing
    with pytest.raises(HostError, match="not within 300 s: the memory is sent once"):
        out.await_sent()
    assert 300 < qemu.now < 330
    qemu._status = "failed"
    with pytest.raises(HostError, match="the memory of m does not arrive"):
        out.stop()


@pytest.mark.parametrize("outgoing", [(1 << 20,)], indirect=True)
def test_the_vm_stands_still_whenever_qemu_looks_at_what_it_writes(outgoing: tuple[Qemu, Outgoing]) -> None:
    """Once when it begins to note that, and from ``stop`` on, which alone lets it look again."""
    qemu, out = outgoing
    out.start("unix:x")
    assert [each for each in qemu.asked if each in ("stop", "migrate", "cont")] == ["stop", "migrate", "cont"]
    assert qemu.limits["downtime_limit"] == 0
    out.await_sent()
    assert qemu.running and qemu.limits["downtime_limit"] == 0
    out.stop()
    assert qemu.asked[-2:] == ["stop", "migrate-set-parameters"]
    assert qemu.limits["downtime_limit"] > 0
    out.finish()
    assert not qemu.running and qemu.asked[-1] == "migrate-continue"


@pytest.mark.parametrize("outgoing", [(1 << 20,)], indirect=True)
def test_nothing_of_a_move_that_was_given_up_is_left_in_qemu(outgoing: tuple[Qemu, Outgoing]) -> None:
    qemu, out = outgoing
    out.start("unix:x")
    qemu._status = "cancelled"
    out.cancel()
    assert qemu.asked[-4:] == ["migrate_cancel", "migrate-set-capabilities", "migrate-set-capabilities", "blockdev-del"]
    assert qemu.running
