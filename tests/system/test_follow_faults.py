"""QEMU moves a VM, and something is lost on the way: the VM that goes on has its vTPM, the other place has none.

One case of each class of tests/integration/test_following_faults.py, with real VMs and QEMUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from manager_vm.errors import HostError
from tests.integration.harness import Manager, until
from tests.system.test_follow import Hosts, two_hosts
from tests.system.test_move import Client

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]
COUNTER = 0x1500017  # of tests/system/worker.py


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts(Hosts) as found:
        yield found


def check_places(hosts: Hosts, here: Manager) -> None:
    other = hosts.site.a if here is hosts.site.b else hosts.site.b
    until(lambda: hosts.has() == [here], 30, "one manager has the vTPM")
    assert other.swtpms() == [] and here.swtpms() == [here.swtpm_pid("v")]
    moves = [move for each in (hosts.site.a, hosts.site.b) for move in each.ctl("migrations")]
    assert not [move for move in moves if not move["ended"]], moves


def goes_on_there(hosts: Hosts, client: Client) -> None:
    """``hosts.vm`` is the one that has come."""
    client.follow(hosts.vm.agent)
    client.go_on()
    check_places(hosts, hosts.site.b)
    assert client.end().startswith("ok ")


def goes_on_here(hosts: Hosts, client: Client) -> None:
    """``hosts.vm`` is the one that has stayed."""
    running = hosts.vm.qmp.execute
    until(lambda: running("query-status")["running"] or running("cont") is None, 20, "the VM that has stayed runs")
    client.go_on()
    check_places(hosts, hosts.site.a)
    assert client.end().startswith("ok ")


def test_qemu_of_the_source_dies_behind_the_switch_over_and_the_vm_goes_on_there(hosts: Hosts) -> None:
    client = Client(hosts.vm.agent, patient=True)
    client.go_on()
    there, _ = hosts.arrived(hosts.site.b)
    hosts.vm.kill()
    hosts.vm = there
    there.go()
    goes_on_there(hosts, client)


def test_qemu_of_the_destination_dies_before_the_first_command_and_the_vm_goes_on_here(hosts: Hosts) -> None:
    client = Client(hosts.vm.agent, patient=True)
    client.go_on()
    there, _ = hosts.arrived(hosts.site.b)
    assert hosts.site.b.ctl("list")
    there.kill()
    goes_on_here(hosts, client)


def test_the_shim_of_the_destination_dies_while_the_vm_arrives_and_the_vm_goes_on_here(hosts: Hosts) -> None:
    client = Client(hosts.vm.agent, patient=True)
    client.go_on()
    shim = hosts.shims[hosts.site.b]
    with pytest.raises(HostError):
        hosts.arrived(hosts.site.b, shim.kill)
    shim.start()
    goes_on_here(hosts, client)


def test_the_sources_manager_dies_between_stream_and_first_command_and_the_vm_sees_nothing(hosts: Hosts) -> None:
    client = Client(hosts.vm.agent, patient=True)
    client.go_on()
    there, _ = hosts.arrived(hosts.site.b)
    hosts.site.a.kill()
    hosts.site.a.start()
    hosts.vm.close()
    hosts.vm = there
    there.go()
    goes_on_there(hosts, client)


def test_the_destinations_manager_dies_between_stream_and_first_command_and_the_vm_needs_a_reset(hosts: Hosts) -> None:
    client = Client(hosts.vm.agent, patient=True)
    client.go_on()
    assert client.end().startswith("ok ")
    count = counted(hosts)
    with ExitStack() as stack:
        there, _ = hosts.arrived(hosts.site.b)
        stack.callback(hosts.vm.close)
        hosts.site.b.kill()
        hosts.site.b.start()
    hosts.vm = there
    there.go()
    failed = there.agent.run("tpm2_pcrread sha256:16", 120)
    assert failed.status != 0 and "0x101" in failed.err
    check_failed(hosts)
    there.qmp.execute("system_reset")
    until(lambda: hosts.site.b.show("v")["state"] == "running", 60, "the reset is a boot")
    there.agent.wait(400)
    assert counted(hosts) == count
    check_places(hosts, hosts.site.b)


def check_failed(hosts: Hosts) -> None:
    until(lambda: hosts.has() == [hosts.site.b], 30, "one manager has the vTPM")
    assert hosts.site.b.show("v")["state"] == "failed" and hosts.site.a.swtpms() == []


def counted(hosts: Hosts) -> str:
    """The client's counter in the vTPM, hex."""
    return hosts.vm.agent.check(f"tpm2_nvread {COUNTER:#x} -C {COUNTER:#x} -s 8 | od -An -tx1", 120).strip()
