"""A TPM's event log: which measurements made the PCRs what they are (crypto-agile format).

TCG PC Client Platform Firmware Profile 1.05, 10.4.5: one TCG_PCR_EVENT that names the digests (10.2.1, 10.4.5.1), then
TCG_PCR_EVENT2 (10.2.2). Little-endian. Pure; whoever reads it does not trust it: it explains PCRs that a quote has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from manager_vm.errors import EvidenceError

MAX_SIZE = 1 << 17  # bytes of a log
MAX_EVENTS = 4096
PCRS = 24
EV_NO_ACTION = 0x3  # extends nothing (9.4.1)
_MAX_BANKS = 8
_SIGNATURE = b"Spec ID Event03\0"
_SHA1_SIZE = 20
_SHA256 = 0x000B
_DIGEST_SIZE = 32
_KINDS = {
    0x1: "EV_POST_CODE",
    0x3: "EV_NO_ACTION",
    0x4: "EV_SEPARATOR",
    0x5: "EV_ACTION",
    0x6: "EV_EVENT_TAG",
    0x7: "EV_S_CRTM_CONTENTS",
    0x8: "EV_S_CRTM_VERSION",
    0xD: "EV_IPL",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
}


@dataclass(frozen=True, slots=True)
class Event:
    """A measurement. ``digest``: of the SHA-256 bank; ``data``: what the log says it was, which nobody has checked."""

    pcr: int
    type: int
    digest: bytes
    data: bytes

    @property
    def kind(self) -> str:
        """The specification's name of its type."""
        return _KINDS.get(self.type, f"{self.type:#010x}")


def parse(log: bytes) -> list[Event]:
    """Every measurement in the SHA-256 bank, in order; EvidenceError for anything but a whole log with that bank."""
    if len(log) > MAX_SIZE:
        raise EvidenceError(f"an event log of {len(log)} bytes; at most {MAX_SIZE} are looked at")
    reader = _Reader(log)
    sizes = _header(reader)
    found: list[Event] = []
    while reader.left:
        if len(found) == MAX_EVENTS:
            raise EvidenceError(f"an event log has more than {MAX_EVENTS} events")
        found.append(_event(reader, sizes))
    return [event for event in found if event.type != EV_NO_ACTION]


def replay(events: Sequence[Event], pcrs: Sequence[int]) -> dict[int, bytes]:
    """The SHA-256 values that these PCRs (0 to 16) have after the events, from zero on (TPM2_PCR_Extend)."""
    values = {pcr: bytes(_DIGEST_SIZE) for pcr in pcrs}
    for event in events:
        if event.pcr in values:
            values[event.pcr] = hashlib.sha256(values[event.pcr] + event.digest).digest()
    return values


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise EvidenceError(f"an event log ends after {len(self._data)} bytes, in the middle of an event")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")


def _header(reader: _Reader) -> dict[int, int]:
    """Digest sizes by algorithm, from the first event, a TCG_PCR_EVENT with a TCG_EfiSpecIdEvent."""
    pcr, type_ = reader.number(4), reader.number(4)
    reader.take(_SHA1_SIZE)
    inner = _Reader(reader.take(reader.number(4)))
    if (pcr, type_) != (0, EV_NO_ACTION) or inner.take(len(_SIGNATURE)) != _SIGNATURE:
        raise EvidenceError("an event log does not begin as one of the crypto-agile format does")
    inner.take(8)  # platform class, version, size of UINTN
    sizes = dict(_sizes(inner))
    inner.take(inner.number(1))  # the vendor's
    if inner.left or sizes.get(_SHA256) != _DIGEST_SIZE:
        raise EvidenceError("an event log has no SHA-256 digests, or its first event is damaged")
    return sizes


def _sizes(reader: _Reader) -> Iterator[tuple[int, int]]:
    count = reader.number(4)
    if not 0 < count <= _MAX_BANKS:
        raise EvidenceError(f"an event log with digests of {count} kinds; 1 to {_MAX_BANKS} are looked at")
    for _ in range(count):
        yield reader.number(2), reader.number(2)


def _event(reader: _Reader, sizes: dict[int, int]) -> Event:
    """TCG_PCR_EVENT2: exactly one digest of each kind."""
    pcr, type_, count = reader.number(4), reader.number(4), reader.number(4)
    if pcr >= PCRS or count != len(sizes):
        raise EvidenceError(f"an event log's event is for PCR {pcr} with {count} digests: it is damaged")
    digests = {}
    for _ in range(count):
        algorithm = reader.number(2)
        if algorithm not in sizes or algorithm in digests:
            raise EvidenceError(f"an event has a digest of the kind {algorithm:#06x}, which its log does not have")
        digests[algorithm] = reader.take(sizes[algorithm])
    return Event(pcr, type_, digests[_SHA256], reader.take(reader.number(4)))
