"""Known-vulnerable versions of the programs that hold vTPM state, and what this Debian system has installed."""

from __future__ import annotations

import re
from pathlib import Path

DPKG_STATUS = Path("/var/lib/dpkg/status")

# package -> first fixed version, what is wrong below it
MINIMUM = {
    "libtpms0": ("0.9.2-3.1+deb12u1", "CVE-2025-49133 (a guest can crash its vTPM)"),
}


def installed(status: Path = DPKG_STATUS) -> dict[str, str]:
    """Package -> version of what dpkg says is installed; empty on a system without dpkg."""
    try:
        text = status.read_text(errors="replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields.get("Version", "")
    return found


def known_vulnerable(versions: dict[str, str]) -> list[str]:
    """A sentence for each installed package below its first fixed version."""
    return [
        f"{package} {versions[package]} is known to be vulnerable: {why}; upgrade to {minimum} or later"
        for package, (minimum, why) in MINIMUM.items()
        if package in versions and sort_key(versions[package]) < sort_key(minimum)
    ]


def sort_key(version: str) -> tuple[int, list[tuple[int, ...]], list[tuple[int, ...]]]:
    """A key that orders Debian versions as deb-version(7) says."""
    epoch, _, rest = version.partition(":") if ":" in version else ("", "", version)
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "0")
    return int(epoch or 0), _part(upstream), _part(revision)


def _part(text: str) -> list[tuple[int, ...]]:
    """Alternating non-digit and digit pieces; '~' sorts before the end, letters before other characters."""
    key: list[tuple[int, ...]] = []
    for letters, digits in re.findall(r"(\D*)(\d*)", text):
        key.append((*(_order(char) for char in letters), 0))
        key.append((int(digits or 0),))
    return key


def _order(char: str) -> int:
    if char == "~":
        return -1
    return ord(char) if char.isalpha() else ord(char) + 256
