"""Guests that know nothing of us, at hosts whose vTPMs live in real manager VMs: QEMU's TPM device, the host's shim."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import pytest

from image.host.guest import Guest
from image.host.transfer import Incoming, Outgoing
from image.host.wires import Carrier
from manager_vm.trust import standing
from manager_vm.trust.signing import SigningKey
from tests.integration.harness import until
from tests.integration.test_following import VM
from tests.system.test_follow import Tap
from tests.system.test_guest import EXTEND, PCR, PCR_WITH_ONE_EXTEND
from tests.system.test_move import Client
from tests.system.vms import Lab, Rack

ZERO = "0x" + "0" * 64
EXTEND_23, PCR_23 = EXTEND.replace(" 7:", " 23:"), PCR.replace(":7", ":23")  # no firmware measures into that


def pcr(guest: Guest) -> str:
    return guest.vm.agent.check(PCR_23, 120).strip()


def reset(lab: Lab, guest: Guest, boot: int) -> None:
    guest.vm.qmp.execute("system_reset")
    until(lambda: lab.vtpm(guest.name)["boot"] != boot, 60, "the manager has heard of the reset")
    guest.vm.agent.close()
    guest.vm.agent.wait(400)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_two_unmodified_guests_keep_their_tpms_through_the_managers_restart_and_reboot(lab: Lab) -> None:
    one, two = lab.guest("a", Carrier.SHIM), lab.guest("b", Carrier.SHIM)
    one.vm.agent.check(EXTEND_23, 120)
    assert (pcr(one), pcr(two)) == (PCR_WITH_ONE_EXTEND, ZERO)
    lab.manager.agent.check("systemctl restart vtpm-manager", 120)
    assert (pcr(one), pcr(two)) == (PCR_WITH_ONE_EXTEND, ZERO)
    lab.host.stop_manager()
    lab.host.start_manager()
    assert (pcr(one), pcr(two)) == (PCR_WITH_ONE_EXTEND, ZERO)
    reset(lab, one, int(str(lab.vtpm("a")["boot"])))
    assert pcr(one) == ZERO
    lab.host.remove_guest("b")
    assert lab.vtpm("b")["channel"] == "" and pcr(one) == ZERO
    again = lab.host.add_guest("b", Carrier.SHIM)
    again.vm.agent.wait(400)
    assert pcr(again) == ZERO


@pytest.mark.full
@pytest.mark.timeout(900)
def test_firmware_measures_the_boot_of_an_unmodified_guest_into_the_managers_vtpm(lab: Lab) -> None:
    lab.host.links.admin("create", name="a")
    guest = lab.host.add_unmodified("a", firmware=True)
    guest.vm.agent.wait(400)
    told = guest.vm.agent.check("tpm2_eventlog /sys/kernel/security/tpm0/binary_bios_measurements 2>&1", 120)
    logged = told.split("\npcrs:\n")[1].split("sha256:\n")[1].split(" 4 ")[1].split()[1]
    assert guest.vm.agent.check("tpm2_pcrread sha256:4", 120).split()[-1].lower() == logged != ZERO
    quote = "tpm2_createprimary -Q -C o -c /tmp/p && tpm2_create -Q -C /tmp/p -G ecc:ecdsa -u /tmp/u -r /tmp/r"
    guest.vm.agent.check(quote, 120)


def moved(source: Lab, destination: Lab, name: str, vm: str) -> bytes:
    """QEMU's own live migration, as a hypervisor's tools would do it; what went between the two QEMUs."""
    here, there = source.host.guests[name], destination.host.add_unmodified(name, vm, arrives=True)
    incoming, out = Incoming(there.vm), Outgoing(here.vm)
    directory = there.vm.spec.directory
    incoming.listen(directory / "ram.sock")
    with closing(Tap(directory / "tap.sock", directory / "ram.sock")) as tap:
        out.start(f"unix:{tap.path}")
        out.await_sent()
        out.stop()
        out.finish()
        incoming.await_arrived()
        there.vm.go()
    source.host.remove_guest(name)
    return bytes(tap.seen)


def standing_order(rack: Rack) -> None:
    """The VM may go between both platforms; both managers know."""
    key = SigningKey.load(rack.a.host.authority / "authority.key")
    statement = standing.give(VM, [rack.platform(rack.a), rack.platform(rack.b)], 1, key)
    for lab in (rack.a, rack.b):
        lab.host.links.admin("standing_add", statement=statement)


def has_none(lab: Lab) -> bool:
    return not lab.host.links.admin("list")


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_vm_that_qemu_moves_between_two_hosts_takes_its_vtpm_from_manager_vm_to_manager_vm(rack: Rack) -> None:
    a, b = rack.a, rack.b
    a.guest("v", Carrier.SHIM, VM)
    standing_order(rack)
    client = Client(a.host.guests["v"].vm.agent, patient=True)
    client.go_on()
    secret = bytes(a.host.links.admin("ek_cert", name="v")["certificates"]["ecc-p384"])
    for generation, (source, destination) in enumerate(((a, b), (b, a), (a, b)), 2):
        stream = moved(source, destination, "v", VM)
        client.follow(destination.host.guests["v"].vm.agent)
        client.go_on()
        assert secret not in stream and len(stream) > 1 << 20
        assert destination.vtpm("v")["generation"] == generation
        until(partial(has_none, source), 30, "the source has erased it")
    assert client.end().startswith("ok ")
    assert client.longest() < 20.0
    print(f"longest pause {client.longest():.2f} s")
