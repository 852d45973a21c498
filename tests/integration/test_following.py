"""A VM that its hypervisor moves or saves takes its vTPM along by a ticket: two managers, a shim at each, and a QEMU
that says what QEMU says (MIGRATION.md, section 13)."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from manager_vm.server.peer_link import PeerLink
from manager_vm.trust import standing
from manager_vm.trust.signing import SigningKey
from manager_vm.wire import ticket as tickets
from manager_vm.wire import tpm
from manager_vm.wire.migration import Ahead, Cause, Refuse
from manager_vm.wire.swtpm import Blob
from tests.integration import raw
from tests.integration.conftest import Make
from tests.integration.fake_qemu import FakeQemu, Refused, Stream
from tests.integration.harness import Manager, processes, until
from tests.integration.shim import Shim, shimmed
from tests.integration.site import Site

VM = "11111111-2222-4333-8444-555555555555"
OTHER_VM = "22222222-2222-4333-8444-555555555555"
_STANDS_BY = "stands by for its ticket"


class Hosts:
    """Two hosts, a manager and a shim each. vTPM "v" is at a and belongs to the VM; both have a standing order."""

    def __init__(self, site: Site, shims: tuple[Shim, Shim]) -> None:
        self.site = site
        self.a, self.b = site.a, site.b
        self.shim_a, self.shim_b = shims

    def started(self) -> FakeQemu:
        """The VM, at a."""
        return self.shim_a.qemu().boot()

    def arriving(self, stream: Stream) -> FakeQemu:
        """A QEMU at b that waits for the VM, and has loaded its stream; the VM does not run yet."""
        return self.shim_b.qemu().incoming().arrive(stream)

    def has(self) -> list[str]:
        """Which managers could run the vTPM."""
        found = []
        for name, manager in (("a", self.a), ("b", self.b)):
            rows = [row for row in manager.ctl("list") if row["name"] == "v"]
            found += [name for row in rows if row["state"] in ("running", "parked", "off", "failed")]
        return found


def ordered(site: Site, *, platforms: list[str] | None = None, serial: int = 1, at: tuple[Manager, ...] = ()) -> None:
    """A standing order, given to both managers."""
    key = SigningKey.load(site.a.authority / "authority.key")
    names = list(site.platforms.values()) if platforms is None else platforms
    path = site.a.directory / "standing.json"
    path.write_bytes(standing.give(VM, names, serial, key))
    for manager in at or (site.a, site.b):
        manager.ctl("standing", "add", str(path))


@contextmanager
def two_hosts(make: Make) -> Iterator[Hosts]:
    """With their managers and shims, which end with the block."""
    one = make(fresh=True)
    other = one.directory.parent / "n"
    other.mkdir(mode=0o711)
    two = Manager(other)
    one.start()
    with ExitStack() as stack:
        stack.callback(lambda: two.stop() if two.running else None)
        two.start()
        site = Site(one, two)
        one.ctl("create", "v", "--vm", VM)
        ordered(site)
        shims = [stack.enter_context(shimmed(each, "v", VM)) for each in (one, two)]
        yield Hosts(site, (shims[0], shims[1]))


@pytest.fixture
def hosts(make: Make) -> Iterator[Hosts]:
    with two_hosts(make) as found:
        yield found


def extended(qemu: FakeQemu) -> bytes:
    assert raw.rc(qemu.insist(raw.pcr_extend(16))) == 0
    return pcr(qemu)


def pcr(qemu: FakeQemu) -> bytes:
    answer = qemu.insist(raw.pcr_read(16))
    assert raw.rc(answer) == 0
    return answer[-32:]


def test_a_vm_that_moves_takes_its_vtpm_along_and_back_and_its_stream_has_no_state(hosts: Hosts) -> None:
    with hosts.started() as qemu:
        value = extended(qemu)
        before = hosts.a.show("v")
        stream = qemu.save()
        assert {kind: bool(data) for kind, (_, data) in stream.items()} == {
            Blob.PERMANENT: True,
            Blob.VOLATILE: False,
            Blob.SAVESTATE: False,
        }
        assert len(stream[Blob.PERMANENT][1]) < 400
        with hosts.arriving(stream) as there:
            assert hosts.has() == ["a"]
            assert pcr(there) == value
            assert hosts.has() == ["b"]
            value = extended(there)
            shown = hosts.b.show("v")
            same = ("uuid", "ek_names", "boot", "group", "vm")
            assert {key: shown[key] for key in same} == {key: before[key] for key in same}
            assert shown["generation"] == 2
            qemu.leave()  # the source ends behind the move, and touches nothing
            back = there.save()
            with hosts.shim_a.qemu().incoming().arrive(back) as home:
                assert pcr(home) == value
                assert hosts.has() == ["a"] and hosts.a.show("v")["generation"] == 3
    assert "its VM has it after" in hosts.b.log() and "WARNING manager_vm.server.wanted" not in hosts.b.log()
    (first, *_), (arrived, *_) = hosts.a.ctl("migrations"), hosts.b.ctl("migrations")
    assert (first["state"], arrived["state"]) == ("done", "committed")
    assert first["receipt"]["received"] == arrived["receipt"]["sent"]


def test_a_vm_that_goes_on_where_it_was_has_its_vtpm_and_the_ticket_is_void(hosts: Hosts) -> None:
    with hosts.started() as qemu:
        value = extended(qemu)
        stream = qemu.save()
        assert hosts.a.show("v")["state"] == "parked"
        assert pcr(qemu) == value  # QEMU has failed and goes on
        assert hosts.a.show("v")["state"] == "running"
        with hosts.shim_b.qemu().incoming() as there, pytest.raises(Refused):
            there.arrive(stream)
        assert hosts.b.ctl("list") == []


def test_of_two_vms_that_run_the_first_has_the_vtpm_and_the_other_has_none(hosts: Hosts) -> None:
    with hosts.started() as qemu:
        value = extended(qemu)
        with hosts.arriving(qemu.save()) as there:
            assert pcr(qemu) == value  # the one that stayed was first
            there.data.sendall(raw.pcr_read(16))
            until(lambda: hosts.b.ctl("list") == [], 20, "nothing of it is left there")
            assert hosts.has() == ["a"]
            assert raw.rc(there.data.recv(4096)) in (tpm.RC.TPM_RC_RETRY, tpm.RC.TPM_RC_FAILURE)
            assert pcr(qemu) == value


def test_a_vm_that_never_ran_at_the_destination_leaves_the_vtpm_where_it_was(hosts: Hosts) -> None:
    with hosts.started() as qemu:
        value = extended(qemu)
        hosts.arriving(qemu.save()).close()
        until(lambda: hosts.b.ctl("list") == [], 20, "it was given up there")
        assert pcr(qemu) == value and hosts.has() == ["a"]


def test_managers_and_shims_may_start_anew_between_the_stream_and_the_first_command(hosts: Hosts) -> None:
    with hosts.started() as qemu:
        value = extended(qemu)
        stream = qemu.save()
        hosts.a.stop()
        hosts.a.start()
        with hosts.arriving(stream) as there:
            for manager in (hosts.a, hosts.b):
                manager.stop()
                manager.start()
            assert pcr(there) == value
    assert hosts.has() == ["b"]


def test_a_vm_that_was_saved_is_restored_at_the_same_host_once(hosts: Hosts) -> None:
    with hosts.started() as qemu:
        value = extended(qemu)
        stream = qemu.save()
        qemu.leave()
    with hosts.shim_a.qemu().incoming().arrive(stream) as again:
        assert pcr(again) == value
        extended(again)
        again.leave()
    with hosts.shim_a.qemu().incoming() as older, pytest.raises(Refused):
        older.arrive(stream)


def test_a_vm_that_boots_although_it_was_saved_gives_its_ticket_up(hosts: Hosts) -> None:
    with hosts.started() as qemu:
        extended(qemu)
        stream = qemu.save()
        qemu.leave()
    with hosts.shim_a.qemu().boot() as fresh:
        assert pcr(fresh) == bytes(32)
        fresh.leave()
    with hosts.shim_a.qemu().incoming() as older, pytest.raises(Refused):
        older.arrive(stream)


@pytest.mark.parametrize("who", ["source", "destination"])
def test_a_standing_order_that_was_revoked_at_either_side_leads_nowhere(hosts: Hosts, who: str) -> None:
    ordered(hosts.site, platforms=[], serial=2, at=(hosts.a if who == "source" else hosts.b,))
    with hosts.started() as qemu:
        value = extended(qemu)
        stream = qemu.save()
        with hosts.shim_b.qemu().incoming() as there, pytest.raises(Refused):
            there.arrive(stream)
        assert pcr(qemu) == value and hosts.has() == ["a"] and hosts.b.ctl("list") == []


def test_a_ticket_is_good_for_its_own_vm_only(hosts: Hosts) -> None:
    with hosts.started() as qemu, shimmed(hosts.b, "w", OTHER_VM) as foreign:
        value = extended(qemu)
        stream = qemu.save()
        with foreign.qemu().incoming() as there, pytest.raises(Refused):
            there.arrive(stream)
        assert f"is for VM {VM}" in foreign.log()
        flags, data = stream[Blob.PERMANENT]
        for damaged in (data[:-1], b"x" * 100, data.replace(VM.encode(), OTHER_VM.encode())):
            with hosts.shim_b.qemu().incoming() as there, pytest.raises(Refused):
                there.arrive({Blob.PERMANENT: (flags, damaged)})
        assert pcr(qemu) == value and hosts.has() == ["a"]


def test_a_ticket_with_another_vtpm_s_name_brings_nothing_to_that_one_s_shim(hosts: Hosts) -> None:
    with hosts.started() as qemu, shimmed(hosts.b, "w", VM) as other:
        value = extended(qemu)
        flags, data = qemu.save()[Blob.PERMANENT]
        renamed = tickets.pack(replace(tickets.parse(data), name="w"))
        with other.qemu().incoming() as there, pytest.raises(Refused):
            there.arrive({Blob.PERMANENT: (flags, renamed)})
        assert "a shim's channel is named as its vTPM: shim:v, not shim:w" in other.log()
        assert hosts.b.ctl("list") == [] and pcr(qemu) == value


def test_a_vtpm_that_belongs_to_no_vm_does_not_let_its_vm_leave(hosts: Hosts) -> None:
    hosts.a.ctl("bind", "v", "none")
    with hosts.started() as qemu:
        value = extended(qemu)
        with pytest.raises(Refused, match="0x101"):
            qemu.save()
        assert pcr(qemu) == value
        assert re.search("belongs to no VM", hosts.shim_a.log())


def test_a_second_destination_that_asks_leaves_the_first_without(hosts: Hosts, tmp_path: Path) -> None:
    with hosts.started() as qemu:
        value = extended(qemu)
        stream = qemu.save()
        hosts.arriving(stream).close()
        until(lambda: hosts.b.ctl("list") == [], 20, "it was given up there")
        with hosts.arriving(stream) as there:  # the same ticket again: the park still stands
            assert pcr(there) == value
    assert hosts.has() == ["b"]


def there_and_back(hosts: Hosts, qemu: FakeQemu) -> FakeQemu:
    """The VM moves to b and home: from then on both managers know where the other one is. At a again."""
    with hosts.arriving(qemu.save()) as there:
        pcr(there)
        qemu.leave()
        home = hosts.shim_a.qemu().incoming().arrive(there.save())
    pcr(home)
    until(lambda: hosts.b.ctl("list") == [], 20, "b has the receipt")
    return home


def agreed(manager: Manager) -> int:
    """How often a vTPM has come over what was agreed on ahead."""
    return manager.log().count("agreed on ahead\n")


def waits(hosts: Hosts) -> FakeQemu:
    """A QEMU at b that waits for its VM; both managers have agreed, and know it."""
    before = hosts.a.log().count(_STANDS_BY)
    there = hosts.shim_b.qemu().incoming()
    until(lambda: hosts.a.log().count(_STANDS_BY) > before, 20, "b stands by")
    until(lambda: len(hosts.b.swtpms()) == 1, 20, "a process waits at b")
    return there


def test_managers_that_have_met_agree_before_the_vm_comes_and_its_ticket_pays_for_the_state_alone(hosts: Hosts) -> None:
    with there_and_back(hosts, hosts.started()) as qemu:
        value, before = extended(qemu), agreed(hosts.b)
        with waits(hosts) as there:
            assert hosts.b.ctl("list") == [] and hosts.has() == ["a"]
            value = extended(qemu)  # it goes on: nothing is taken by that
            there.arrive(qemu.save())
            assert pcr(there) == value and hosts.has() == ["b"]
        assert agreed(hosts.b) == before + 1


def test_a_vm_that_does_not_come_leaves_nothing_behind_of_what_was_agreed_on(hosts: Hosts) -> None:
    with there_and_back(hosts, hosts.started()) as qemu:
        waits(hosts).close()
        until(lambda: hosts.b.swtpms() == [], 20, "b waits for nobody")
        with waits(hosts):
            hosts.b.stop()  # in order, at once
        hosts.b.start()
        assert pcr(qemu) and hosts.has() == ["a"]


@pytest.mark.parametrize("lost", ["source", "destination"])
def test_an_agreement_that_one_side_has_lost_costs_time_and_nothing_else(hosts: Hosts, lost: str) -> None:
    with there_and_back(hosts, hosts.started()) as qemu:
        value, before = extended(qemu), agreed(hosts.b)
        with waits(hosts) as there:
            manager = hosts.a if lost == "source" else hosts.b
            manager.stop()
            manager.start()
            assert pcr(qemu) == value
            there.arrive(qemu.save())
            assert pcr(there) == value and hosts.has() == ["b"]
        assert agreed(hosts.b) == before


def test_a_standing_order_that_was_revoked_after_the_agreement_leads_nowhere(hosts: Hosts) -> None:
    with there_and_back(hosts, hosts.started()) as qemu, waits(hosts) as there:
        value = extended(qemu)
        ordered(hosts.site, platforms=[], serial=2, at=(hosts.a,))
        with pytest.raises(Refused):
            there.arrive(qemu.save())
        assert pcr(qemu) == value and hosts.has() == ["a"] and hosts.b.ctl("list") == []


def test_who_does_not_have_the_standing_order_learns_nothing_of_a_vm(hosts: Hosts) -> None:
    with hosts.started():
        for vm, digest in ((VM, bytes(32)), (OTHER_VM, bytes(32))):
            with PeerLink.connect(hosts.a.ctl("status")["migration"]) as link:
                link.send(Ahead(vm, digest, "anybody", ""))
                answer = link.receive(10.0)
            assert isinstance(answer, Refuse) and answer.cause is Cause.ORDER
            assert answer.text == "this is not the standing order that is known here"


def hwtpm(manager: Manager) -> int:
    """Process id of the stand-in for its hardware TPM."""
    (pid,) = processes(f"dir={manager.directory}/hwtpm")
    return pid


@contextmanager
def waits_for_its_hwtpm(manager: Manager) -> Iterator[None]:
    """No commit of this manager can be anchored within the block."""
    pid = hwtpm(manager)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_where_managers_have_agreed_the_vm_waits_for_no_hardware_tpm_and_the_state_does(hosts: Hosts) -> None:
    with there_and_back(hosts, hosts.started()) as qemu, waits(hosts) as there, ThreadPoolExecutor(1) as pool:
        value = extended(qemu)
        with waits_for_its_hwtpm(hosts.a):
            stream = qemu.save()
            assert hosts.a.show("v")["state"] == "running"  # as far as the disk knows
            arriving = pool.submit(there.arrive, stream)
            time.sleep(0.3)
            assert not arriving.done() and hosts.b.ctl("list") == []
        arriving.result()
        assert hosts.a.show("v")["state"] == "parked"
        assert pcr(there) == value and hosts.has() == ["b"]


def test_the_channel_of_the_vm_that_came_is_committed_with_its_vtpm(hosts: Hosts) -> None:
    with hosts.started() as qemu, hosts.shim_b.qemu().incoming() as there:
        value = extended(qemu)
        there.load(qemu.save())
        assert hosts.b.show("v")["channel"] == "shim:v"
        with waits_for_its_hwtpm(hosts.b):
            there.go_on()
        assert pcr(there) == value


def test_a_manager_that_dies_before_the_park_is_durable_has_given_a_void_ticket(hosts: Hosts) -> None:
    with there_and_back(hosts, hosts.started()) as qemu:
        there = waits(hosts)
        extended(qemu)
        with waits_for_its_hwtpm(hosts.a):
            stream, pid = qemu.save(), hwtpm(hosts.a)
            hosts.a.kill()
            os.kill(pid, signal.SIGKILL)
        hosts.a.start()
        with there, pytest.raises(Refused):
            there.arrive(stream)
        assert raw.rc(qemu.insist(raw.pcr_read(16))) == tpm.RC.TPM_RC_FAILURE  # as of any vTPM that was running
        qemu.boot()
        assert pcr(qemu) == bytes(32) and hosts.has() == ["a"] and hosts.b.ctl("list") == []
        with hosts.arriving(qemu.save()) as again:
            assert pcr(again) == bytes(32)
