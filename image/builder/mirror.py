"""Which Debian mirror packages come from: the one that apt uses on this machine, or VTPM_DEBIAN_MIRROR."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from manager_vm.errors import BuildError

Entry = tuple[str, list[str]]  # URI, suites

_REMEDY = "name one: VTPM_DEBIAN_MIRROR=http://HOST/debian"


def mirror(apt: Path = Path("/etc/apt")) -> str:
    """The mirror's URI without a trailing slash; BuildError if apt's sources name none."""
    if wanted := os.environ.get("VTPM_DEBIAN_MIRROR"):
        return wanted.rstrip("/")
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            for uri, suites in entries(path.read_text(errors="replace"), deb822=path.suffix == ".sources"):
                plain = any("-" not in suite for suite in suites)
                if plain and re.fullmatch(r"https?://\S+/debian/?", uri):
                    return uri.rstrip("/")
    raise BuildError(f"no Debian mirror stands in {apt}\nremedy: {_REMEDY}")


def entries(text: str, *, deb822: bool) -> list[Entry]:
    """Binary archives with the component main (sources.list(5)), security archives left out."""
    found = _deb822(text) if deb822 else _one_line(text)
    return [(uri, suites) for uri, suites in found if not any(suite.endswith("-security") for suite in suites)]


def _one_line(text: str) -> Iterator[Entry]:
    for line in text.splitlines():
        words = re.sub(r"\[[^]]*=[^]]*\]", "", line.split("#")[0]).split()
        if len(words) > 3 and words[0] == "deb" and "main" in words[3:]:
            yield words[1], [words[2]]


def _deb822(text: str) -> Iterator[Entry]:
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line for line in paragraph.splitlines() if ":" in line and line[0] not in "# \t"]
        fields = {name.lower(): value.split() for name, _, value in (line.partition(":") for line in lines)}
        wanted = "deb" in fields.get("types", []) and "main" in fields.get("components", [])
        if wanted and fields.get("enabled") != ["no"]:
            for uri in fields.get("uris", []):
                yield uri, fields.get("suites", [])
