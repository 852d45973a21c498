"""Saved images of a VM, and the snapshots of its vTPM that bring them back: only where kept, only when permitted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from manager_vm.wire import tpm
from tests.integration import fake_qemu, raw
from tests.integration.conftest import Make
from tests.integration.fake_qemu import FakeQemu, Stream
from tests.integration.harness import Refused, until
from tests.integration.test_following import Hosts, extended, pcr, two_hosts

INDEX, ATTRIBUTES = 0x1500016, 0x02040004  # AUTHREAD, AUTHWRITE, NO_DA


@pytest.fixture
def hosts(make: Make) -> Iterator[Hosts]:
    with two_hosts(make) as found:
        yield found


def saved(qemu: FakeQemu) -> Stream:
    """A VM that is saved and goes on: its first command makes the ticket void."""
    stream = qemu.save()
    pcr(qemu)
    return stream


def kept(hosts: Hosts) -> list[str]:
    return [row["snapshot"] for row in hosts.a.ctl("snapshots", "v")["snapshots"]]


def done(qemu: FakeQemu, command: bytes) -> bytes:
    answer = qemu.insist(command)
    assert raw.rc(answer) == 0
    return answer


def refused(qemu: FakeQemu, stream: Stream) -> None:
    with pytest.raises(fake_qemu.Refused):
        qemu.arrive(stream)


def audited(hosts: Hosts) -> list[str]:
    return [entry["event"] for entry in hosts.a.ctl("audit", "--last", "100")]


def test_a_saved_image_whose_vm_has_gone_on_comes_back_once_when_an_admin_permits_it(hosts: Hosts) -> None:
    hosts.a.ctl("snapshots", "v", "--keep", "2")
    with hosts.started() as qemu:
        before = extended(qemu)
        stream = saved(qemu)
        (snapshot,) = kept(hosts)
        after = extended(qemu)
        refused(qemu, stream)  # loadvm
        assert f"revert v {snapshot}" in hosts.shim_a.log()
        hosts.a.ctl("revert", "v", snapshot, "--yes")
        assert hosts.a.show("v")["reverted"] == 0  # nothing has happened yet
        qemu.arrive(stream)
        assert pcr(qemu) == before != after
        shown = hosts.a.ctl("snapshots", "v")
        assert (shown["reverted"], shown["permitted"]) == (1, "") and kept(hosts) == [snapshot]
        extended(qemu)
        refused(qemu, stream)  # once
        assert hosts.a.show("v")["reverted"] == 1


def test_nothing_is_kept_unless_an_admin_has_asked_for_it(hosts: Hosts) -> None:
    with hosts.started() as qemu:
        value = extended(qemu)
        stream = saved(qemu)
        assert kept(hosts) == [] and list((hosts.a.state / "snapshots").iterdir()) == []
        refused(qemu, stream)
        assert "is void: it has gone on since\n" in hosts.shim_a.log()
        with pytest.raises(Refused, match="none are kept"):
            hosts.a.ctl("revert", "v", "51c0ffee", "--yes")
        with pytest.raises(Refused, match="at most 8"):
            hosts.a.ctl("snapshots", "v", "--keep", "9")
        assert pcr(qemu.boot()) != value


def test_the_oldest_makes_room_and_what_is_given_up_is_erased(hosts: Hosts) -> None:
    hosts.a.ctl("snapshots", "v", "--keep", "2")
    with hosts.started() as qemu:
        taken = []
        for _ in range(3):
            saved(qemu)
            taken.append(kept(hosts)[-1])
    assert kept(hosts) == taken[1:]
    (directory,) = (hosts.a.state / "snapshots").iterdir()
    assert len(list(directory.iterdir())) == 2
    hosts.a.ctl("revert", "v", taken[1], "--yes")
    shown = hosts.a.ctl("snapshots", "v", "--drop", taken[1])
    assert kept(hosts) == taken[2:] and shown["permitted"] == "" and len(list(directory.iterdir())) == 1
    hosts.a.ctl("snapshots", "v", "--keep", "0")
    assert kept(hosts) == [] and not directory.exists()


def test_one_that_was_saved_and_booted_all_the_same_can_be_restored(hosts: Hosts) -> None:
    hosts.a.ctl("snapshots", "v", "--keep", "1")
    with hosts.started() as qemu:
        value = extended(qemu)
        stream = qemu.save()
        qemu.leave()
    with hosts.shim_a.qemu().boot() as fresh:
        assert pcr(fresh) == bytes(32)
        fresh.leave()
    hosts.a.stop()
    (directory,) = (hosts.a.state / "snapshots").iterdir()
    (directory / "left-by-a-crash").write_bytes(b"half of one")
    hosts.a.start()
    assert len(list(directory.iterdir())) == 1
    hosts.a.ctl("revert", "v", *kept(hosts), "--yes")
    with hosts.shim_a.qemu().power_on().arrive(stream) as again:
        assert pcr(again) == value


def test_a_vm_whose_disks_were_brought_back_while_it_was_off_finds_its_vtpm_as_it_was(hosts: Hosts) -> None:
    hosts.a.ctl("snapshots", "v", "--keep", "1")
    with hosts.started() as qemu:
        done(qemu, tpm.nv_define_space(INDEX, ATTRIBUTES, 1, tpm.TPM_RH_OWNER))
        done(qemu, raw.nv_write(INDEX, b"1"))
        saved(qemu)
        done(qemu, raw.nv_write(INDEX, b"2"))
        with pytest.raises(Refused, match="a guest is using"):
            hosts.a.ctl("revert", "v", *kept(hosts), "--now", "--yes")
        qemu.leave()
    until(lambda: not hosts.a.show("v")["live"])
    hosts.a.ctl("revert", "v", *kept(hosts), "--now", "--yes")
    assert hosts.a.show("v")["state"] == "parked" and hosts.a.show("v")["reverted"] == 1
    with hosts.shim_a.qemu().boot() as again:
        assert pcr(again) == bytes(32)
        assert b"1" in done(again, tpm.nv_read(INDEX, 0, 1))[-8:]


def test_a_saved_image_comes_back_at_another_host_by_the_same_permission(hosts: Hosts) -> None:
    hosts.a.ctl("snapshots", "v", "--keep", "2")
    with hosts.started() as qemu:
        value = extended(qemu)
        stream = saved(qemu)
        extended(qemu)
        hosts.a.ctl("revert", "v", *kept(hosts), "--yes")
        with hosts.shim_b.qemu().power_on() as there:
            refused(there, stream)  # the VM that uses it would find another state under it
        assert hosts.a.show("v")["reverted"] == 0
        qemu.leave()
    until(lambda: not hosts.a.show("v")["live"])
    with hosts.arriving(stream) as there:
        assert pcr(there) == value
        shown = hosts.b.show("v")
        assert (shown["reverted"], shown["keep"]) == (1, 2) and hosts.has() == ["b"]
    until(lambda: list((hosts.a.state / "snapshots").iterdir()) == [], what="nothing of it stays behind")
    assert hosts.b.ctl("snapshots", "v")["snapshots"] == []


def test_a_snapshot_that_cannot_be_kept_or_was_damaged_does_no_harm_to_its_vtpm(hosts: Hosts) -> None:
    hosts.a.ctl("snapshots", "v", "--keep", "2")
    with hosts.started() as qemu:
        value = extended(qemu)
        stream = saved(qemu)
        (snapshot,) = kept(hosts)
        (path,) = (hosts.a.state / "snapshots").rglob("*.blob")
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        hosts.a.ctl("revert", "v", snapshot, "--yes")
        refused(qemu, stream)
        assert "cannot come back" in hosts.shim_a.log() and hosts.a.show("v")["state"] == "running"
        qemu.boot()
        value = extended(qemu)
        path.unlink()
        path.parent.rmdir()
        path.parent.write_bytes(b"no directory")
        saved(qemu)
        assert "is not kept" in hosts.a.log() and kept(hosts) == [snapshot]
        assert pcr(qemu) == value


def test_the_audit_log_and_evidence_say_that_a_vtpm_has_gone_back(hosts: Hosts) -> None:
    hosts.a.ctl("snapshots", "v", "--keep", "1")
    with hosts.started() as qemu:
        stream = saved(qemu)
        hosts.a.ctl("revert", "v", *kept(hosts), "--yes")
        qemu.arrive(stream)
        hosts.a.ctl("snapshots", "v", "--keep", "0")
    events = audited(hosts)
    wanted = ["snapshots", "snapshot kept", "revert permitted", "reverted", "snapshots", "snapshots dropped"]
    assert [each for each in events if each in wanted] == wanted
    vtpm = hosts.a.ctl("quote", "v", "--nonce", "00" * 16)["vtpm"]
    assert (vtpm["reverted"], vtpm["snapshots"]) == (1, 0)
