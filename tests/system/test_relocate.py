"""A whole manager VM moves from one host to another, with vTPMs that guests use all the time (RELOCATION.md)."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from image.host.departure import Departure, Method
from image.host.desk import Desk
from image.host.guest import Guest
from image.host.hwtpm import Arriving
from image.host.landing import Landing
from image.host.saved import Saved
from image.host.tunnel import open_file
from image.host.wires import Carrier
from manager_vm.ctl import main as vtpmctl
from manager_vm.errors import HardwareTpmError, HostError, StateError, TakenError, UnreachableError
from manager_vm.protocol.tunnel import Suite
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
    found = Landing(rack.b.host, ("127.0.0.1", 0))
    try:
        yield found
    finally:
        found.close()


def departure(rack: vms.Rack, there: Landing, method: Method, to: tuple[str, int] | None = None) -> Departure:
    receiver = rack.b.host.links.admin("status")["migration"]
    to = to or there.address
    return Departure(rack.a.host, method, receiver, to, order(rack), progress=print, follow=there)


def used(lab: vms.Lab) -> dict[str, object]:
    """What must be the same of a vTPM after the move."""
    shown = lab.vtpm("v")
    return {key: shown[key] for key in ("uuid", "ek_names", "boot", "state", "generation")}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", [Method.PRECOPY, pytest.param(Method.SUSPEND, marks=pytest.mark.full)])
def test_a_manager_moves_with_its_memory_and_the_client_of_a_vtpm_goes_on(rack: vms.Rack, method: Method) -> None:
    a, b = rack.a, rack.b
    guest = a.guest("v", Carrier.VIRTIO_SERIAL)
    client = Client(guest.vm.agent, patient=True)  # on a busy machine the kernel's 6 s may be over
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


@pytest.mark.full
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


class Meddler:
    """Between the hosts: passes all on, and from the moment on that it is told to, changes a byte or cuts."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self.hit: str = ""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    continue
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                if self.hit and len(data) > 10_000:  # of a stream that is under way
                    if self.hit == "cut":
                        break
                    data = data[:-1] + bytes([data[-1] ^ 1])
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def serves(lab: vms.Lab, value: str, guest: Guest) -> None:
    """The guest has its vTPM, as it was."""
    until(lambda: guest.vm.agent.run("tpm2_pcrread sha256:16").out == value, 60, "the guest has its TPM")
    assert lab.vtpm("v")["state"] == "running"


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("hit", ["cut", "changed"])
def test_a_tunnel_that_is_cut_or_changed_leaves_the_manager_where_it_is(rack: vms.Rack, hit: str) -> None:
    a, b = rack.a, rack.b
    guest = a.guest("v", Carrier.VIRTIO_SERIAL)
    guest.vm.agent.check("tpm2_pcrextend 16:sha256=" + "11" * 32)
    value = guest.vm.agent.check("tpm2_pcrread sha256:16")
    with landing(rack) as there, closing(Meddler(there.address)) as between:
        move = departure(rack, there, Method.PRECOPY, between.address)
        move.interrupt = lambda phase: setattr(between, "hit", hit if phase == "memory" else between.hit)
        with pytest.raises(HostError):
            move.run()
    serves(a, value, guest)
    assert b.host.links.host("relocation")["state"] == ""
    with landing(rack) as there:
        departure(rack, there, Method.PRECOPY).run()
    serves(b, value, guest)


def lose_power(there: Landing) -> None:
    """The VM that comes."""
    assert there.vm is not None
    there.vm.kill()


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_destination_vm_that_dies_behind_the_point_of_no_return_gives_the_manager_back(rack: vms.Rack) -> None:
    a, b = rack.a, rack.b
    guest = a.guest("v", Carrier.VIRTIO_SERIAL)
    value = guest.vm.agent.check("tpm2_pcrread sha256:16")
    with landing(rack) as there:
        move = departure(rack, there, Method.PRECOPY)
        move.interrupt = lambda phase: lose_power(there) if phase == "left" else None
        with pytest.raises(HostError):
            move.run()
        serves(a, value, guest)
    assert b.host.links.host("relocation")["state"] == ""


def state(lab: vms.Lab) -> object:
    """Of the vTPM, once the manager serves."""
    with suppress(UnreachableError, StateError):
        return lab.vtpm("v")["state"]
    return None


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_claim_that_fails_has_the_receiver_started_again_and_the_manager_comes_back(
    rack: vms.Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = rack.a, rack.b
    guest = a.guest("v", Carrier.VIRTIO_SERIAL)
    value = guest.vm.agent.check("tpm2_pcrread sha256:16")

    def fail(vm: object) -> None:
        raise HostError("the hardware TPM does not answer")

    with landing(rack) as there:
        monkeypatch.setattr(there, "_claim", fail)
        with pytest.raises(HostError, match="does not answer"):
            departure(rack, there, Method.PRECOPY).run()
        serves(a, value, guest)
    assert b.host.links.host("relocation")["state"] == ""


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_source_vm_that_dies_behind_the_point_of_no_return_is_started_again_and_comes_back(rack: vms.Rack) -> None:
    a = rack.a
    a.host.links.admin("create", name="v")
    a.host.links.admin("start", name="v", power_on=True)
    with landing(rack) as there:
        move = departure(rack, there, Method.PRECOPY)
        move.interrupt = lambda phase: a.host.kill_manager() if phase == "left" else None
        with pytest.raises(HostError):
            move.run()
    a.host.start_manager()
    assert a.host.links.host("relocation")["state"] == "left"
    assert vtpmctl.main(["-m", str(a.host.directory), "relocate", "--abort"]) == 0
    until(lambda: state(a) in ("failed", "running"), 60, "it serves again")
    assert rack.b.host.links.host("relocation")["state"] == ""


def copied(there: Landing, memory: Path, disk: Path, target: Path) -> Saved:
    """What a host could keep of a manager that comes: its memory file, which it can decrypt, and its disk."""
    target.mkdir()
    with open(memory, "rb") as sealed, open(target / "memory", "wb") as plain:
        assert there.key is not None
        open_file(sealed.fileno(), plain.fileno(), there.key, Suite.AES)
    shutil.move(disk, target / "state.img")
    return Saved(target)


def refuses(lab: vms.Lab, copy: Saved, why: str) -> None:
    """A second start of that memory: the manager in it is refused, forgets its keys, and does not come back."""
    lab.host.power_on_manager(copy, arriving=Arriving.KEEP)
    with pytest.raises(TakenError, match=why):
        until(lambda: claimed(lab), 60, "it answers")
    lab.manager.agent.wait(60)
    until(lambda: "the root key stays sealed" in lab.journal() or "no keyslot" in lab.journal(), 120, "it has no keys")
    lab.host.kill_manager()


def claimed(lab: vms.Lab) -> object:
    with suppress(UnreachableError, HardwareTpmError):
        return lab.host.links.host("relocate_claim", timeout=30.0) or True
    return None


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_second_start_from_a_copied_memory_file_is_refused_at_either_host(rack: vms.Rack) -> None:
    a, b = rack.a, rack.b
    a.host.links.admin("create", name="v")
    a.host.links.admin("start", name="v", power_on=True)
    kept = a.host.directory.parent
    memory, disks = kept / "memory.sealed", [kept / "disk-a", kept / "disk-b"]

    def keep(phase: str) -> None:
        if phase == "finish":
            shutil.copyfile(b.host.directory / "arriving/memory", memory)
            for disk in disks:
                shutil.copyfile(b.host.directory / "arriving/state.img", disk)

    with landing(rack) as there:
        move = departure(rack, there, Method.SUSPEND)
        move.interrupt = keep
        move.run()
        copies = [copied(there, memory, disk, kept / f"copy-{disk.name}") for disk in disks]
    assert b.vtpm("v")["state"] == "running"
    b.host.kill_manager()
    own = kept / "own.img"
    shutil.copyfile(b.host.state_disk, own)
    refuses(b, copies[1], "was here first")
    refuses(a, copies[0], "is not platform")
    shutil.copyfile(own, b.host.state_disk)
    b.host.start_manager()
    assert b.vtpm("v")["state"] == "failed"  # of an unclean death: it lost its power in this test
    assert b.host.links.host("relocation")["relocations"] == 1


@pytest.mark.full
@pytest.mark.timeout(900)
def test_vtpmctl_moves_a_manager_and_a_guest_that_stayed_behind_follows(rack: vms.Rack, capsys: Any) -> None:
    a, b = rack.a, rack.b
    guest = a.guest("v", Carrier.IVSHMEM)
    value = guest.vm.agent.check("tpm2_pcrextend 16:sha256=" + "11" * 32 + " && tpm2_pcrread sha256:16")
    with Desk(a.host), Desk(b.host):
        argv = ["relocate", "--to", str(b.host.directory), "--method", "precopy"]
        assert vtpmctl.main(["-m", str(a.host.directory), *argv]) == 0
    said = capsys.readouterr()
    assert "the manager is at the other host" in said.out and "switch over" in said.err
    assert guest.vm.agent.run("tpm2_getrandom 4", 60).status != 0
    guest.channel = ""
    b.host.take_guest(a.host.guests.pop("v"))
    serves(b, value, guest)
