"""The source host: its manager VM moves to another host (manager_vm/wire/RELOCATION.md, section 6), in named phases.

Each phase says what is true after it failed. Until ``_freeze`` the manager serves here; behind it the destination's
hardware TPM decides (``relocate_abort`` at the manager asks it), and nothing here may start it by itself.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from image.host import sparse
from image.host.guest import Guest
from image.host.host import Host
from image.host.hwtpm import Arriving
from image.host.requests import Other
from image.host.streams import Streams
from image.host.transfer import HEARD, Outgoing
from image.host.tunnel import seal_file
from image.host.wires import Carrier
from manager_vm.crypto import Key
from manager_vm.errors import ConfigError, HostError, VtpmManagerError
from manager_vm.protocol.tunnel import Suite
from manager_vm.trust.relocation import NO_POSTCOPY

log = logging.getLogger(__name__)

_AGREE = 180.0  # seconds: both TPMs quote, a keyslot is made
_PATIENCE = 120.0


class Method(StrEnum):
    """How the manager's VM moves."""

    STOP = "stop"  # vTPMs are parked, the VM ends, its disk moves, a new VM boots
    SUSPEND = "suspend"  # memory goes into an encrypted file, which moves with the disk
    PRECOPY = "precopy"  # memory and disk move while the manager serves


@dataclass(slots=True)
class Report:
    """What a move took. Times in seconds; ``bytes_sent`` through the tunnel; ``phases``: when each began."""

    method: str
    downtime: float = 0.0
    total: float = 0.0
    bytes_sent: int = 0
    phases: dict[str, float] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """For people and programs."""
        return asdict(self)


Progress = Callable[[str], None]


class Follow(Protocol):
    """Brings guests to the other host, as their own moves would."""

    def switch(self, guest: Guest) -> None:
        """Its port ends there, where the manager's VM is but does not serve yet."""

    def receive(self, guest: Guest) -> None:
        """It is there, and the manager serves."""


class Departure:
    """One move of ``host``'s manager. ``receiver``: where the receiver listens, ``to``: the other host's tunnel.

    ``limit``: bytes/s of each stream, 0: none. ``follow``: brings a guest to the other host; one left behind has no
    TPM.
    """

    def __init__(
        self,
        host: Host,
        method: Method,
        receiver: str,
        to: tuple[str, int],
        order: bytes,
        *,
        suite: Suite = Suite.AES,
        limit: int = 0,
        progress: Progress = lambda text: None,
        follow: Follow | None = None,
    ) -> None:
        self._host = host
        self._method = method
        self._receiver = receiver
        self._to = to
        self._order = order
        self._suite = suite
        self._limit = limit
        self._progress = progress
        self._follow = follow
        self._streams: Streams
        self._tasks = ExitStack()
        self._control: Other | None = None
        self._outgoing: Outgoing | None = None
        self._frozen = self._switched = False
        self._gone = False  # the destination has it
        self._began = time.monotonic()
        self._left = 0.0
        self.report = Report(str(method))
        self.interrupt: Callable[[str], None] = lambda phase: None  # tests break off here

    def run(self) -> Report:
        """Move. HostError or MigrationError: the manager serves here as before, or the message says who must act."""
        with self._tasks:
            try:
                self._move()
            except VtpmManagerError as error:
                self._recover(error)
                raise
        self.report.total = time.monotonic() - self._began
        return self.report

    def _move(self) -> None:
        self._phase("agree")
        agreed = self._host.links.host("relocate", timeout=_AGREE, order=self._order, to=self._receiver)
        self._key = key = Key(agreed["tunnel"])
        self._phase("connect")
        self._streams = self._tasks.enter_context(
            Streams(self._host.directory, self._to, key, self._suite, self._limit)
        )
        self._control = self._streams.control()
        ports = self._unplug()
        disk = self._host.state_disk.stat().st_size
        self._control.ask("begin", method=str(self._method), disk=disk, ports=ports)
        {Method.STOP: self._stop, Method.SUSPEND: self._suspend, Method.PRECOPY: self._precopy}[self._method]()
        self._phase("finish")
        self._control.ask("finish", method=str(self._method))
        self._gone = True
        self.report.downtime = time.monotonic() - self._left
        self._phase("follow")
        if self._follow is not None:
            for name in list(self._host.guests):
                self._follow.receive(self._host.guests.pop(name))
        if self._method is not Method.PRECOPY:  # a channel was plugged anew
            self.report.downtime = time.monotonic() - self._left
        self._phase("settle")
        self._settle(self._control.ask("word") if self._method is not Method.STOP else {})
        self.report.bytes_sent = self._streams.sent

    # -- methods ----------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._freeze(park=True)
        self._phase("hand over")
        self._host.links.host("relocate_hand_over", timeout=_AGREE)
        self._gone = True
        self._host.stop_manager()
        self._phase("disk")
        self._streams.send("disk", lambda fd: sparse.send(self._host.state_disk, fd))

    def _suspend(self) -> None:
        self._freeze(park=False)
        self._phase("memory")
        file = self._host.directory / "memory.sealed"
        self._tasks.callback(file.unlink, missing_ok=True)
        self._save(file)
        self._switch_over()
        self._phase("send")
        self._streams.send_file("ram", file)
        self._streams.send("disk", lambda fd: sparse.send(self._host.state_disk, fd))

    def _save(self, target: Path) -> None:
        """The VM's memory, encrypted on its way into the file."""
        readable, writable = os.pipe2(os.O_CLOEXEC)
        failed: list[Exception] = []

        def encrypt() -> None:
            try:
                with open(target, "wb") as file:
                    seal_file(readable, file.fileno(), self._key, self._suite)
            except (VtpmManagerError, OSError) as error:
                failed.append(error)
            finally:
                os.close(readable)

        thread = threading.Thread(target=encrypt, name="encrypt", daemon=True)
        thread.start()
        try:
            self._host.running_manager().save_to(writable)
        finally:
            os.close(writable)
            thread.join()
        if failed:
            raise HostError(f"the manager's memory cannot be saved: {failed[0]}")

    def _precopy(self) -> None:
        out = self._outgoing = Outgoing(self._host.running_manager())
        self._phase("disk")
        out.mirror_disk(self._streams.entrance("disk"))
        self._phase("memory")
        out.start(f"unix:{self._streams.entrance('ram')}")
        out.await_sent()
        self._freeze(park=False)
        time.sleep(HEARD)
        out.stop()
        self._phase("switch over")
        out.finish()
        self._switch_over()

    def _switch_over(self) -> None:
        """The ports of guests that follow end in the VM at the other host, which listens for them already."""
        if self._follow is not None:
            self._switched = True
            for guest in self._host.guests.values():
                self._follow.switch(guest)

    # -- parts --------------------------------------------------------------------------------------------------

    def _freeze(self, *, park: bool) -> None:
        """The point of no return."""
        self._phase("freeze")
        self._left = time.monotonic()
        self._host.links.host("relocate_freeze", timeout=_PATIENCE, park=park)
        self._frozen = True
        self._phase("left")

    def _unplug(self) -> list[list[str]]:
        """Take off what cannot move: the card, and pairs of ivshmem devices. (id, port) of the guests that stay on."""
        self._phase("unplug")
        self._host.hwtpm.arriving = Arriving.KEEP
        ports: list[list[str]] = []
        if self._method is Method.STOP:
            return ports
        manager = self._host.running_manager()
        self._host.uplink.unplug(manager)
        for guest in self._host.guests.values():
            if guest.wire is not None and guest.channel and guest.wire.carrier is Carrier.VIRTIO_SERIAL:
                ports.append([guest.wire.id, guest.channel.partition(":")[2]])
            elif guest.wire is not None and guest.channel:
                self._host.links.host("detach", name=guest.name)
                guest.wire.unplug(manager)
                guest.channel = ""
        return ports

    def _settle(self, word: dict[str, bytes]) -> None:
        """The source's TPM is given up, its VM ends, its disk is worth nothing."""
        if word:
            Outgoing(self._host.running_manager()).go_on()
            self._host.links.host("relocate_settle", timeout=_PATIENCE, **word)
            self._host.kill_manager()
        self._host.state_disk.unlink(missing_ok=True)

    def _recover(self, error: VtpmManagerError) -> None:
        """Before the point of no return the manager simply stays; behind it its place there is asked to be given up."""
        if self._gone:
            log.error("the manager is at the other host already; what is left here: %s", error)
            return
        with suppress(VtpmManagerError):
            if self._control is not None:
                self._control.ask("abort")
        with suppress(VtpmManagerError):
            (self._outgoing or Outgoing(self._host.running_manager())).cancel()
        with suppress(VtpmManagerError):
            self._host.uplink.plug(self._host.running_manager())
        try:
            self._host.links.host("relocate_abort", timeout=_AGREE)
            if self._switched:
                self._host.replug()
            self._host.wire()
            log.warning("the manager stays here: %s", error)
        except VtpmManagerError as again:
            level = logging.ERROR if self._frozen else logging.INFO
            log.log(level, "%s (left for the other host: %s); 'relocate --abort' asks again", again, self._frozen)

    def _phase(self, name: str) -> None:
        self.report.phases[name] = time.monotonic() - self._began
        self._progress(name)
        self.interrupt(name)


def parse(text: str) -> Method:
    """The method; ConfigError with the reason for one that is not done."""
    if text == "postcopy":
        raise ConfigError(NO_POSTCOPY)
    try:
        return Method(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no method; use {', '.join(Method)}") from None
