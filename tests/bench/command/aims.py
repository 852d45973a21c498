"""The two aims, and what the measured parts say about a miss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench import stats
from tests.bench.command import paths
from tests.bench.command.paths import BARE, BARE_KEY, CRB, DEV, DEV_PING, IN_MANAGER, IVSHMEM, RELAY, VIRTIO
from tests.bench.command.workload import COMMANDS, GET_RANDOM, LOOP, NV_WRITE, PING, QUOTE, SYSTEM
from tests.bench.stats import Comparison, Series, find

ABOVE = 15.0  # us of (b) above (a)
RATIO = 1.0  # of (c) to (d)


@dataclass(frozen=True, slots=True)
class Item:
    """One command: whether it is where it should be."""

    comparison: Comparison
    met: bool


@dataclass(frozen=True, slots=True)
class Aim:
    """``why`` and ``closing``: sentences; what was measured about a miss, what would close it."""

    text: str
    items: tuple[Item, ...]
    why: tuple[str, ...]
    closing: tuple[str, ...]

    @property
    def met(self) -> bool:
        return all(item.met for item in self.items)


def evaluate(
    series: Sequence[Series], shares: dict[str, dict[str, float]], sync: float, machine: dict[str, object]
) -> list[Aim]:
    """The aims whose paths were measured. ``shares``: path -> process -> us of processor time per GetRandom."""
    found = [_dev(series, shares, sync)]
    if any(each.path == CRB for each in series):
        found.append(_guests(series, machine))
    return found


def _dev(series: Sequence[Series], shares: dict[str, dict[str, float]], sync: float) -> Aim:
    items = []
    for command in COMMANDS:
        comparison = stats.compare(find(series, DEV, command), find(series, BARE, command))
        if command != NV_WRITE:
            items.append(Item(comparison, comparison.difference <= ABOVE))
    text = f"(b) at most {ABOVE:.0f} us above (a) per command on one processor (NV_Write aside: it is durable with us)"
    return Aim(text, tuple(items), (*_why_dev(series, shares), _why_nv(series, sync)), _CLOSING_DEV)


def _why_dev(series: Sequence[Series], shares: dict[str, dict[str, float]]) -> tuple[str, ...]:
    over = stats.compare(find(series, DEV, GET_RANDOM), find(series, BARE, GET_RANDOM)).difference
    relay = stats.compare(find(series, RELAY, GET_RANDOM), find(series, BARE, GET_RANDOM)).difference
    quote = stats.compare(find(series, DEV, QUOTE), find(series, BARE, QUOTE)).difference
    dev, bare = shares[DEV], shares[BARE]
    return (
        f"A process in between that only copies bytes (relay: shared memory and events, Python, no protocol) adds "
        f"{relay:.1f} us to GetRandom, of {ABOVE:.0f} allowed; the rest of (b)'s {over:.1f} us is our protocol at both "
        "ends.",
        f"Processor time per GetRandom: front end {dev['client']:.1f} us (client of (a): {bare['client']:.1f}), "
        f"manager {dev['manager']:.1f} us, swtpm {dev['swtpm']:.1f} us ((a): {bare['swtpm']:.1f}). PING and PONG, "
        f"which turn round at the manager's thread, take {_median(series, DEV_PING, PING):.1f} us.",
        f"Quote is {quote - over:.1f} us further off than GetRandom: after {_median(series, BARE, QUOTE):.0f} us of "
        "arithmetic the caches hold swtpm's data, and the same Python code takes longer.",
    )


def _why_nv(series: Sequence[Series], sync: float) -> str:
    over = stats.compare(find(series, DEV, NV_WRITE), find(series, BARE, NV_WRITE)).difference
    key = stats.compare(find(series, BARE_KEY, NV_WRITE), find(series, BARE, NV_WRITE)).difference
    return (
        f"NV_Write (no aim) is {over:.0f} us above (a): fsync of the state file and its directory (alone, on an idle "
        f"disk: {sync:.0f} us); swtpm's encryption of the file ({key:.0f} us); the protocol."
    )


def _guests(series: Sequence[Series], machine: dict[str, object]) -> Aim:
    items = []
    for path in (IVSHMEM, VIRTIO):
        for command in COMMANDS:
            comparison = stats.compare(find(series, path, command), find(series, CRB, command))
            items.append(Item(comparison, comparison.ratio <= RATIO))
    emulated = str(machine.get("accelerator", "")).startswith("tcg")
    isolated = "PTI" in str(machine.get("guest_meltdown", ""))
    why = (*(_EMULATED if emulated else ()), *_why_guests(series))
    closing = (*(_NEED_KVM if emulated else ()), *(_NEED_MODEL if emulated and isolated else ()), _LESS_WORK)
    return Aim("(c) at or below (d)", tuple(items), why, closing)


def _why_guests(series: Sequence[Series]) -> tuple[str, ...]:
    loop, system = (
        _median(series, paths.MANAGER_SPEED, each) / _median(series, paths.HOST_SPEED, each) for each in (LOOP, SYSTEM)
    )
    alone = ", ".join(
        f"{each} {_median(series, IN_MANAGER, each):.0f} us ({_times(series, each)})" for each in COMMANDS
    )
    parts = "; ".join(_parts_text(series, path) for path in (IVSHMEM, VIRTIO))
    return (
        f"In the manager VM a Python loop takes {loop:.0f} times as long as on the host, a system call {system:.0f} "
        "times.",
        f"swtpm alone on a socket there, without channel, manager and kernel, against (a): {alone}.",
        f"GetRandom in parts: {parts}. (d): {_median(series, CRB, GET_RANDOM):.0f} us.",
        "NV_Write is durable with us: two fsyncs on the manager's virtual disk. (d) never syncs.",
    )


def _times(series: Sequence[Series], command: str) -> str:
    return f"{_median(series, IN_MANAGER, command) / _median(series, BARE, command):.0f} times"


def _parts_text(series: Sequence[Series], path: str) -> str:
    named = ", ".join(f"{name} {value:.0f} us" for name, value in parts(series, path, GET_RANDOM))
    return f"{paths.title(path)}: {named}"


def parts(series: Sequence[Series], path: str, command: str) -> list[tuple[str, float]]:
    """(name, us) of a path of (c), from medians of what was measured in the same rounds; never below zero."""
    whole, linked = _median(series, paths.again(path), command), _median(series, paths.link(path), command)
    alone, ping = _median(series, IN_MANAGER, command), _median(series, paths.ping(path), PING)
    return [
        ("swtpm", alone),
        ("channel (PING)", ping),
        ("manager and front end", max(linked - alone - ping, 0.0)),
        ("guest's kernel and /dev/tpm0", max(whole - linked, 0.0)),
    ]


def _median(series: Sequence[Series], path: str, command: str) -> float:
    return find(series, path, command).summary().median


_CLOSING_DEV = (
    "A data path that is not interpreted: ring, frames and automata of both ends in one small compiled module. The "
    "relay is the floor for a process with Python in it, and it does none of the work.",
    "Short of that: fewer objects and fewer system calls per command (the pieces of (b)'s way show which are dear).",
)
_EMULATED = (
    "The processor is emulated. (d)'s swtpm and QEMU run on the real one, only the guest's kernel is emulated; with "
    "(c) everything is: two kernels, front end, manager, swtpm.",
)
_NEED_KVM = (
    "Hardware virtualisation (KVM): then (c) and (d) run on the same processor, and (c) is (b) plus two doorbells plus "
    "the guest kernel's wait of up to 1 ms between looks at its TPM, which (d) has too. Not measured here.",
)
_NEED_MODEL = (
    "Under emulation: a processor model that is not subject to Meltdown. The kernels in the VMs isolate page tables "
    "because the model is an old Intel one, and each system call then empties the emulated TLB twice.",
)
_LESS_WORK = "Less work per command at both ends of the channel, as for (b)."
