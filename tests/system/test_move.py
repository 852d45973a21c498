"""Two manager VMs on two hosts with hardware TPMs of their own: a vTPM that a guest uses all the time moves."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from image.host.agent import Agent
from image.host.guest import Guest
from image.host.wires import GUEST_PORT, Carrier
from manager_vm.ctl import main as vtpmctl
from manager_vm.errors import UnknownVtpmError, UnreachableError
from manager_vm.trust import linked
from manager_vm.trust.signing import VerifyKey
from tests.integration.harness import until
from tests.system import vms

WORKER = Path(__file__).with_name("worker.py")
SESSION = vms.ROOT / "tests" / "hmac_session.py"
ROUNDS = 5  # that the client makes before, between and after the moves
CHANNELS = f"ivshmem,virtio-serial:{GUEST_PORT}"


def move(source: vms.Lab, to: vms.Lab, name: str = "v") -> None:
    """As an operator does it."""
    assert vtpmctl.main(["-m", str(source.host.directory), "migrate", name, "--to", str(to.host.directory)]) == 0


def reached_at(lab: vms.Lab) -> str:
    """Where the manager says that others reach it, "" while it starts."""
    try:
        return str(lab.host.links.admin("status", timeout=2.0)["migration"])
    except UnreachableError:
        return ""


def use_both_channels(agent: Agent) -> None:
    """The front end has a list of channels from now on."""
    agent.check(f"systemctl mask --runtime $(systemd-escape --template vtpm-guest@.service virtio-serial:{GUEST_PORT})")
    agent.check("systemctl stop 'vtpm-guest@*'")
    agent.check(f"systemctl start $(systemd-escape --template vtpm-guest@.service {CHANNELS})", 120)


class Client:
    """tests/system/worker.py in the guest."""

    def __init__(self, agent: Agent, *, patient: bool = False) -> None:
        self._agent = agent
        agent.check("mkdir -p /root/tests")
        agent.write("/root/tests/hmac_session.py", SESSION.read_bytes())
        agent.write("/root/worker.py", WORKER.read_bytes())
        agent.check("rm -f /tmp/stop /tmp/end /tmp/log; touch /tmp/log")
        mode = "patient" if patient else ""
        agent.check(f"python3 /root/worker.py {mode} </dev/null >/tmp/worker.err 2>&1 &")

    def follow(self, agent: Agent) -> None:
        """Its guest is in another VM now."""
        self._agent = agent

    def go_on(self) -> int:
        """Wait for some more rounds; how many there are."""
        step = "sleep 0.2; test ! -e /tmp/end || exit 1"
        done = self._agent.run(
            f"n=$(wc -l </tmp/log); while [ $(wc -l </tmp/log) -lt $((n + {ROUNDS})) ]; do {step}; done", 120
        )
        assert done.status == 0, self.said()
        return int(self._agent.check("wc -l </tmp/log"))

    def end(self) -> str:
        """Have it stop; what it says in the end."""
        self._agent.check("touch /tmp/stop; while ! test -e /tmp/end; do sleep 0.2; done", 60)
        return self.said()

    def said(self) -> str:
        return self._agent.check("cat /tmp/end /tmp/worker.err")

    def longest(self) -> float:
        """Seconds between two rounds, at most."""
        times = [float(line.split()[1]) for line in self._agent.check("cat /tmp/log").splitlines()]
        return max(later - sooner for sooner, later in pairwise(times))


def evidence(guest: Guest, authority: Path) -> str:
    """The guest's own quote, linked to its vTPM and the platform under it, verified offline: what is proven."""
    nonce = "cd" * 20
    asked = f"python3 -m guest_frontend quote --device /dev/tpmrm0 --nonce {nonce} --pcrs sha256:16 --out /root/e.json"
    guest.vm.agent.check(asked, 120)
    data = guest.vm.agent.check("cat /root/e.json").encode()
    demand = linked.Demand(VerifyKey.load(authority / "authority.pub"), bytes.fromhex(nonce), datetime.now(UTC))
    return "\n".join(linked.verify(data, demand))


@contextmanager
def expected(lab: vms.Lab, guest: Guest, channel: str) -> Iterator[threading.Thread]:
    """The host wires the vTPM as soon as it is there."""
    thread = lab.host.visits.expect(guest, channel)
    yield thread
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_vtpm_in_use_moves_to_another_host_and_back_and_its_guest_sees_no_error(rack: vms.Rack) -> None:
    a, b = rack.a, rack.b
    guest = a.guest("v")
    there = b.host.visits.plug(b.manager, guest, Carrier.VIRTIO_SERIAL)
    use_both_channels(guest.vm.agent)
    before, certificates = a.vtpm("v"), a.host.links.admin("ek_cert", name="v")
    client = Client(guest.vm.agent)
    client.go_on()

    with expected(b, guest, there):
        move(a, b)
    client.go_on()
    with pytest.raises(UnknownVtpmError):
        a.vtpm("v")
    shown = b.vtpm("v")
    assert {key: shown[key] for key in ("uuid", "ek_names", "boot", "group", "state")} == {
        key: before[key] for key in ("uuid", "ek_names", "boot", "group", "state")
    }
    assert b.host.links.admin("ek_cert", name="v") == certificates
    said = evidence(guest, b.host.authority)
    assert f"enrolled '{rack.platform(b)}'" in said and rack.platform(a) not in said
    assert "the authority approved it" in said and "generation 2" in said

    listens = a.host.links.admin("status")["migration"]
    a.manager.agent.check("systemctl restart vtpm-manager", 120)
    until(lambda: reached_at(a) == listens, 60, "the manager was told its address again")

    with expected(a, guest, guest.channel):
        move(b, a)
    rounds = client.go_on()
    said = evidence(guest, a.host.authority)
    assert f"enrolled '{rack.platform(a)}'" in said and rack.platform(b) not in said and "generation 3" in said
    assert client.end().startswith("ok ")
    (out, into), (came, left) = (lab.host.links.admin("migrations") for lab in (a, b))
    assert [out["state"], into["state"], came["state"], left["state"]] == ["done", "committed", "committed", "done"]
    assert out["receipt"]["received"] == came["receipt"]["sent"]
    print(json.dumps({"rounds": rounds, "longest_seconds": round(client.longest(), 2)}))


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_destination_that_loses_its_power_in_a_move_leaves_one_vtpm_that_can_run(rack: vms.Rack) -> None:
    a, b = rack.a, rack.b
    a.host.links.admin("create", name="v")
    uuid = a.vtpm("v")["uuid"]
    argv = ["-m", "manager_vm.ctl", "-m", str(a.host.directory), "migrate", "v", "--to", str(b.host.directory)]
    with subprocess.Popen([sys.executable, *argv], cwd=vms.ROOT) as migrate:
        until(lambda: any(row["state"] == "arriving" for row in b.host.links.admin("list")), 60, "it has arrived")
        b.host.kill_manager()
        assert migrate.wait(120) in (22, 23)  # given up, or given away and not confirmed
    b.host.start_manager()

    def places() -> list[str]:
        found = [(lab, row) for lab in (a, b) for row in lab.host.links.admin("list") if row["uuid"] == uuid]
        runnable = [row["state"] for _, row in found if row["state"] in ("off", "parked", "failed", "running")]
        assert len(runnable) <= 1, found
        return runnable if len(found) == 1 else []

    until(places, 120, "the vTPM is at one host")
    assert all(move["ended"] for lab in (a, b) for move in lab.host.links.admin("migrations"))
