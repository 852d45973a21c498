"""vtpm/vtpm: a command that was taken before the vTPM was resumed or reset is not begun after it."""

from __future__ import annotations

from manager_vm.protocol.channel_server import ChannelServer
from manager_vm.protocol.lifecycle import State
from manager_vm.vtpm.vtpm import Vtpm
from manager_vm.wire import tpm
from manager_vm.wire.channel import Reason


class FakeRun:
    """Notes what is begun."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []

    def begin(self, command: bytes, locality: int) -> None:
        self.begun.append(command)


def running() -> tuple[Vtpm, FakeRun]:
    """A vTPM that serves."""
    vtpm, run = Vtpm("uuid", "a", State.RUNNING), FakeRun()
    vtpm.run, vtpm.boot, vtpm.named = run, 3, 3  # type: ignore[assignment]
    return vtpm, run


def test_a_command_of_the_automaton_of_now_is_begun() -> None:
    vtpm, run = running()
    assert vtpm.begin(vtpm.channel, tpm.get_random(8), 0) is None
    assert run.begun == [tpm.get_random(8)]


def test_a_command_of_an_earlier_automaton_is_refused_and_the_vtpm_stays_free() -> None:
    vtpm, run = running()
    earlier, vtpm.channel = vtpm.channel, ChannelServer()
    assert vtpm.begin(earlier, tpm.get_random(8), 0) is Reason.QUIESCED
    assert run.begun == []
    assert vtpm.begin(vtpm.channel, tpm.get_random(8), 0) is None


def test_nothing_is_begun_before_the_boot_is_named() -> None:
    vtpm, run = running()
    vtpm.named = 2
    assert vtpm.begin(vtpm.channel, tpm.get_random(8), 0) is Reason.NO_BOOT
    assert run.begun == []
