"""A VM that is up in seconds: the guest image's kernel, and an init that tells on the console what the TPM is like.

The init is added to the image's initrd, which has busybox (kernel Documentation/driver-api/early-userspace: archives
may follow each other).
"""

from __future__ import annotations

import base64
import re
import time
from dataclasses import dataclass
from pathlib import Path

from image import measure
from image.builder.image import make_uki
from image.builder.initrd import Archive
from image.builder.steps import Builder, Layout
from image.builder.tools import Tools
from image.host.vm import Vm
from tests.integration import raw
from tests.system.vms import IMAGES, ROOT

_CMDLINE = "console=ttyS0 quiet no_timer_check rdinit=/reporter"
_TIMEOUT = 150.0  # seconds for a boot on a machine that is busy
_INIT = """#!/bin/busybox sh
for applet in mount cat base64 seq dd head sleep; do alias $applet="/bin/busybox $applet"; done
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
mount -t securityfs securityfs /sys/kernel/security
pcr() { echo "pcr $1 $(cat /sys/class/tpm/tpm0/pcr-sha256/$1)"; }
echo; echo "report begins"
for number in $(seq 0 23); do pcr $number; done
cat /sys/kernel/security/ima/ascii_runtime_measurements | head -n 1
echo "log $(base64 -w 0 /sys/kernel/security/tpm0/binary_bios_measurements)"
exec 3<>/dev/tpm0
printf '{extend}' >&3
dd bs=4096 count=1 <&3 >/dev/null 2>/dev/null
exec 3>&-
echo "after an extend: $(pcr 16)"
echo "report ends"
while true; do sleep 1000; done
"""


@dataclass(frozen=True, slots=True)
class Report:
    """``pcrs``: SHA-256, hex in upper case. ``log``: firmware's, b"" without one. ``ima``: its first measurement."""

    pcrs: dict[int, str]
    log: bytes
    ima: str
    extended: str  # PCR 16 after an extend


def image(target: Path) -> Path:
    """A directory with a UKI, and kernel and initrd beside it."""
    target.mkdir()
    archive = Archive()
    command = "".join(f"\\{byte:03o}" for byte in raw.pcr_extend(16))
    archive.file("reporter", _INIT.replace("{extend}", command).encode())
    guest = IMAGES / "guest"
    (target / "vmlinuz").write_bytes((guest / "vmlinuz").read_bytes())
    (target / "initrd.img").write_bytes((guest / "initrd.img").read_bytes() + archive.pack())
    (target / "cmdline").write_text(_CMDLINE)
    (target / "root.img").write_bytes(bytes(1 << 20))
    version = dict(measure.sections((guest / "uki.efi").read_bytes()))[".uname"].decode()
    make_uki(Tools(Builder(Layout(ROOT))), "the reporter's image", target, version)
    return target


def wait(vm: Vm, number: int = 1) -> Report:
    """The report of the ``number``th boot."""
    deadline = time.monotonic() + _TIMEOUT
    while (said := vm.spec.console.read_text(errors="replace")).count("report ends") < number:
        vm.check()
        assert time.monotonic() < deadline, said[-3000:]
        time.sleep(0.05)
    return _parse(said.split("report begins")[number])


def _parse(said: str) -> Report:
    pcrs = {int(index): value for index, value in re.findall(r"^pcr (\d+) ([0-9A-F]{64})", said, re.M)}
    log = re.search(r"^log ([A-Za-z0-9+/=]*)", said, re.M)
    ima = re.search(r"^(10 .*boot_aggregate)", said, re.M)
    extended = re.search(r"after an extend: pcr 16 ([0-9A-F]{64})", said)
    assert log and extended and len(pcrs) == 24, said
    return Report(pcrs, base64.b64decode(log[1]), ima[1] if ima else "", extended[1])
