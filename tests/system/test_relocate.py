"""A whole manager VM moves from one host to another, with vTPMs that guests use all the time (RELOCATION.md)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from image.host.departure import Departure, Method
from image.host.landing import Landing
from image.host.wires import Carrier
from manager_vm.trust import relocation
from manager_vm.trust.signing import SigningKey
from tests.integration.harness import until
from tests.system import vms
from tests.system.test_move import Client, evidence


def order(rack: vms.Rack) -> bytes:
    """From a to b, as the authority of both gives it."""
    status = rack.a.host.links.admin("status")
    key = SigningKey.load(rack.a.host.authority / "authority.key")
    names = rack.platform(rack.a), rack.platform(rack.b)
    return relocation.give(status["manager"], status["relocation"]["relocations"], *names, key)


@contextmanager
def landing(rack: vms.Rack) -> Iterator[Landing]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        at = free.getsockname()[:2]
    found = Landing(rack.b.host, at)
    try:
        yield found
    finally:
        found.close()


def departure(rack: vms.Rack, there: Landing, method: Method) -> Departure:
    receiver = rack.b.host.links.admin("status")["migration"]
    return Departure(rack.a.host, method, receiver, there.address, order(rack), progress=print, follow=there)


def used(lab: vms.Lab) -> dict[str, object]:
    """What must be the same of a vTPM after the move."""
    shown = lab.vtpm("v")
    return {key: shown[key] for key in ("uuid", "ek_names", "boot", "state", "generation")}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", [Method.PRECOPY, Method.SUSPEND])
def test_a_manager_moves_with_its_memory_and_the_client_of_a_vtpm_goes_on(rack: vms.Rack, method: Method) -> None:
    a, b = rack.a, rack.b
    guest = a.guest("v", Carrier.VIRTIO_SERIAL)
    client = Client(guest.vm.agent, patient=method is Method.SUSPEND)
    client.go_on()
    before, platform = used(a), rack.platform(b)
    with landing(rack) as there:
        report = departure(rack, there, method).run()
    client.go_on()
    assert used(b) == before
    assert rack.platform(b) == platform
    said = evidence(guest, b.host.authority)
    assert f"enrolled '{platform}'" in said and "the authority approved it" in said
    assert client.end().startswith("ok ")
    assert not a.host.state_disk.exists()
    print(json.dumps({**report.told(), "longest_seconds": round(client.longest(), 2)}))


@pytest.mark.timeout(900)
def test_a_manager_moves_with_its_disk_and_boots_there_with_pcrs_and_sessions(rack: vms.Rack) -> None:
    a, b = rack.a, rack.b
    guest = a.guest("v", Carrier.IVSHMEM)
    agent = guest.vm.agent
    agent.check("tpm2_pcrextend 16:sha256=" + "11" * 32)
    agent.check("cd /root && tpm2_startauthsession --policy-session -S s.ctx && tpm2_policypcr -S s.ctx -l sha256:16")
    value, before = agent.check("tpm2_pcrread sha256:16"), used(a)
    with landing(rack) as there:
        departure(rack, there, Method.STOP).run()
    until(lambda: agent.run("tpm2_pcrread sha256:16").out == value, 60, "the guest has its TPM again")
    agent.check("cd /root && tpm2_policypcr -S s.ctx -l sha256:16 && tpm2_flushcontext s.ctx")
    assert used(b) == before
