"""What has to be known about the machine to read figures; stands in every benchmark's JSON. No names in it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def facts() -> dict[str, object]:
    """Of the host, now."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": _said("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": _said("qemu-system-x86_64", "--version"),
        "swtpm": _said("swtpm", "--version"),
        "libtpms": _said("dpkg-query", "-W", "-f=${Version}", "libtpms0"),
        "load": list(os.getloadavg()),
    }


def file_system(directory: Path) -> str:
    """The type of the file system that a directory is on."""
    return _said("stat", "-f", "-c", "%T", str(directory))


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _said(*argv: str) -> str:
    """The first line of what a program says, or that it cannot be asked."""
    if shutil.which(argv[0]) is None:
        return "not installed"
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["unknown"])[0]
