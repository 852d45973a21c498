"""Two hosts for each run, always from the same beginning: managers are booted and filled once, then restored."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from image.host import saved
from image.host.host import Host
from image.host.machine import VmSpec
from image.host.saved import Saved
from image.host.vm import Vm
from manager_vm.errors import HostError, VtpmManagerError
from tests.bench.compare.wire import CountingSwitch
from tests.system import vms

_KEPT = 512  # MiB of the VMs that tests keep too
_AGENT = 60.0
_CREATE = 5.0  # seconds for a vTPM, before one was made
_BOOT = 70.0  # seconds for one manager, likewise


class SizedHost(Host):
    """``memory``: MiB of the manager's VM."""

    def __init__(self, directory: Path, memory: int) -> None:
        self._memory = memory
        super().__init__(directory, vms.IMAGES, firmware=True)

    def manager_spec(self, tpm: Path | None) -> VmSpec:
        """With its memory."""
        return replace(super().manager_spec(tpm), memory_mib=self._memory)


@dataclass(frozen=True, slots=True)
class Pair:
    """The manager at ``source`` has vTPMs, that at ``target`` has none. One authority, a network between them."""

    source: Host
    target: Host
    switch: CountingSwitch


class Stock:
    """Saved managers below ``directory``, made when they are needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._empty: dict[int, tuple[Saved, Saved]] = {}
        self._filled: dict[int, tuple[int, Saved]] = {}
        self._full: dict[int, str] = {}  # memory -> why there cannot be more vTPMs
        self._each = _CREATE

    @contextmanager
    def pair(self, memory: int, count: int, limit: int, rtt: int = 0) -> Iterator[Pair]:
        """Both restored and connected. HostError where so many vTPMs do not fit."""
        first = self._with(memory, count)
        with ExitStack() as stack:
            directory = stack.enter_context(vms.short_directory())
            switch = CountingSwitch(directory / "switch", limit, rtt)
            stack.callback(switch.close)
            hosts = []
            for number, found in enumerate((first, self._empty[memory][1]), 1):
                host = stack.enter_context(SizedHost(directory / str(number), memory))
                host.start_manager(found)
                host.connect(switch, f"10.77.0.{number}/24")
                hosts.append(host)
            yield Pair(hosts[0], hosts[1], switch)

    def wait(self, memory: int, count: int) -> float:
        """Seconds that ``pair`` takes for what it has to make first, about."""
        boots = 0.0 if memory in self._empty else 2 * _BOOT
        return boots + max(count - self._filled.get(memory, (0, None))[0], 0) * self._each

    def _with(self, memory: int, count: int) -> Saved:
        if memory in self._full:
            raise HostError(self._full[memory])
        if memory not in self._empty:
            self._empty[memory] = self._booted(memory)
        have, found = self._filled.get(memory, (0, self._empty[memory][0]))
        if have > count:
            have, found = 0, self._empty[memory][0]
        if have < count:
            found = self._more(memory, have, count, found)
        return found

    def _more(self, memory: int, have: int, count: int, found: Saved) -> Saved:
        """One with ``count`` vTPMs, made from one with ``have``."""
        target = self._directory / f"{memory}-{count}"
        target.mkdir()
        with vms.short_directory() as directory, SizedHost(directory, memory) as host:
            vm = host.start_manager(found)
            began = time.monotonic()
            for number in range(have, count):
                self._create(host, memory, number, count)
            self._each = (time.monotonic() - began) / (count - have)
            saved.save(vm, target, host.authority)
        if have:
            shutil.rmtree(self._filled[memory][1].directory)
        self._filled[memory] = count, Saved(target)
        return Saved(target)

    def _create(self, host: Host, memory: int, number: int, count: int) -> None:
        try:
            host.links.admin("create", name=name(number))
            host.links.admin("start", name=name(number), power_on=True)
        except VtpmManagerError as error:
            self._full[memory] = f"{number} of {count} vTPMs could be made in {memory} MB, the next not: {error}"
            raise HostError(self._full[memory]) from None

    def _booted(self, memory: int) -> tuple[Saved, Saved]:
        """A manager and a receiver, both without vTPMs."""
        if memory == _KEPT:
            first = vms.saved_manager()
            return first, vms.saved_peer(first)
        first = self._boot(memory, None)
        return first, self._boot(memory, first)

    def _boot(self, memory: int, like: Saved | None) -> Saved:
        """``like``: one of the same authority."""
        target = self._directory / f"{memory}-{'first' if like is None else 'peer'}"
        target.mkdir()
        with vms.short_directory() as directory, SizedHost(directory, memory) as host:
            if like is not None:
                shutil.copytree(like.directory / host.authority.name, host.authority)
            vm: Vm = host.start_manager()
            vm.agent.wait(_AGENT)
            saved.save(vm, target, host.authority)
        return Saved(target)


def name(number: int) -> str:
    """Of a vTPM."""
    return f"v{number:03}"
