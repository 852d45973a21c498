"""The destination host: where a manager VM arrives (manager_vm/wire/RELOCATION.md, section 6).

It waits until the receiver keeps a place and takes the tunnel's key from it; what then comes through the tunnel is
from the source's host. Post-condition of ``finish``: the manager that came serves here and the receiver is gone; or it
failed before the claim, the receiver is as before (or can be started), and the source can be told to go on.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from image.host import requests, sparse, stored, streams
from image.host.guest import Guest
from image.host.host import Host
from image.host.hwtpm import Arriving
from image.host.links import Links
from image.host.requests import Server
from image.host.stored import Stored
from image.host.transfer import Incoming
from image.host.tunnel import Exit
from image.host.vm import Vm
from manager_vm.crypto import Key
from manager_vm.errors import HardwareTpmError, HostError, UnreachableError, VtpmManagerError
from manager_vm.protocol.tunnel import Suite

log = logging.getLogger(__name__)

STREAMS = ("control", "disk", "ram")
_LOOK = 0.1  # seconds between looks at the receiver
_CLAIM = 120.0


class Landing:
    """For one attempt of one manager. ``address``: where the tunnel ends, once the receiver keeps a place."""

    def __init__(self, host: Host, at: tuple[str, int], suite: Suite = Suite.AES) -> None:
        self._host = host
        self._at = at if at[1] else streams.free_port(at[0])
        self._suite = suite
        self._directory = host.directory / "arriving"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._tasks = ExitStack()
        self._closing = threading.Event()
        self.key: Key | None = None  # of the tunnel and of memory files, once the receiver has given it
        self.vm: Vm | None = None  # that comes
        self.busy = False  # a manager is on its way
        self._incoming: Incoming
        self._stored = Stored()
        self.arrived = threading.Event()  # the manager that came is the manager here
        self._thread = threading.Thread(target=self._wait, name="landing", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) of the tunnel's end."""
        return self._at

    def switch(self, guest: Guest) -> None:
        """Its port, if it has one, ends in the VM that comes."""
        if guest.wire is not None and (port := self._port(guest.wire.id)).exists():
            guest.wire.follow(guest.vm, port)

    def receive(self, guest: Guest) -> None:
        """A guest that has followed its vTPM: its channel ends at the manager here from now on."""
        if guest.wire is None or not self._port(guest.wire.id).exists():
            guest.channel = ""  # it is plugged
        self._host.take_guest(guest)

    def close(self) -> None:
        """Idempotent. A manager that has arrived stays."""
        self._closing.set()
        self._thread.join()
        self._tasks.close()
        self._clear()

    def _wait(self) -> None:
        """Until the receiver keeps a place: then its tunnel is opened."""
        while not self._closing.wait(_LOOK):
            with suppress(VtpmManagerError):
                found = self._host.links.host("relocation", timeout=5.0)
                if found["state"] == "expecting":
                    self.key = Key(self._host.links.host("relocate_tunnel", move=found["move"])["tunnel"])
                    break
        if self.key is not None:
            try:
                self._open(self.key)
            except (VtpmManagerError, OSError) as error:  # the source is told that it cannot be reached
                log.error("the tunnel at %s:%d cannot be opened: %s; abort the move at its source", *self._at, error)

    def _open(self, key: Key) -> None:
        verbs = requests.by(self._host.spawner, self._verbs())
        self._tasks.enter_context(Server(self._path("control"), verbs, self._lost))
        sockets = {name: self._path(name) for name in STREAMS}
        self._tasks.enter_context(Exit(self._at, key, self._suite, sockets))

    def _path(self, stream: str) -> Path:
        return self._directory / f"{stream}.sock"

    # -- requests of the source's host ------------------------------------------------------------------------

    def _verbs(self) -> dict[str, Callable[..., Any]]:
        return {
            "hello": lambda: None,
            "begin": self._begin,
            "finish": self._finish,
            "word": self._word,
            "abort": self._abort,
        }

    def _begin(self, method: str, disk: int, ports: list[list[str]]) -> None:
        """Room for the disk, and who takes the streams. ``ports``: (id, name) of the guests' ports that come along."""
        self.busy = True
        with open(self._disk, "wb") as file:
            os.truncate(file.fileno(), disk)
        if method != "stop":
            self._prepare_vm(ports)
        if method == "precopy":
            self._incoming.export_disk(self._path("disk"))
            self._incoming.listen(self._path("ram"))
            return
        self._stored.take(self._path("disk"), lambda fd: sparse.receive(fd, self._disk))
        if method == "suspend":
            self._stored.take(self._path("ram"), stored.memory_into(self._memory))

    def _prepare_vm(self, ports: list[list[str]]) -> None:
        """QEMU that waits for the memory of the manager; its TPM is this host's."""
        host = self._host
        host.hwtpm.arriving = Arriving.KEEP
        links = Links(self._directory)
        spec = host.manager_spec(host.hwtpm.socket)
        spec = replace(spec, directory=self._directory / "vm", ports=links.ports, state_disk=self._disk)
        self.vm = vm = Vm(spec, host.accelerator, arrives=True)
        for id_, name in ports:
            vm.plug_port(id_, name, self._port(id_), server=True)
        self._incoming = Incoming(vm)

    def _port(self, id_: str) -> Path:
        return self._directory / f"{id_}.port"

    def _finish(self, method: str) -> None:
        """Everything has come: be the host of this manager."""
        self._stored.wait()
        if method == "stop":
            self._boot()
            return
        if method == "suspend" and self.key is not None:
            stored.decrypted(self._memory, self.key, self._suite, self._incoming.read)
            self._memory.unlink()
        if (vm := self.vm) is None:
            raise HostError("no VM of a manager has come")
        self._incoming.await_arrived()
        self._incoming.close_export()
        self._end_receiver()  # the hardware TPM has one user
        vm.go()
        self._claim(vm)
        self.arrived.set()  # whatever happens now: it can be at no other place
        try:
            self._move_in(vm)
        except (VtpmManagerError, OSError) as error:
            log.error("the manager that came is here to stay, but not in its place: %s; start its VM again here", error)
            raise
        finally:
            self.busy = False

    def _word(self) -> dict[str, bytes]:
        """That the manager is here, for the source: also where its card makes trouble."""
        word: dict[str, bytes] = self._host.links.host("relocate_claimed", timeout=_CLAIM)
        try:
            self._host.plug_card()
        except VtpmManagerError as error:
            log.error("the manager that has come has no network: %s; restart its VM when it serves nobody", error)
        return word

    def _boot(self) -> None:
        """A new VM on the disk that has come; the receiver has claimed for it."""
        self._end_receiver()
        os.replace(self._disk, self._host.state_disk)
        self._host.start_manager(arriving=Arriving.KEEP)
        self.arrived.set()
        self.busy = False

    def _end_receiver(self) -> None:
        """It has done what it is for."""
        host = self._host
        if host.manager is not None:
            host.kill_manager()

    def _claim(self, vm: Vm) -> None:
        """Have the manager be the manager here; it may still wait for the TPM."""
        links = Links(self._directory)
        deadline = time.monotonic() + _CLAIM
        while True:
            try:
                links.host("relocate_claim", timeout=_CLAIM)
                return
            except (UnreachableError, HardwareTpmError):
                vm.check()
                if time.monotonic() > deadline:
                    raise
            time.sleep(_LOOK)

    def _move_in(self, vm: Vm) -> None:
        """Its files have the names of this host's manager from now on."""
        host = self._host
        shutil.rmtree(host.directory / "manager", ignore_errors=True)
        os.replace(self._directory / "vm", host.directory / "manager")
        os.replace(self._disk, host.state_disk)
        for (_, new), (_, old) in zip(host.links.ports, Links(self._directory).ports, strict=True):
            os.replace(old, new)
        vm.stands_in(host.manager_spec(host.hwtpm.socket))
        host.take_over(vm)

    def _abort(self) -> None:
        """Nothing comes: what was prepared is gone, the receiver stays, or is started again to say so."""
        if self.arrived.is_set():
            raise HostError("the manager is here, and serves")
        self._clear()
        if self._host.manager is None:
            self._host.start_manager(arriving=Arriving.KEEP)

    def _lost(self) -> None:
        """The source's host has hung up: in order, or in the middle of something."""
        if self.busy and not self.arrived.is_set() and not self._closing.is_set():
            log.warning("the source's host was lost before its manager had come")
            try:
                self._host.spawner.submit(self._abort).result()
            except VtpmManagerError as error:
                log.error("the receiver cannot be started again: %s", error)

    def _clear(self) -> None:
        """Nothing of a manager that has not arrived is left."""
        self._stored.close()
        if not self.arrived.is_set():
            if self.vm is not None:
                self.vm.close()
                self.vm = None
            for file in (self._disk, self._memory):
                file.unlink(missing_ok=True)
        self.busy = False

    @property
    def _disk(self) -> Path:
        return self._directory / "state.img"

    @property
    def _memory(self) -> Path:
        """Encrypted."""
        return self._directory / "memory"
