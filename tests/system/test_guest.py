"""A guest on its TPM: from tpm2-tools through the kernel driver and the channel to swtpm in the manager."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest

from image.host import demo
from image.host.wires import Carrier
from manager_vm.errors import BusyError, HostError
from manager_vm.trust import linked
from manager_vm.trust.signing import VerifyKey
from tests.system import vms

PCR_WITH_ONE_EXTEND = "0x5C85955F709283ECCE2B74F1B1552918819F390911816E7BB466805A38AB87F3"
EXTEND = "tpm2_pcrextend 7:sha256=" + "01" * 32
PCR = "tpm2_pcrread sha256:7 | tail -1 | tr -d ' ' | cut -d: -f2"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("carrier", list(Carrier))
def test_the_whole_demonstration_works_in_a_guest(lab: vms.Lab, carrier: Carrier) -> None:
    guest = lab.guest(carrier=carrier)
    demo.run_script(lab.host, guest)
    assert "demo: all good" in guest.vm.spec.console.read_text(errors="replace")
    swtpms = [line for line in vms.children_of_ours() if "swtpm" in line.split()[0]]
    assert len(swtpms) == 1 and str(lab.host.directory / "hwtpm") in swtpms[0]


@pytest.mark.timeout(600)
def test_a_second_guest_is_attached_while_the_first_works_and_both_have_their_own_tpm(lab: vms.Lab) -> None:
    first = lab.guest("a")
    first.vm.agent.check(f"rm -f /tmp/stop; ({demo.LOOP}) >/tmp/loop.out 2>&1 </dev/null &")
    second = lab.guest("b", Carrier.VIRTIO_SERIAL)
    count = first.vm.agent.check("touch /tmp/stop; sleep 3; cat /tmp/loop.out").strip()
    assert count.isdigit() and int(count) > 0
    second.vm.agent.check(EXTEND)
    assert second.vm.agent.check(PCR).strip() == PCR_WITH_ONE_EXTEND
    assert int(first.vm.agent.check(PCR).strip(), 16) == 0
    with pytest.raises(BusyError, match="serves vTPM"):
        lab.host.links.host("attach", name="b", channel=first.channel, boot=1)


@pytest.mark.timeout(600)
def test_a_guests_quote_shows_its_vtpm_the_managers_image_and_the_hardware_tpm(lab: vms.Lab) -> None:
    assert lab.host.links.admin("platform_show")["enrolled"]
    guest, nonce = lab.guest("a"), "ab" * 20
    guest.vm.agent.check(EXTEND)
    asked = f"python3 -m guest_frontend quote --device /dev/tpmrm0 --nonce {nonce} --pcrs sha256:7 --out /root/e.json"
    guest.vm.agent.check(asked, 120)
    data = guest.vm.agent.check("cat /root/e.json").encode()
    authority = VerifyKey.load(lab.host.authority / "authority.pub")
    demand = linked.Demand(authority, bytes.fromhex(nonce), datetime.now(UTC))
    said = "\n".join(linked.verify(data, demand))
    assert "vTPM PCRs: sha256:7 are as quoted" in said and PCR_WITH_ONE_EXTEND.lower()[2:] in pcrs_of(data)
    assert "the phases of the boot and the cap lead to these PCRs" in said  # the appliance's own event log
    assert "image: the authority approved it" in said


def pcrs_of(data: bytes) -> str:
    return base64.b64decode(json.loads(data)["vtpm"]["pcrs"]["sha256"]["7"]).hex()


@pytest.mark.timeout(600)
def test_a_removed_guest_leaves_its_slot_to_the_next_one(lab: vms.Lab) -> None:
    lab.guest("a")
    lab.host.remove_guest("a")
    assert lab.vtpm("a")["channel"] == ""
    lab.guest("b").vm.agent.check("tpm2_getrandom --hex 8")


@pytest.mark.timeout(600)
def test_a_guest_that_garbles_its_ring_loses_only_its_own_channel(lab: vms.Lab) -> None:
    victim, other = lab.guest("a"), lab.guest("b")
    victim.vm.agent.check("systemctl stop 'vtpm-guest@*'")
    victim.vm.agent.write("/root/garble.py", GARBLE)
    assert "closed" in victim.vm.agent.check("python3 /root/garble.py")
    other.vm.agent.check("tpm2_getrandom --hex 8")
    assert "vTPM a: channel" in lab.journal() and "producer index is impossible" in lab.journal()
    victim.vm.agent.check("systemctl start vtpm-guest@ivshmem; tpm2_getrandom --hex 8")


GARBLE = b"""
import time
from manager_vm.vchan.endpoint import State
from manager_vm.vchan.ivshmem import IvshmemClient
end = IvshmemClient("")
while end.update() is not State.OPEN:
    time.sleep(0.1)
words = end._device.view.cast("I")
for index in (48, 64, 80, 96):  # producers and consumers (CHANNEL.md, section 5)
    words[index] = 0x7FFFFFF0
end._device.kick()
for _ in range(100):
    if end.update() is State.CLOSED:
        print("closed")
        break
    time.sleep(0.1)
words.release()
end.close()
"""


def test_the_front_end_names_cause_and_remedy_where_the_kernel_lacks_the_proxy(lab: vms.Lab) -> None:
    guest = lab.guest()
    done = guest.vm.agent.run(
        "systemctl stop 'vtpm-guest@*'; rmmod tpm_vtpm_proxy; python3 -m guest_frontend device ivshmem"
    )
    assert done.status == 3 and "modprobe tpm_vtpm_proxy" in done.err


def test_a_slot_is_an_error_when_all_are_used(lab: vms.Lab) -> None:
    guest = lab.guest()
    with pytest.raises(HostError, match="all are used"):
        guest.vm.plug_ivshmem("another", guest.vm.spec.directory / "none")
