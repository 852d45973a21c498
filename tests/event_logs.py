"""Event logs made by hand as the TCG PC Client Platform Firmware Profile 1.05 describes them (10.2.2, 10.4.5)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping

ALGORITHMS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
NO_ACTION, SEPARATOR, EVENT_TAG, IPL, APPLICATION, EFI_ACTION = 0x3, 0x4, 0x6, 0xD, 0x80000003, 0x80000007
Measured = tuple[int, int, bytes, bytes]  # PCR, type, what was measured, what the log says of it


def header(banks: Iterable[str] = ("sha1", "sha256"), vendor: bytes = b"") -> bytes:
    """The first event: TCG_PCR_EVENT with a TCG_EfiSpecIdEvent."""
    sizes = [struct.pack("<HH", ALGORITHMS[bank], hashlib.new(bank).digest_size) for bank in banks]
    inner = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 0, 2) + struct.pack("<I", len(sizes))
    inner += b"".join(sizes) + bytes([len(vendor)]) + vendor
    return struct.pack("<II20sI", 0, NO_ACTION, bytes(20), len(inner)) + inner


def event(pcr: int, type_: int, measured: bytes, data: bytes, banks: Iterable[str] = ("sha1", "sha256")) -> bytes:
    """TCG_PCR_EVENT2."""
    digests = [struct.pack("<H", ALGORITHMS[bank]) + hashlib.new(bank, measured).digest() for bank in banks]
    return struct.pack("<III", pcr, type_, len(digests)) + b"".join(digests) + struct.pack("<I", len(data)) + data


def log(events: Iterable[Measured], banks: tuple[str, ...] = ("sha1", "sha256")) -> bytes:
    """A whole log."""
    return header(banks) + b"".join(event(*each, banks) for each in events)


def _tagged(id_: int, data: bytes) -> bytes:
    """TCG_PCClientTaggedEvent (10.4.2.1)."""
    return struct.pack("<II", id_, len(data)) + data


# UEFI_IMAGE_LOAD_EVENT (10.2.3): address, size, link-time address, a device path that ends at once
_LOADED = struct.pack("<QQQQ", 0x1000, 0x2000, 0, 4) + bytes.fromhex("7fff0400")

BOOT: tuple[Measured, ...] = (
    (0, NO_ACTION, b"", b"StartupLocality\0\0"),
    (0, 0x8, b"1\0.\x000\0\0\0", b"1\0.\x000\0\0\0"),
    (4, EFI_ACTION, b"Calling EFI Application from Boot Option", b"Calling EFI Application from Boot Option"),
    (4, SEPARATOR, bytes(4), bytes(4)),
    (4, APPLICATION, b"the UKI", _LOADED),
    (11, IPL, b".linux\0", b".linux\0"),
    (11, IPL, b"kernel", b".linux\0"),
    (4, APPLICATION, b"the kernel", _LOADED),
    (9, EVENT_TAG, b"the command line", _tagged(0x8F3B22ED, b"LOADED_IMAGE::LoadOptions\0")),
    (9, EVENT_TAG, b"the initrd", _tagged(0x8F3B22EC, b"Linux initrd\0")),
)


def values(events: Iterable[Measured]) -> Mapping[int, bytes]:
    """What the SHA-256 PCRs 0 to 15 are after these events."""
    found = {pcr: bytes(32) for pcr in range(16)}
    for pcr, type_, measured, _ in events:
        if type_ != NO_ACTION:
            found[pcr] = hashlib.sha256(found[pcr] + hashlib.sha256(measured).digest()).digest()
    return found
