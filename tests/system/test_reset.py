"""Resets, crashes and restarts: when a guest's PCRs may and may not go back to zero."""

from __future__ import annotations

import time

import pytest

from image.host.guest import Guest
from tests.system import vms
from tests.system.test_guest import EXTEND, PCR, PCR_WITH_ONE_EXTEND

RESET = "(sleep 0.5; echo b >/proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &"
PERSIST = """
set -e
tpm2_createprimary -Q -C o -c /root/p.ctx
tpm2_evictcontrol -Q -C o -c /root/p.ctx 0x81000001
tpm2_nvdefine -Q -C o -s 8 -a 'ownerread|ownerwrite' 0x1500001
echo -n 12345678 | tpm2_nvwrite -Q -C o -i - 0x1500001
"""
PERSISTED = """
set -e
tpm2_nvread -C o -s 8 0x1500001
tpm2_readpublic -Q -c 0x81000001
tpm2_nvread -C o -o /root/ek.der 0x1c0000a 2>/dev/null
openssl x509 -inform der -in /root/ek.der -noout -subject
"""
# straight to the TPM, no resource manager: a loaded key, a policy session that has a history, both by their handles
VOLATILE = """
set -e
cd /root
export TPM2TOOLS_TCTI=device:/dev/tpm0
tpm2_createprimary -Q -C o -c q.ctx
tpm2_startauthsession -S s.ctx --policy-session
tpm2_policypcr -S s.ctx -l sha256:7 -L policy.before
"""
VOLATILE_CHECK = """
set -e
cd /root
export TPM2TOOLS_TCTI=device:/dev/tpm0
tpm2_getcap handles-transient | grep -q 0x80
tpm2_policycommandcode -S s.ctx TPM2_CC_Unseal -L policy.after
tpm2_startauthsession -S t.ctx
tpm2_policypcr -S t.ctx -l sha256:7
tpm2_policycommandcode -S t.ctx TPM2_CC_Unseal -L policy.expected
cmp policy.after policy.expected
"""
DEVICE_IS_BACK = "for i in $(seq 300); do test -c /dev/tpmrm0 && exit 0; sleep 0.2; done; exit 1"


def reset(guest: Guest) -> None:
    """The guest's own kernel resets it; returns when it is up again."""
    boot = guest.boots.number
    guest.vm.agent.run(RESET)
    deadline = time.monotonic() + 60
    while guest.boots.number == boot:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    guest.vm.agent.close()
    guest.vm.agent.wait(240)


@pytest.mark.timeout(900)
def test_killing_the_vtpms_process_never_gives_zero_pcrs_before_a_reported_reset(lab: vms.Lab) -> None:
    guest = lab.guest()
    guest.vm.agent.check(EXTEND)
    guest.vm.agent.check(PERSIST)
    lab.manager.agent.check(f"kill -9 {lab.vtpm()['pid']}")
    time.sleep(1)
    done = guest.vm.agent.run("tpm2_pcrread sha256:7")
    assert done.status != 0 and "0x101" in done.err + done.out
    lab.manager.agent.check("systemctl restart vtpm-manager", 120)
    assert guest.vm.agent.run("tpm2_pcrread sha256:7").status != 0
    shown = lab.vtpm()
    assert shown["state"] == "failed" and "until the guest is reset" in str(shown["reason"])
    reset(guest)
    guest.vm.agent.check(DEVICE_IS_BACK, 90)
    assert int(guest.vm.agent.check(PCR), 16) == 0
    assert guest.vm.agent.check(PERSISTED).startswith("12345678")
    assert lab.vtpm()["boot"] == guest.boots.number >= 2


@pytest.mark.timeout(900)
def test_a_clean_restart_of_the_manager_vm_keeps_everything_and_a_pulled_plug_what_is_permanent(lab: vms.Lab) -> None:
    guest = lab.guest()
    agent = guest.vm.agent
    agent.check(EXTEND)
    agent.check(PERSIST)
    agent.check(VOLATILE)
    lab.host.stop_manager()
    lab.host.start_manager()
    assert agent.check(PCR).strip() == PCR_WITH_ONE_EXTEND
    assert agent.check(PERSISTED).startswith("12345678")
    agent.check(VOLATILE_CHECK)
    lab.host.kill_manager()
    lab.host.start_manager()
    done = agent.run("tpm2_pcrread sha256:7")
    assert done.status != 0
    reset(guest)
    agent.check(DEVICE_IS_BACK, 90)
    assert int(agent.check(PCR), 16) == 0
    assert agent.check(PERSISTED).startswith("12345678")


@pytest.mark.timeout(600)
def test_a_restart_of_the_daemon_is_not_noticed_by_the_guest(lab: vms.Lab) -> None:
    guest = lab.guest()
    guest.vm.agent.check(EXTEND)
    lab.manager.agent.check("systemctl restart vtpm-manager", 120)
    assert guest.vm.agent.check(PCR).strip() == PCR_WITH_ONE_EXTEND


@pytest.mark.timeout(600)
def test_a_guest_is_held_at_its_reset_until_the_manager_acknowledges_it(lab: vms.Lab) -> None:
    guest = lab.guest()
    lab.manager.agent.check("systemctl stop vtpm-manager", 120)
    guest.vm.agent.run(RESET)
    deadline = time.monotonic() + 30
    while guest.vm.qmp.execute("query-status")["status"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(3)
    assert guest.vm.qmp.execute("query-status")["status"] == "shutdown"
    lab.manager.agent.check("systemctl start vtpm-manager", 120)
    deadline = time.monotonic() + 60
    # a kernel asks for one reset in several ways; a late one is a reset of its own, held and reported like the first
    while guest.vm.qmp.execute("query-status")["status"] != "running" or lab.vtpm()["boot"] != guest.boots.number:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert guest.boots.number >= 2
