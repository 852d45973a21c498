"""How vtpmctl prints: aligned tables for people, JSON for programs."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

_COLUMNS = ("name", "group", "state", "channel", "boot", "generation", "live", "reason")


def as_json(value: Any, indent: int | None = 2) -> str:
    """JSON; bytes become base64. ``indent`` None: on one line."""
    return json.dumps(value, indent=indent, sort_keys=True, default=lambda item: base64.b64encode(item).decode())


def as_table(rows: list[dict[str, Any]], columns: tuple[str, ...] = _COLUMNS) -> str:
    """The listing of vTPMs, or of what else has these columns; an empty one says so."""
    if not rows:
        return "no vTPMs"
    cells = [[column.upper() for column in columns]]
    cells += [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def as_fields(value: dict[str, Any]) -> str:
    """One line a field; nested values behind a dot."""
    flat = [(printable(key), text) for key, text in _flatten(value)]
    width = max((len(key) for key, _ in flat), default=0)
    return "\n".join(f"{key.ljust(width)}  {text}".rstrip() for key, text in flat)


def as_line(value: dict[str, Any]) -> str:
    """All fields on one line."""
    return " ".join(f"{key}={_text(item)}" for key, item in value.items())


def _flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    fields: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            fields += _flatten(item, f"{prefix}{key}.")
        elif prefix + key == "started":
            fields.append((prefix + key, datetime.fromtimestamp(item).astimezone().isoformat(timespec="seconds")))
        else:
            fields.append((prefix + key, _text(item)))
    return fields


def _text(value: Any) -> str:
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case bytes():
            return value.hex()
        case list():
            return ", ".join(_text(item) for item in value) or "-"
        case dict():
            return ", ".join(f"{printable(str(key))}={_text(item)}" for key, item in value.items()) or "-"
    return printable(str(value))


def printable(text: str) -> str:
    """The text without what a terminal would obey: it may come from a manager that was taken over."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
