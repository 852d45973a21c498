"""What each side of a move can do, as lines ``key=value`` (MIGRATION.md, section 4)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from manager_vm.errors import RemoteProtocolError

_NUMBERS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})*")
_LINE = re.compile(r"([a-z]{1,20})=([ -~]{0,200})")


def pack(features: Mapping[str, str]) -> str:
    """The lines, keys in alphabetical order."""
    return "\n".join(f"{key}={features[key]}" for key in sorted(features))


def parse(text: str) -> dict[str, str]:
    """The inverse; RemoteProtocolError for anything else, so that one meaning has one form."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        match = _LINE.fullmatch(line)
        if match is None or match[1] <= max(found, default=""):
            raise RemoteProtocolError("the other end sent features that are no sorted lines key=value")
        found[match[1]] = match[2]
    return found


def version(text: str) -> tuple[int, ...]:
    """A version to be compared: the numbers it begins with."""
    numbers = _NUMBERS.match(text)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()
