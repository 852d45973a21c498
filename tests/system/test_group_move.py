"""A guest and its vTPM go together to another host, in order; the manager there checks whose vTPM it is (R6)."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from image.host.desk import Desk
from image.host.guest import Guest
from image.host.guest_landing import GuestLanding
from image.host.guest_move import GuestMove
from image.host.machine import VmSpec
from image.host.wires import Carrier
from manager_vm.ctl import main as vtpmctl
from manager_vm.errors import BoundError, HostError, MigrationError, UnknownVtpmError
from manager_vm.trust import order
from manager_vm.trust.signing import SigningKey
from tests.system import vms
from tests.system.test_move import Client, evidence

OURS, OTHER = "6f2c0a51-5a0e-4f0c-8f5b-0d7f0c6f2f11", "11111111-2222-4333-8444-555555555555"


def used(lab: vms.Lab) -> dict[str, object]:
    """What must be the same of the vTPM after the move."""
    shown = lab.vtpm("v")
    return {key: shown[key] for key in ("uuid", "ek_names", "boot", "state", "vm")}


def boot_of(guest: Guest) -> str:
    """Which boot of its kernel the guest is in."""
    return guest.vm.agent.check("cat /proc/sys/kernel/random/boot_id")


def demand_nothing_of_it(lab: vms.Lab) -> None:
    """Neither the guest nor its vTPM is at this host."""
    assert not lab.host.guests
    with pytest.raises(UnknownVtpmError):
        lab.vtpm("v")
    assert not [line for line in vms.children_of_ours() if f"{lab.host.directory}/guests/v/" in line]


@pytest.mark.timeout(900)
def test_a_guest_moves_with_its_vtpm_and_its_client_sees_no_error(
    rack: vms.Rack, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = rack.a, rack.b
    guest = a.guest("v", Carrier.VIRTIO_SERIAL, OURS)
    assert guest.uuid == OURS
    before, boot = used(a), boot_of(guest)
    with pytest.raises(BoundError, match=f"belongs to VM {OURS}"):
        a.host.links.host("attach", name="v", channel=guest.channel, boot=guest.boots.number, vm=OTHER)
    client = Client(guest.vm.agent)
    client.go_on()
    capsys.readouterr()

    where = [str(lab.host.directory) for lab in (a, b)]
    with Desk(a.host), Desk(b.host):
        assert vtpmctl.main(["-m", where[0], "--json", "migrate", "v", "--to", where[1], "--with-guest"]) == 0
    told = json.loads(capsys.readouterr().out)

    there = b.host.guests["v"]
    client.follow(there.vm.agent)
    rounds = client.go_on()
    assert used(b) == before and boot_of(there) == boot and (there.uuid, there.boots.number) == (OURS, before["boot"])
    demand_nothing_of_it(a)
    said = evidence(there, b.host.authority)
    assert f"enrolled '{rack.platform(b)}'" in said and rack.platform(a) not in said and "generation 2" in said
    assert client.end().startswith("ok ")
    print(json.dumps({**told, "rounds": rounds, "longest_seconds_in_guest": round(client.longest(), 2)}))


class MixedUp(GuestLanding):
    """Of a host that takes the guest for another VM."""

    def _spec(self, name: str, vm: str) -> VmSpec:
        return super()._spec(name, OTHER)


def mover(
    rack: vms.Rack, there: GuestLanding, *, back: bool = True, progress: Callable[[str], None] = print
) -> GuestMove:
    """From a to b, by orders as the authority of both gives them."""
    a, b = rack.a, rack.b
    uuid, generation = str(a.vtpm("v")["uuid"]), int(str(a.vtpm("v")["generation"]))
    names, key = (rack.platform(a), rack.platform(b)), SigningKey.load(a.host.authority / "authority.key")

    def way_back() -> bytes:
        return order.give(uuid, generation + 1, names[1], names[0], key)

    receiver, ordered = b.host.links.admin("status")["migration"], order.give(uuid, generation, *names, key)
    again = way_back if back else None
    return GuestMove(a.host, "v", receiver, there.address, ordered, back=again, progress=progress)


REFUSED = f"belongs to VM {OURS} and is not served to VM {OTHER}"


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_vtpm_of_another_vm_is_refused_at_arrival_and_the_guest_works_where_it_was(rack: vms.Rack) -> None:
    a, b = rack.a, rack.b
    guest = a.guest("v", Carrier.VIRTIO_SERIAL, OURS)
    boot = boot_of(guest)
    client = Client(guest.vm.agent)
    client.go_on()
    with MixedUp(b.host, str(a.vtpm("v")["uuid"])) as there:
        with pytest.raises(HostError, match=f"{REFUSED}.*runs here again"):
            mover(rack, there).run()
        demand_nothing_of_it(b)
    rounds = client.go_on()
    assert (a.vtpm("v")["generation"], a.vtpm("v")["vm"]) == (3, OURS) and boot_of(guest) == boot
    assert f"enrolled '{rack.platform(a)}'" in evidence(guest, a.host.authority)
    assert client.end().startswith("ok ")
    print(json.dumps({"rounds": rounds, "longest_seconds_in_guest": round(client.longest(), 2)}))


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_guest_whose_move_fails_runs_on_or_stands_still_until_its_vtpm_is_back(rack: vms.Rack) -> None:
    a, b = rack.a, rack.b
    guest = a.guest("v", Carrier.VIRTIO_SERIAL, OURS)
    uuid = str(a.vtpm("v")["uuid"])
    client = Client(guest.vm.agent)
    client.go_on()

    with GuestLanding(b.host, uuid) as there:
        move = mover(rack, there, progress=lambda phase: there.close() if phase == "stop" else None)
        with pytest.raises((HostError, MigrationError)):  # the other host is gone before the vTPM leaves
            move.run()
    client.go_on()
    assert (a.vtpm("v")["generation"], a.vtpm("v")["state"]) == (1, "running")
    demand_nothing_of_it(b)

    with MixedUp(b.host, uuid) as there, pytest.raises(HostError, match=f"{REFUSED}.*stands still here.*resume-guest"):
        mover(rack, there, back=False).run()
    assert not guest.vm.qmp.execute("query-status")["running"]
    assert b.vtpm("v")["generation"] == 2 and not b.host.guests
    where = [str(lab.host.directory) for lab in (a, b)]
    with Desk(a.host):
        assert vtpmctl.main(["-m", where[0], "resume-guest", "v"]) == UnknownVtpmError.exit_code
        assert not guest.vm.qmp.execute("query-status")["running"]
        assert vtpmctl.main(["-m", where[1], "migrate", "v", "--to", where[0]]) == 0
        assert vtpmctl.main(["-m", where[0], "resume-guest", "v"]) == 0
    client.go_on()
    assert client.end().startswith("ok ")
