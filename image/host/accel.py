"""The accelerator: TCG, unless a short boot proves that KVM works: a /dev/kvm that exists may still hang a guest."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from image.host import machine
from manager_vm.errors import ConfigError

_PROBE_SECONDS = 8
_PROOF = b"initrd:"  # what the image's initrd says when it finds no root disk: kernel and user space ran
TCG = "tcg,thread=multi"
KVM = "kvm"


def choose(cache: Path, image: Path) -> str:
    """The value for ``-accel``. What the probe boot of ``image`` showed is kept in ``cache`` until the host reboots."""
    wanted = os.environ.get("VTPM_ACCEL", "")
    if wanted and not wanted.startswith((KVM, "tcg")):
        raise ConfigError(f"VTPM_ACCEL={wanted} is no accelerator of ours; use tcg or kvm")
    if wanted:
        return TCG if wanted == "tcg" else wanted
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if not cache.exists() or not cache.read_text().startswith(boot):
        cache.write_text(f"{boot} {KVM if _kvm_works(image) else TCG}")
    return cache.read_text().split(" ", 1)[1]


def _kvm_works(image: Path) -> bool:
    argv = ["qemu-system-x86_64", "-M", "pc-q35-7.2", "-accel", KVM, "-cpu", machine.cpu(KVM), "-m", "256"]
    argv += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    argv += ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img")]
    argv += ["-append", "console=ttyS0 quiet panic=-1"]
    out = b""
    with suppress(OSError):
        try:
            out = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS).stdout
        except subprocess.TimeoutExpired as error:
            out = error.stdout or b""
    return _PROOF in out
