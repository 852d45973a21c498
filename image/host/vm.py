"""A running VM: started, stopped, suspended to a file and restored, devices plugged and unplugged."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from image.host import machine
from image.host.agent import Agent
from image.host.machine import VmSpec
from image.host.network import Card
from image.host.process import Process
from image.host.qmp import Qmp
from manager_vm.errors import HostError, VtpmManagerError

_POLL = 0.02
_SAVE = 60.0  # seconds for saving or restoring
_UNPLUG = 30.0  # seconds for a guest to give a device back
_FULL_SPEED = 1 << 40  # bytes/s


class Vm:
    """QEMU and its monitor. The processors wait until ``go``. ``arrives``: it waits for another host's memory."""

    def __init__(self, spec: VmSpec, accelerator: str, *, restore: Path | None = None, arrives: bool = False) -> None:
        self.spec = spec
        self._slots: dict[str, str] = {}  # device -> slot
        spec.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if spec.firmware and not spec.variables.exists():
            shutil.copyfile(machine.OVMF_VARS, spec.variables)
        log = spec.directory / "qemu.log"
        with _opened(restore) as fd:
            incoming = "defer" if arrives else None if fd is None else f"fd:{fd}"
            arguments = machine.argv(spec, accelerator, incoming=incoming)
            self._process = Process(f"QEMU of {spec.name}", arguments, log, () if fd is None else (fd,))
        self.agent = Agent(spec.name, spec.agent)
        try:
            self.qmp = Qmp(spec.name, spec.monitor)
            if restore is not None:
                self._await_restored()
        except VtpmManagerError:
            self._process.wait(0.2)
            try:
                self._process.check()
            finally:
                self._process.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.running()

    def check(self) -> None:
        """HostError if QEMU has ended."""
        self._process.check()

    def go(self) -> None:
        """Let the processors run."""
        self.qmp.execute("cont")

    @property
    def uuid(self) -> str:
        """As QEMU reports it; "" for a VM that was given none."""
        found = str(self.qmp.execute("query-uuid")["UUID"])
        return found if found.strip("0-") else ""

    def power_down(self, timeout: float) -> None:
        """Press the power button and wait; HostError if the VM does not end in time."""
        self.qmp.execute("system_powerdown")
        if not self._process.wait(timeout):
            raise HostError(f"{self.spec.name} has not ended within {timeout:.0f} s; see {self.spec.console}")
        self.close()

    def kill(self) -> None:
        """Pull the plug."""
        self._process.kill()
        self.close()

    def save(self, target: Path) -> None:
        """Stop the VM and write its memory and device state; QEMU stays, stopped."""
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self.save_to(fd)
        finally:
            os.close(fd)

    def save_to(self, fd: int) -> None:
        """The same into a file or pipe."""
        self.qmp.execute("stop")
        self.qmp.execute("migrate-set-parameters", max_bandwidth=_FULL_SPEED)
        self.qmp.pass_fd("saved", fd)
        self.qmp.execute("migrate", uri="fd:saved")
        done = self._await("query-migrate", lambda info: info.get("status") in ("completed", "failed"), _SAVE)
        if done["status"] == "failed":
            raise HostError(f"{self.spec.name} cannot be saved: {done.get('error-desc', 'QEMU does not say why')}")

    def plug_ivshmem(self, id_: str, socket: Path) -> None:
        """Plug one end of a pair into an empty slot."""
        slot = self._empty_slot()
        self._add_chardev(id_, {"path": str(socket), "server": False})
        self.qmp.execute("device_add", driver="ivshmem-doorbell", id=id_, bus=slot, chardev=id_, vectors=2)
        self._slots[id_] = slot

    def plug_port(self, id_: str, name: str, socket: Path, *, server: bool) -> None:
        """Plug a virtio-serial port whose host side is ``socket``; a client reconnects for ever."""
        backend: dict[str, Any] = {"path": str(socket), "server": server}
        self._add_chardev(id_, backend | ({"wait": False} if server else {"reconnect": 1}))
        self.qmp.execute("device_add", driver="virtserialport", id=id_, bus="serial.0", chardev=id_, name=name)

    def change_port(self, id_: str, socket: Path) -> None:
        """The host side of a port that is a client is elsewhere from now on."""
        data = {"addr": {"type": "unix", "data": {"path": str(socket)}}, "server": False, "reconnect": 1}
        self.qmp.execute("chardev-change", id=id_, backend={"type": "socket", "data": data})

    def plug_card(self, id_: str, card: Card) -> None:
        """Plug a network card into an empty slot."""
        slot = self._empty_slot()
        card.path.unlink(missing_ok=True)
        local, remote = ({"type": "unix", "path": str(path)} for path in (card.path, card.switch))
        self.qmp.execute("netdev_add", type="dgram", id=f"{id_}-net", local=local, remote=remote)
        self.qmp.execute(
            "device_add", driver="virtio-net-pci", id=id_, bus=slot, netdev=f"{id_}-net", mac=card.mac, romfile=""
        )
        self._slots[id_] = slot

    def unplug(self, id_: str) -> None:
        """Take a device away; waits for the guest's driver to give it back."""
        self._delete(id_)
        self._await_chardev_free(id_)

    def unplug_card(self, id_: str) -> None:
        """The same for a card."""
        if id_ in self._slots:
            self._delete(id_)
            self.qmp.execute("netdev_del", id=f"{id_}-net")

    def _delete(self, id_: str) -> None:
        self.qmp.execute("device_del", id=id_)
        self._await("qom-list", lambda found: all(e["name"] != id_ for e in found), _UNPLUG, path="/machine/peripheral")
        self._slots.pop(id_, None)

    def pci_address(self, id_: str, timeout: float = 20.0) -> str:
        """Where the VM's kernel finds the device, e.g. 0000:03:00.0, once it has given the slot's bus a number."""
        deadline = time.monotonic() + timeout
        while True:
            for bus, device in _devices(self.qmp.execute("query-pci")):
                if device.get("qdev_id") == id_ and bus != 0:
                    return f"0000:{bus:02x}:{device['slot']:02x}.{device['function']}"
            if time.monotonic() > deadline:
                raise HostError(f"{self.spec.name} does not take up the device {id_}; has its kernel booted?")
            time.sleep(_POLL)

    def stands_in(self, spec: VmSpec) -> None:
        """Its directory, sockets and disk have these names now."""
        self.agent.close()
        self.spec = spec
        self.agent = Agent(spec.name, spec.agent)

    def close(self) -> None:
        """End QEMU if it still runs; remove its sockets; idempotent."""
        self.agent.close()
        with suppress(HostError):
            if self._process.running():
                self.qmp.execute("quit")
                self._process.wait(5)
        self.qmp.close()
        self._process.close()
        for path in (self.spec.monitor, self.spec.agent, *(path for _, path in self.spec.ports)):
            path.unlink(missing_ok=True)

    def _await_restored(self) -> None:
        try:
            self._await("query-status", lambda status: status["status"] != "inmigrate", _SAVE)
        except VtpmManagerError:
            self.qmp.close()
            raise

    def _empty_slot(self) -> str:
        free = [slot for slot in (f"slot{n}" for n in range(self.spec.slots)) if slot not in self._slots.values()]
        if not free:
            raise HostError(f"{self.spec.name} has {self.spec.slots} slots and all are used; give it more")
        return free[0]

    def _add_chardev(self, id_: str, backend: dict[str, Any]) -> None:
        path = backend.pop("path")
        data = {"addr": {"type": "unix", "data": {"path": path}}, **backend}
        self.qmp.execute("chardev-add", id=id_, backend={"type": "socket", "data": data})

    def _await_chardev_free(self, id_: str) -> None:
        deadline = time.monotonic() + _UNPLUG
        while True:
            try:
                self.qmp.execute("chardev-remove", id=id_)
                return
            except HostError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL)

    def _await(self, command: str, good: Callable[[Any], bool], timeout: float, **arguments: Any) -> Any:
        deadline = time.monotonic() + timeout
        while not good(answer := self.qmp.execute(command, **arguments)):
            self._process.check()
            if time.monotonic() > deadline:
                raise HostError(f"{self.spec.name}: {command} does not become as expected in {timeout:.0f} s: {answer}")
            time.sleep(_POLL)
        return answer

    def __enter__(self) -> Vm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _opened(path: Path | None) -> Iterator[int | None]:
    """The descriptor of a file for a child, if there is one."""
    if path is None:
        yield None
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _devices(buses: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(bus number, device) of every PCI device, those behind bridges too (QMP query-pci)."""
    for bus in buses:
        for device in bus["devices"]:
            yield bus["bus"], device
            bridge = device.get("pci_bridge", {})
            for inner in bridge.get("devices", []):
                yield inner["bus"], inner
