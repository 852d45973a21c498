"""A vTPM that follows its VM, and what is lost meanwhile: the VM that survives has its vTPM, the other place has none.

Two managers with a shim each, and QEMUs that say what QEMU says (MIGRATION.md, section 13). ``MATRIX`` is the claim:
what is lost (by SIGKILL, or as a process ends), when, and who has the vTPM then. Which VM goes on is QEMU's to decide;
where it may be either, both are tried. Manager and shim are started anew; a shim's QEMU is not (it cannot connect
again): that VM has no TPM until its end, so it does not count as one that survives.

A VM "is reset" where its vTPM's process died with state that nobody else had: TPM_RC_FAILURE until its next reset
(MIGRATION.md, section 8). That is a manager which had it running; and the destination's from "loaded" on, though it
served nothing before "served": its disk cannot tell so, for whoever has it can take COMMIT away.

Every cell can be reached. Two are reached only since the network loses words: "asked" and "tombstone" last for
milliseconds otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from enum import Enum, StrEnum

import pytest

from manager_vm.ctl.client import Client
from manager_vm.errors import StateError
from manager_vm.wire import tpm
from manager_vm.wire.migration import Kind
from tests.integration import losing, raw
from tests.integration.conftest import Make
from tests.integration.fake_qemu import FakeQemu, Gone, Stream
from tests.integration.harness import Manager, until
from tests.integration.shim import Shim
from tests.integration.site import Site
from tests.integration.test_following import VM, Hosts, ordered

COUNTER = 0x1500020
_COUNTER = 0x00060014 | 0x02000000  # TPM_NT_COUNTER, OWNERREAD, AUTHREAD, AUTHWRITE, NO_DA
KERNEL = raw.get_property(0x129)  # TPM_PT_TOTAL_COMMANDS: from then on the shim knows that a kernel asks
_PATIENCE = 30.0  # seconds for managers to find together again


class Phase(StrEnum):
    """How far the VM has come when something is lost."""

    RUNS = "runs"  # at the source; a QEMU waits at the destination
    TICKET = "ticket"  # the VM stands, its stream is complete
    LOADED = "loaded"  # at the destination, whose manager is PREPARED and does not say so
    ASKED = "asked"  # the VM runs at the destination, its manager's PREPARED does not arrive
    TOMBSTONE = "tombstone"  # the source has given the vTPM up, its COMMIT does not arrive
    SERVED = "served"  # the destination serves it, COMMITTED does not arrive: nothing is erased yet


class Lost(StrEnum):
    """What ends."""

    SOURCE_QEMU = "QEMU of the source"
    DESTINATION_QEMU = "QEMU of the destination"
    SOURCE_SHIM = "shim of the source"
    DESTINATION_SHIM = "shim of the destination"
    SOURCE_MANAGER = "manager of the source"
    DESTINATION_MANAGER = "manager of the destination"
    BOTH_MANAGERS = "both managers"


class Then(Enum):
    """Which VM goes on, and how."""

    STAYED = "the VM that has stayed, as if nothing had been"
    CAME = "the VM that has come, as if nothing had been"
    STAYED_RESET = "the VM that has stayed, after its reset"
    CAME_RESET = "the VM that has come, after its reset"
    SOURCE_BOOTS = "no VM: the next that boots at the source"
    DESTINATION_BOOTS = "no VM: the next that boots at the destination"


_T = Then
_AT_SOURCE = {_T.STAYED, _T.STAYED_RESET, _T.SOURCE_BOOTS}

MATRIX: dict[Lost, dict[Phase, tuple[Then, ...]]] = {
    Lost.SOURCE_QEMU: {
        Phase.RUNS: (_T.SOURCE_BOOTS,),
        Phase.TICKET: (_T.CAME,),
        Phase.LOADED: (_T.CAME,),
        Phase.ASKED: (_T.CAME,),
        Phase.TOMBSTONE: (_T.CAME,),
        Phase.SERVED: (_T.CAME,),
    },
    Lost.DESTINATION_QEMU: {
        Phase.RUNS: (_T.STAYED,),
        Phase.TICKET: (_T.STAYED,),
        Phase.LOADED: (_T.STAYED,),
        Phase.ASKED: (_T.STAYED,),
        Phase.TOMBSTONE: (_T.DESTINATION_BOOTS,),
        Phase.SERVED: (_T.DESTINATION_BOOTS,),
    },
    Lost.SOURCE_SHIM: {
        Phase.RUNS: (_T.SOURCE_BOOTS,),
        Phase.TICKET: (_T.CAME,),
        Phase.LOADED: (_T.CAME,),
        Phase.ASKED: (_T.CAME,),
        Phase.TOMBSTONE: (_T.CAME,),
        Phase.SERVED: (_T.CAME,),
    },
    Lost.DESTINATION_SHIM: {
        Phase.RUNS: (_T.STAYED,),
        Phase.TICKET: (_T.STAYED,),
        Phase.LOADED: (_T.STAYED,),
        Phase.ASKED: (_T.STAYED,),
        Phase.TOMBSTONE: (_T.DESTINATION_BOOTS,),
        Phase.SERVED: (_T.DESTINATION_BOOTS,),
    },
    Lost.SOURCE_MANAGER: {
        Phase.RUNS: (_T.STAYED_RESET,),
        Phase.TICKET: (_T.CAME, _T.STAYED),
        Phase.LOADED: (_T.CAME, _T.STAYED),
        Phase.ASKED: (_T.CAME, _T.STAYED),
        Phase.TOMBSTONE: (_T.CAME,),
        Phase.SERVED: (_T.CAME,),
    },
    Lost.DESTINATION_MANAGER: {
        Phase.RUNS: (_T.CAME, _T.STAYED),
        Phase.TICKET: (_T.CAME, _T.STAYED),
        Phase.LOADED: (_T.CAME_RESET, _T.STAYED),
        Phase.ASKED: (_T.CAME_RESET, _T.STAYED),
        Phase.TOMBSTONE: (_T.CAME_RESET,),
        Phase.SERVED: (_T.CAME_RESET,),
    },
    Lost.BOTH_MANAGERS: {
        Phase.RUNS: (_T.STAYED_RESET,),
        Phase.TICKET: (_T.CAME, _T.STAYED),
        Phase.LOADED: (_T.CAME_RESET, _T.STAYED),
        Phase.ASKED: (_T.CAME_RESET, _T.STAYED),
        Phase.TOMBSTONE: (_T.CAME_RESET,),
        Phase.SERVED: (_T.CAME_RESET,),
    },
}

# each thing that is lost, and each phase, once
CORE = {
    (Lost.SOURCE_QEMU, Phase.ASKED, _T.CAME),
    (Lost.DESTINATION_QEMU, Phase.LOADED, _T.STAYED),
    (Lost.SOURCE_SHIM, Phase.RUNS, _T.SOURCE_BOOTS),
    (Lost.DESTINATION_SHIM, Phase.TOMBSTONE, _T.DESTINATION_BOOTS),
    (Lost.SOURCE_MANAGER, Phase.TICKET, _T.CAME),
    (Lost.DESTINATION_MANAGER, Phase.SERVED, _T.CAME_RESET),
}

LOSSES = {Phase.ASKED: Kind.PREPARED, Phase.TOMBSTONE: Kind.COMMIT, Phase.SERVED: Kind.COMMITTED}
CELLS = [(lost, phase, then) for lost, row in MATRIX.items() for phase, all_ in row.items() for then in all_]


def read_counter(qemu: FakeQemu) -> bytes:
    return bytes(qemu.insist(tpm.nv_read(COUNTER, 0, 8)))


class Scene:
    """The VM at the source, or at both hosts once it has come. ``value``: of its PCR; ``count``: of its counter.

    ``ahead``: it has moved there and back before, so the managers know each other, and agree before it comes again.
    """

    def __init__(self, hosts: Hosts, *, ahead: bool = False) -> None:
        self.hosts = hosts
        self.stayed = hosts.started()
        define = tpm.nv_define_space(COUNTER, _COUNTER, 8, authority=tpm.TPM_RH_OWNER)
        for command in (define, raw.nv_increment(COUNTER), raw.pcr_extend(16), KERNEL):
            assert raw.rc(self.stayed.execute(command)) == 0
        self.value, self.count = self.stayed.insist(raw.pcr_read(16))[-32:], read_counter(self.stayed)
        if ahead:
            self._there_and_back()
        self.came = hosts.shim_b.qemu().incoming()
        self._stream: Stream = {}
        until(lambda: bool(hosts.b.swtpms()) is ahead, 10.0, "the managers have agreed")

    def _there_and_back(self) -> None:
        with self.hosts.arriving(self.stayed.save()) as there:
            assert answer(there) == 0
            self.stayed.leave()
            self.stayed = self.hosts.shim_a.qemu().incoming().arrive(there.save())
            assert answer(self.stayed) == 0
            there.leave()

    def reach(self, phase: Phase) -> None:
        """Let the VM come so far."""
        if phase is not Phase.RUNS:
            self.save()
        if phase not in (Phase.RUNS, Phase.TICKET):
            self.load()
        if phase in LOSSES:
            kind = LOSSES[phase]
            losing.lose(self.hosts.a if kind is Kind.COMMIT else self.hosts.b, kind)
            if phase is Phase.SERVED:
                assert answer(self.came) == 0
            else:
                assert raw.rc(self.came.execute(raw.pcr_read(16))) == tpm.RC.TPM_RC_RETRY
            there = "offered" if phase is Phase.ASKED else "tombstone"
            until(lambda: self.hosts.a.ctl("migrations")[-1]["state"] == there, 5.0, phase)

    def save(self) -> None:
        """Until the park is durable: a ticket may be out before (test_following.py has what is lost then)."""
        self._stream = self.stayed.save()
        until(lambda: self.hosts.a.show("v")["state"] == "parked", 5.0, "it is parked")

    def load(self) -> None:
        self.came.arrive(self._stream)

    def lose(self, lost: Lost) -> None:
        """It ends; what can begin anew does, and the network is whole again."""
        hosts = self.hosts
        match lost:
            case Lost.SOURCE_QEMU:
                self.stayed.close()
            case Lost.DESTINATION_QEMU:
                self.came.close()
            case Lost.SOURCE_SHIM:
                hosts.shim_a.kill()
                hosts.shim_a.start()
            case Lost.DESTINATION_SHIM:
                hosts.shim_b.kill()
                hosts.shim_b.start()
            case Lost.SOURCE_MANAGER:
                hosts.a.kill()
            case Lost.DESTINATION_MANAGER:
                hosts.b.kill()
            case Lost.BOTH_MANAGERS:
                hosts.a.kill()
                hosts.b.kill()
        for each in (hosts.a, hosts.b):
            losing.lose(each)
            if not each.running:
                each.start()

    def go_on(self, then: Then, phase: Phase) -> FakeQemu:
        """The VM that survives, once it has come as far as it would."""
        if then in (_T.CAME, _T.CAME_RESET):
            if phase is Phase.RUNS:
                self.save()
            if phase in (Phase.RUNS, Phase.TICKET):
                self.load()
            return self.came
        if then is _T.SOURCE_BOOTS:
            return self.hosts.shim_a.qemu().boot()
        return self.hosts.shim_b.qemu().boot() if then is _T.DESTINATION_BOOTS else self.stayed

    def close(self) -> None:
        self.stayed.close()
        self.came.close()


def answer(qemu: FakeQemu) -> int:
    """Of its TPM, in the end."""
    return raw.rc(qemu.insist(raw.pcr_read(16)))


def check_vm(scene: Scene, qemu: FakeQemu, then: Then) -> None:
    """Its vTPM works, and is the one that it was."""
    value = scene.value if then in (_T.STAYED, _T.CAME) else bytes(32)
    if then in (_T.STAYED_RESET, _T.CAME_RESET):
        assert answer(qemu) == tpm.RC.TPM_RC_FAILURE
        qemu.boot()
    assert answer(qemu) == 0
    assert qemu.insist(raw.pcr_read(16))[-32:] == value
    assert read_counter(qemu) == scene.count
    assert raw.rc(qemu.insist(raw.nv_increment(COUNTER))) == 0


def check_places(hosts: Hosts, then: Then, *, waits: bool = False) -> None:
    """Nothing of it is left at the other one, no move is open. ``waits``: a process may be there that has no state."""
    here, other = (hosts.a, hosts.b) if then in _AT_SOURCE else (hosts.b, hosts.a)
    until(lambda: other.ctl("list") == [], _PATIENCE, f"none at the other place: {other.ctl('list')}")
    assert hosts.has() == ["a" if here is hosts.a else "b"]
    assert here.swtpms() == [here.swtpm_pid("v")] and (waits or other.swtpms() == [])
    left = [path for kind in ("runs", "blobs") for path in (other.state / kind).rglob("*")]
    assert not [path for path in left if not waits or path.name.startswith("tpm2")], left
    moves = [move for each in (hosts.a, hosts.b) for move in each.ctl("migrations")]
    assert not [move for move in moves if not move["ended"]], moves


def check_other(scene: Scene, qemu: FakeQemu) -> None:
    """If the other VM is there still, its TPM does nothing for it, and says so in time."""
    other = scene.came if qemu is not scene.came else scene.stayed
    try:
        found = raw.rc(other.execute(raw.pcr_read(16)))
    except TimeoutError:
        raise
    except (Gone, OSError):
        return
    assert found in (tpm.RC.TPM_RC_RETRY, tpm.RC.TPM_RC_FAILURE)


@pytest.fixture
def hosts(make: Make) -> Iterator[Hosts]:
    one = make(fresh=True)
    two = Manager(one.directory.parent / "n")
    two.directory.mkdir(mode=0o711)
    with ExitStack() as stack:
        for each in (one, two):
            each.program = losing.program(each.directory)
            each.start()
        stack.callback(lambda: two.stop() if two.running else None)
        site = Site(one, two)
        one.ctl("create", "v", "--vm", VM)
        ordered(site)
        shims = Shim(one, "v", VM).start(), Shim(two, "v", VM).start()
        for shim in shims:
            stack.callback(shim.kill)
        yield Hosts(site, shims)


def marked(cell: tuple[Lost, Phase, Then]) -> object:
    lost, phase, then = cell
    name = f"{lost}-{phase}-{then.name.lower()}".replace(" ", "_")
    return pytest.param(*cell, id=name, marks=[] if cell in CORE else [pytest.mark.full])


def check(scene: Scene, lost: Lost, phase: Phase, then: Then, *, ahead: bool = False) -> None:
    try:
        scene.reach(phase)
        scene.lose(lost)
        qemu = scene.go_on(then, phase)
        check_vm(scene, qemu, then)
        check_places(scene.hosts, then, waits=ahead)
        check_other(scene, qemu)
        assert answer(qemu) == 0
    finally:
        scene.close()


@pytest.mark.parametrize(("lost", "phase", "then"), [marked(cell) for cell in CELLS])
def test_the_vm_that_survives_has_its_vtpm_and_the_other_place_has_none(
    hosts: Hosts, lost: Lost, phase: Phase, then: Then
) -> None:
    check(Scene(hosts), lost, phase, then)


@pytest.mark.full
@pytest.mark.parametrize(("lost", "phase", "then"), [marked(cell) for cell in CELLS])
def test_it_is_so_too_where_managers_have_agreed_before_the_vm_comes(
    hosts: Hosts, lost: Lost, phase: Phase, then: Then
) -> None:
    check(Scene(hosts, ahead=True), lost, phase, then, ahead=True)


def test_a_vm_may_come_again_to_a_place_whose_shim_has_failed_it(hosts: Hosts) -> None:
    scene = Scene(hosts)
    try:
        scene.reach(Phase.LOADED)
        scene.lose(Lost.DESTINATION_SHIM)
        scene.came.close()
        scene.came = hosts.arriving(scene.stayed.save())  # it has asked nothing meanwhile: the park still stands
        check_vm(scene, scene.came, _T.CAME)
        check_places(hosts, _T.CAME)
    finally:
        scene.close()


def test_what_may_have_been_served_before_a_restart_goes_back_on_no_word_of_the_host_and_at_no_stop(
    hosts: Hosts,
) -> None:
    scene = Scene(hosts)
    try:
        scene.reach(Phase.TOMBSTONE)
        hosts.b.kill()
        hosts.b.start()
        with (
            Client.connect(hosts.b.directory / "host.sock") as host,
            pytest.raises(StateError, match="may have served"),
        ):
            host.call("ticket_void", name="v")
        hosts.b.stop()
        hosts.b.start()
        assert [move["state"] for move in hosts.a.ctl("migrations")] == ["tombstone"]
        assert [move["state"] for move in hosts.b.ctl("migrations")] == ["prepared"]
        losing.lose(hosts.a)
        scene.came.close()
        with hosts.shim_b.qemu().boot() as fresh:
            check_vm(scene, fresh, _T.DESTINATION_BOOTS)
    finally:
        scene.close()
