"""Which channel serves which vTPM: end points opened and closed as the host side says (attach, detach)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from manager_vm.errors import BusyError, ConfigError, StateError, VtpmManagerError
from manager_vm.server.attestor import Attestor
from manager_vm.server.guest_channel import GuestChannel
from manager_vm.store import atomic
from manager_vm.vchan import address
from manager_vm.vchan.address import Address, Kind
from manager_vm.vchan.endpoint import Endpoint
from manager_vm.vchan.lanes import Lanes
from manager_vm.vtpm import binding
from manager_vm.vtpm.registry import Registry

log = logging.getLogger(__name__)

GUEST_LOCALITIES, SHIM_LOCALITIES = frozenset({0}), frozenset(range(5))


class Wiring:
    """Thread-safe. One channel per vTPM, one vTPM per channel.

    ``own_channels``: the directory where a manager that is its own host side serves vTPMs, None for others.
    ``lanes``: the carrier that the guests of QEMU shims share, None if there is none. ``wanted``: see ``GuestChannel``.
    """

    def __init__(
        self,
        registry: Registry,
        deadline: float,
        attestor: Attestor,
        own_channels: Path | None = None,
        lanes: Lanes | None = None,
        wanted: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._wanted = wanted
        self._lanes = lanes
        self._own_channels = own_channels
        self._registry = registry
        self._attestor = attestor
        self._deadline = deadline
        self._channels: dict[str, GuestChannel] = {}
        self._ending: set[str] = set()  # vTPMs whose channel is being closed
        self._latest: float | None = None  # the manager stops: no command executes after this
        self._lock = threading.Lock()

    def default_channel(self, name: str) -> str:
        """Where a manager that is its own host side serves a vTPM; ConfigError for others."""
        if self._own_channels is None:
            raise ConfigError("name the channel: ivshmem[:PCI-ADDRESS] or virtio-serial:NAME")
        atomic.make_directory(self._own_channels)
        return f"unix:{self._own_channels / name}.sock"

    def attach(self, name: str, channel: str, vm: str = "") -> bool:
        """Serve vTPM ``name`` on ``channel``; a broken channel is reopened. False: the same pair again, no change.

        ``vm``: UUID of the VM at the channel's other end; BoundError if the vTPM belongs to another one.
        """
        self._demand_possible(name, address.parse(channel), vm)
        with self._lock:
            self._refuse_double(name, channel)
            if self._is_served(name):
                return False
            self._registry.get(name).named = 0  # before the channel serves anybody
            self._open(name, channel)
            try:
                self._registry.wire(name, channel, vm)
            except VtpmManagerError:
                self._channels.pop(name).close()
                raise
        log.info("vTPM %s: attached to %s", name, channel)
        return True

    def detach(self, name: str) -> None:
        """Stop serving the vTPM and free its channel; the vTPM itself goes on."""
        with self._lock:
            found = self._channels.get(name)
            if found is None and not self._registry.record(name).channel:
                raise StateError(f"vTPM {name!r} is not attached to any channel")
            self._refuse_ending(name)
            self._ending.add(name)
        try:
            if found is not None:
                found.close()  # may take as long as the command that executes: others must not wait for it
            self._registry.wire(name, "")
        finally:
            with self._lock:
                self._channels.pop(name, None)
                self._ending.remove(name)
        log.info("vTPM %s: detached", name)

    def reopen(self) -> None:
        """Open what the records say and nobody serves. A channel that is not there (yet) is reported, no more."""
        for vtpm in self._registry.all():
            channel = self._registry.record(vtpm.name).channel
            if channel:
                try:
                    with self._lock:
                        if not self._is_served(vtpm.name):
                            self._open(vtpm.name, channel)
                except VtpmManagerError as error:
                    log.warning("vTPM %s: channel %s cannot be opened: %s", vtpm.name, channel, error)

    def open_on(self, name: str) -> bool:
        """Whether the vTPM's channel is open."""
        with self._lock:
            return self._is_served(name)

    def hold(self, only: str = "") -> None:
        """No channel serves anything until ``release``; ``only``: that of this vTPM."""
        with self._lock:
            for name, channel in self._channels.items():
                if only in ("", name):
                    channel.hold()

    def release(self, only: str = "") -> None:
        """All go on, or ``only`` that of this vTPM."""
        with self._lock:
            for name, channel in self._channels.items():
                if only in ("", name):
                    channel.release()

    def hasten(self, grace: float) -> None:
        """Before ``close``: one guest's long command must not cost all others their orderly park."""
        with self._lock:
            self._latest = time.monotonic() + grace
            for channel in self._channels.values():
                channel.hasten(grace)

    def close(self) -> None:
        """Stop all channels; commands that execute are finished first."""
        with self._lock:
            for channel in self._channels.values():
                channel.begin_close()
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()

    def _open(self, name: str, channel: str) -> None:
        old = self._channels.get(name)
        if old is not None and old.finishing:
            raise BusyError(f"the last command on the channel of vTPM {name!r} still executes; try again")
        if old is not None:
            self._channels.pop(name).close()
        where = address.parse(channel)
        endpoint, localities = self._serve(where)
        try:
            vtpm = self._registry.get(name)
            rules = self._deadline, self._attestor, localities, self._wanted
            self._channels[name] = GuestChannel(vtpm, endpoint, channel, *rules)
        except BaseException:
            endpoint.close()
            raise
        if self._latest is not None:
            self._channels[name].hasten(self._latest - time.monotonic())

    def _serve(self, where: Address) -> tuple[Endpoint, frozenset[int]]:
        """The manager's end, and the localities that may be used on it."""
        if where.kind is not Kind.SHIM:
            return address.serve(where), GUEST_LOCALITIES
        if self._lanes is None:
            raise ConfigError("this manager has no carrier for QEMU shims ('shims' in its configuration)")
        return self._lanes.lane(where.argument), SHIM_LOCALITIES

    def _demand_possible(self, name: str, where: Address, vm: str) -> None:
        """Before anything is opened for it."""
        binding.demand(self._registry.record(name), vm)
        binding.demand_own(name, where)

    def _is_served(self, name: str) -> bool:
        return name in self._channels and self._channels[name].serves(self._registry.get(name))

    def _refuse_ending(self, name: str) -> None:
        if name in self._ending:
            raise BusyError(f"vTPM {name!r} is being detached; try again when that is done")

    def _refuse_double(self, name: str, channel: str) -> None:
        self._refuse_ending(name)
        for other, open_channel in self._channels.items():
            if other == name and open_channel.address != channel:
                raise BusyError(f"vTPM {name!r} is attached to {open_channel.address}; 'detach {name}' first")
            if other != name and open_channel.address == channel:
                raise BusyError(f"channel {channel} serves vTPM {other!r}; 'detach {other}' first")
