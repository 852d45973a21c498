"""QEMU's own live migration of a VM that uses its TPM all the time: its vTPM follows from manager to manager.

The managers are ``dev`` ones on this host, each with a shim; the VMs are real, and so is what QEMU says to its TPM.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from image.host import accel
from image.host.machine import VmSpec
from image.host.transfer import Incoming, Outgoing
from image.host.vm import Vm
from manager_vm.ctl.client import Client as Link
from manager_vm.errors import HostError
from manager_vm.wire import tpm
from manager_vm.wire.swtpm import Cmd
from tests.integration.conftest import managed, short_directory
from tests.integration.fake_qemu import FakeQemu
from tests.integration.harness import Manager, until
from tests.integration.shim import Shim, shimmed
from tests.integration.site import Site
from tests.integration.spoken import Spoken
from tests.integration.test_following import VM, agreed, ordered
from tests.system import vms
from tests.system.test_move import Client


class Tap:
    """Between two QEMUs: keeps all that goes from one to the other."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path, self._target = path, target
        self.seen = bytearray()
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        with suppress(OSError):
            near, _ = self._listener.accept()
            with near, socket.socket(socket.AF_UNIX) as far:
                far.connect(str(self._target))
                while data := near.recv(1 << 20):
                    self.seen += data
                    far.sendall(data)


H = TypeVar("H", bound="Hosts")


class Hosts:
    """Two managers with a shim each; the VM runs at one of them."""

    def __init__(self, directory: Path, site: Site, shims: dict[Manager, Shim]) -> None:
        self.directory, self.site, self.shims = directory, site, shims
        self._count = 0
        self.streams: list[bytes] = []
        self.vm: Vm

    def machine(self, at: Manager, *, arrives: bool) -> Vm:
        """A VM whose TPM is that of the shim there."""
        self._count += 1
        directory = self.directory / f"vm{self._count}"
        spec = VmSpec("guest", vms.IMAGES / "guest", directory, hwtpm=self.tpm(at), uuid=VM)
        return Vm(spec, accel.choose(self.directory / "accelerator", vms.IMAGES / "guest"), arrives=arrives)

    def migrate(self, to: Manager) -> float:
        """As QEMU does it; seconds for which the VM stood still."""
        there, stopped = self.arrived(to)
        there.go()
        downtime = time.monotonic() - stopped
        self.vm.close()
        self.vm = there
        return downtime

    def arrived(self, to: Manager, halfway: Callable[[], None] | None = None) -> tuple[Vm, float]:
        """It is all there and has not begun to run; when it had to stop. ``halfway``: before it does."""
        there = self.machine(to, arrives=True)
        try:
            incoming, out = Incoming(there), Outgoing(self.vm)
            incoming.listen(there.spec.directory / "ram.sock")
            with self.way(there.spec.directory / "ram.sock") as path:
                out.start(f"unix:{path}", hold=halfway is not None)
                if halfway is not None:
                    out.await_sent()
                    halfway()
                    out.stop()
                out.await_stopped()
                stopped = time.monotonic()
                out.finish()
                incoming.await_arrived()
        except BaseException:
            there.close()
            raise
        return there, stopped

    @contextmanager
    def way(self, target: Path) -> Iterator[Path]:
        """Where the VM's stream goes so that it comes to ``target``; it is kept."""
        with closing(Tap(target.with_name("tap.sock"), target)) as tap:
            yield tap.path
            self.streams.append(bytes(tap.seen))

    def tpm(self, at: Manager) -> Path:
        """Where the next QEMU finds its TPM."""
        return self.shims[at].path

    def has(self) -> list[Manager]:
        """Who has the vTPM."""
        return [each for each in (self.site.a, self.site.b) if each.ctl("list")]


@contextmanager
def two_hosts(make: Callable[[Path, Site, dict[Manager, Shim]], H]) -> Iterator[H]:
    """The VM is up at the first."""
    with short_directory() as directory, ExitStack() as stack:
        managers = []
        for name in ("m", "n"):
            (directory / name).mkdir(mode=0o711)
            managers.append(stack.enter_context(managed(directory / name, None, ())).start())
        site = Site(managers[0], managers[1])
        site.a.ctl("create", "v", "--vm", VM)
        ordered(site)
        shims = {each: stack.enter_context(shimmed(each, "v", VM)) for each in managers}
        found = make(directory, site, shims)
        found.vm = found.machine(site.a, arrives=False)
        stack.callback(lambda: found.vm.close())
        found.vm.go()
        found.vm.agent.wait(400)
        yield found


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts(Hosts) as found:
        yield found


def secret_of(manager: Manager) -> bytes:
    """Bytes that stand in the vTPM's NV, and that its guest has never read: an EK certificate."""
    with Link.connect(manager.directory / "admin.sock") as link:
        return bytes(link.call("ek_cert", name="v")["certificates"]["ecc-p384"])


def moved(hosts: Hosts, client: Client, times: int) -> list[float]:
    """There and back, so often; how long the VM stood still."""
    found = []
    for number in range(times):
        to = hosts.site.a if number % 2 else hosts.site.b
        found.append(round(hosts.migrate(to), 2))
        client.follow(hosts.vm.agent)
        client.go_on()
        assert hosts.has() == [to]
    return found


class Overheard(Hosts):
    """Whose QEMUs' words to their shims are kept."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.said: list[Spoken] = []

    def tpm(self, at: Manager) -> Path:
        self.said.append(Spoken(self.directory / f"tpm{len(self.said)}", super().tpm(at)))
        return self.said[-1].path

    def close(self) -> None:
        """Once all QEMUs are gone."""
        while self.said:
            self.said.pop().close()

    def lives(self) -> list[list[tuple[Cmd, int]]]:
        """Of all QEMUs, each from its begin to its VM's leaving."""
        return [[word for word in each.words if word[0] is not Cmd.CMD_SHUTDOWN] for each in self.said]


def moved_made_up(hosts: Hosts) -> None:
    """The same VM with QEMUs that are made up: it boots, moves there and back."""
    with ExitStack() as stack:
        qemu = stack.enter_context(FakeQemu(hosts.tpm(hosts.site.a))).boot()
        for place in (hosts.site.b, hosts.site.a):
            there = stack.enter_context(FakeQemu(hosts.tpm(place))).incoming().arrive(qemu.save())
            qemu.leave()
            assert there.insist(tpm.get_random(8))[6:10] == bytes(4)
            qemu = there


def check_moves(hosts: Hosts, times: int) -> None:
    secret = secret_of(hosts.site.a)
    client = Client(hosts.vm.agent, patient=True)
    client.go_on()
    downtimes = moved(hosts, client, times)
    assert client.end().startswith("ok ")
    assert len(hosts.streams) == times and all(len(each) > 1 << 20 for each in hosts.streams)
    assert not any(secret in each for each in hosts.streams)
    ours = [path for path in hosts.directory.rglob("*") if path.is_file() and path.parent.name.startswith("vm")]
    assert ours and not any(secret in path.read_bytes() for path in ours)
    assert hosts.site.a.show("v")["generation"] == times + 1
    assert sum(agreed(each) for each in (hosts.site.a, hosts.site.b)) == times - 1  # they had to meet first
    print(json.dumps({"downtimes": downtimes, "longest_seconds": round(client.longest(), 2)}))


@pytest.mark.timeout(900)
def test_a_vm_that_qemu_moves_there_and_back_uses_its_tpm_all_the_time_and_sees_no_error() -> None:
    with two_hosts(Overheard) as hosts, closing(hosts):
        check_moves(hosts, 2)
        real = hosts.lives()
        hosts.vm.close()
        hosts.close()
        moved_made_up(hosts)
        assert hosts.lives() == real  # what other tests' made-up QEMUs say is what QEMU says


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_vm_that_qemu_moves_ten_times_uses_its_tpm_all_the_time_and_sees_no_error(hosts: Hosts) -> None:
    check_moves(hosts, 10)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_migration_that_qemu_cannot_finish_leaves_the_vm_with_its_vtpm_where_it_was(hosts: Hosts) -> None:
    client = Client(hosts.vm.agent, patient=True)
    client.go_on()
    ordered(hosts.site, platforms=[], serial=2)  # nobody lets the vTPM follow
    with pytest.raises(HostError):
        hosts.migrate(hosts.site.b)
    until(lambda: hosts.vm.qmp.execute("query-status")["running"] or hosts.vm.qmp.execute("cont") is None, 20)
    client.go_on()
    assert hosts.has() == [hosts.site.a]
    assert client.end().startswith("ok ")
