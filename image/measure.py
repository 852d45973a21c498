"""What a verifier must expect: the SHA-256 PCR values of an image booted as it should be, predicted from its files.

    python3 -m image.measure build/image/manager [--json]

| PCR | measured by | what |
|---:|---|---|
| 4 | firmware (TCG PC Client Platform Firmware Profile, 2.3.4.5) | the UKI, then the kernel in it, as PE/COFF images |
| 9 | kernel's EFI stub | the kernel's command line, the initrd as systemd-stub hands it on |
| 11 | systemd-stub, then systemd-pcrphase (systemd-measure(1)) | the UKI's sections, the phases sysinit and ready |
| 12, 13 | systemd-stub | arguments, credentials, extensions from outside: none, so zero |

The appliance is started with QEMU's ``-kernel uki.efi``: no boot loader, no partition table. PCR 0 to 3 and 5 to 7
depend on firmware and machine, PCR 15 on the boot: expect nothing of them.

A manager caps PCR 11 once it has unsealed its root key. An approval binds the value before, a quote of a manager that
serves shows the value after.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from manager_vm.errors import BuildError
from manager_vm.trust.pcrs import CAPPED_PCR, after_phases, capped

_ZERO = bytes(32)
_ACTION = b"Calling EFI Application from Boot Option"  # EV_EFI_ACTION
_SEPARATOR = bytes(4)  # EV_SEPARATOR
# the order in which systemd-stub measures sections (UNIFIED_SECTION_*); signatures are not measured
_SECTIONS = (".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey")
_PE_OFFSET = 0x3C
_SECTION = struct.Struct("<8sIIII16x")  # name, virtual size, address, raw size, raw offset
_CPIO_DIRECTORY, _CPIO_FILE = 0o040555, 0o100444


def expected(image: Path) -> dict[str, str]:
    """PCR -> expected value (hex) of the image in this directory."""
    uki = (image / "uki.efi").read_bytes()
    parts = dict(sections(uki))
    values = {
        "4": _extend(_ZERO, _authenticode(uki), _sha256(_ACTION), _sha256(_SEPARATOR), _authenticode(parts[".linux"])),
        "9": _extend(_ZERO, _sha256(_load_options(parts)), _sha256(_initrd(parts))),
        "11": _pcr11(parts),
        "12": _ZERO,
        "13": _ZERO,
    }
    return {pcr: value.hex() for pcr, value in values.items()}


def after_cap(values: dict[str, str]) -> dict[str, str]:
    """PCR -> value (hex) where it is another one as soon as the manager has unsealed its root key."""
    pcr = str(CAPPED_PCR)
    return {pcr: capped(bytes.fromhex(values[pcr])).hex()}


def report(image: Path) -> str:
    """What ``vtpmctl authority approve`` reads: the expected values in JSON, and of which uki.efi they are."""
    values, uki = expected(image), _sha256((image / "uki.efi").read_bytes()).hex()
    told = {"bank": "sha256", "pcrs": values, "after_cap": after_cap(values), "uki": uki}
    return json.dumps(told, indent=2) + "\n"


def _extend(pcr: bytes, *digests: bytes) -> bytes:
    """TPM2_PCR_Extend (Part 1, 17.3)."""
    for digest in digests:
        pcr = _sha256(pcr + digest)
    return pcr


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _pcr11(sections: dict[str, bytes]) -> bytes:
    """Each section's name with its NUL, then its content; then the words of the phases."""
    pcr = _ZERO
    for name in _SECTIONS:
        if name in sections:
            pcr = _extend(pcr, _sha256(name.encode() + b"\0"), _sha256(sections[name]))
    return after_phases(pcr)


def _load_options(sections: dict[str, bytes]) -> bytes:
    """The command line as the stub gives it to the kernel: UTF-16LE with a NUL."""
    return (sections[".cmdline"].decode().strip() + "\0").encode("utf-16-le")


def _initrd(sections: dict[str, bytes]) -> bytes:
    """The initrd, padded to four bytes, and the archive with /.extra/os-release that the stub puts behind it."""
    embedded = sections[".initrd"]
    extra = _cpio(1, ".extra", _CPIO_DIRECTORY, b"") + _cpio(2, ".extra/os-release", _CPIO_FILE, sections[".osrel"])
    return embedded + bytes(-len(embedded) % 4) + extra + _cpio(0, "TRAILER!!!", 0, b"")


def _cpio(inode: int, name: str, mode: int, data: bytes) -> bytes:
    """One entry (kernel Documentation/driver-api/early-userspace/buffer-format.rst), spelt as systemd-stub does."""
    path = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    digits = b"%08X" if mode == 0 else b"%08x"  # the trailer is a constant there, in capitals
    head = b"070701" + b"".join(digits % value for value in fields) + path
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


# -- PE/COFF (Microsoft PE Format; Windows Authenticode Portable Executable Signature Format) -----------------------


@dataclass(frozen=True, slots=True)
class _Header:
    """Offsets in a PE32+ file."""

    checksum: int
    security: int  # data directory entry of the certificate table
    size: int  # of all headers
    table: int  # section table
    count: int  # sections


def _header(image: bytes) -> _Header:
    try:
        (pe,) = struct.unpack_from("<I", image, _PE_OFFSET)
        count, optional_size = struct.unpack_from("<6xH12xH", image, pe)
        optional = pe + 24
        magic, size = struct.unpack_from("<H58xI", image, optional)
    except struct.error:
        raise BuildError("a file is too short to be a PE/COFF image\nremedy: build the image again") from None
    if image[pe : pe + 4] != b"PE\0\0" or magic != 0x20B:
        raise BuildError("a file is no PE32+ image\nremedy: build the image again")
    return _Header(optional + 64, optional + 112 + 4 * 8, size, optional + optional_size, count)


def _raw_sections(image: bytes) -> Iterator[tuple[str, int, int, int]]:
    """(name, virtual size, raw size, raw offset)."""
    header = _header(image)
    for number in range(header.count):
        name, virtual, _, raw, offset = _SECTION.unpack_from(image, header.table + number * _SECTION.size)
        yield name.rstrip(b"\0").decode(errors="replace"), virtual, raw, offset


def sections(image: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each section, without the padding of the file."""
    for name, virtual, raw, offset in _raw_sections(image):
        yield name, image[offset : offset + min(virtual, raw)]


def _authenticode(image: bytes) -> bytes:
    """The digest of an image without its checksum and certificates: what firmware measures into PCR 4."""
    header = _header(image)
    found = hashlib.sha256(image[: header.checksum])
    found.update(image[header.checksum + 4 : header.security])
    found.update(image[header.security + 8 : header.size])
    done = header.size
    for _, _, raw, offset in sorted(_raw_sections(image), key=lambda section: section[3]):
        found.update(image[offset : offset + raw])
        done += raw
    (certificates,) = struct.unpack_from("<I", image, header.security + 4)
    found.update(image[done : len(image) - certificates])
    return found.digest()


def as_text(values: dict[str, str]) -> str:
    """One line a PCR, then those that the manager changes."""
    lines = [f"PCR {pcr.ljust(2)} (SHA-256) {value}" for pcr, value in values.items()]
    lines += [
        f"PCR {pcr.ljust(2)} (SHA-256) {value} once its manager serves" for pcr, value in after_cap(values).items()
    ]
    return "\n".join(lines)


def main() -> int:
    """Exit code 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python3 -m image.measure", description="Predict the PCR values of an image.")
    parser.add_argument("image", type=Path, help="a directory of the image build, for instance build/image/manager")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    try:
        text = report(args.image) if args.json else as_text(expected(args.image)) + "\n"
    except (BuildError, OSError) as error:
        print(f"image.measure: {error}", file=sys.stderr)
        return BuildError.exit_code
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
