"""vtpmctl audit: the audit log of a manager, shown or verified; and offline, a copy of its files verified."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from manager_vm.ctl import output
from manager_vm.errors import ConfigError
from manager_vm.wire import audit
from manager_vm.wire.audit import Entry, Report

Args = argparse.Namespace
Call = Callable[..., Any]
_LAST = 20  # entries that are shown if nothing else was asked for
_PAUSE = 1.0  # seconds between two looks for new entries
_SHOWN_FIRST = ("operator", "verb", "args", "outcome")
_NOT_SHOWN = ("key",)


def run(args: Args, call: Call) -> None:
    """The verb in all its forms."""
    if args.action == "verify":
        if args.file is None:
            raise ConfigError("'audit verify' needs the file: a copy of audit.log, with the older ones beside it")
        _report(args, _verify_file(args.file, args.head))
    elif args.verify:
        _report(args, _verify_online(args, call))
    elif args.follow is not None:
        _follow(args, call)
    else:
        found = _fetch(args, call, -args.last) if args.last else []
        if args.json:
            print(output.as_json([_plain(entry, anchored) for entry, anchored in found]))
        else:
            _print(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument("action", nargs="?", choices=("verify",), help="verify FILE offline, without a manager")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a copy of audit.log")
    parser.add_argument("--head", metavar="HEX", help="what the newest anchored entry must hash to (verify FILE)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--last", type=_count, default=_LAST, metavar="N", help=f"the last N entries (default {_LAST})")
    how.add_argument("--follow", type=_count, metavar="N", help="from entry N on, and each new one until interrupted")
    how.add_argument("--verify", action="store_true", help="verify the manager's whole log, say what is not anchored")


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of entries")


def _fetch(args: Args, call: Call, after: int) -> list[tuple[Entry, bool]]:
    """The entries behind ``after`` and whether each is anchored."""
    found: list[tuple[Entry, bool]] = []
    while True:
        reply = call(args, "audit", after=after)
        entries = [audit.parse(line.encode()) for line in reply["lines"]]
        found += [(entry, entry.n <= reply["anchored"]) for entry in entries]
        if not entries or entries[-1].n >= reply["count"]:
            return found
        after = entries[-1].n


def _follow(args: Args, call: Call) -> None:
    after = max(args.follow - 1, 0)
    while True:
        for entry, anchored in _fetch(args, call, after):
            if args.json:
                print(output.as_json(_plain(entry, anchored), indent=None), flush=True)
            else:
                _print([(entry, anchored)])
            after = entry.n
        time.sleep(_PAUSE)


def _verify_online(args: Args, call: Call) -> Report:
    lines: list[bytes] = []
    after = 0
    while True:
        reply = call(args, "audit", after=after)
        lines += [line.encode() for line in reply["lines"]]
        after = audit.parse(lines[-1]).n if lines else 0
        if not reply["lines"] or after >= reply["count"]:
            return audit.verify(lines, reply["digest"])


def _verify_file(path: Path, head: str | None) -> Report:
    try:
        anchored = bytes.fromhex(head) if head is not None else None
    except ValueError:
        anchored = b""
    if anchored is not None and len(anchored) != len(audit.NONE):
        raise ConfigError("--head takes the 64 hex digits of a SHA-256")
    return audit.verify(_lines(path), anchored)


def _lines(path: Path) -> Iterator[bytes]:
    """All lines of a log, from its oldest file on. A half line at the very end is none (a crash, or a copy)."""
    older = sorted((p for p in path.parent.glob(f"{path.name}.[0-9]")), reverse=True)
    for each in (*older, path):
        try:
            data = each.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {each}: {error.strerror}") from None
        yield from data.split(b"\n")[:-1]


def _report(args: Args, report: Report) -> None:
    if args.json:
        found = {"first": report.first, "count": report.count, "digest": report.digest.hex()}
        print(output.as_json({**found, "unanchored": report.unanchored}))
        return
    print(f"the chain is whole: entries {report.first} to {report.count}, head {report.digest.hex()}")
    if report.unanchored is None:
        print("whether it is complete only its anchored head can tell: --head HEX")
    else:
        print(f"{report.unanchored} of them not anchored yet")


def _print(entries: list[tuple[Entry, bool]]) -> None:
    for entry, anchored in entries:
        when = datetime.fromtimestamp(entry.time).astimezone().isoformat(timespec="seconds")
        fields = {key: entry.fields[key] for key in _SHOWN_FIRST if key in entry.fields} | entry.fields
        said = output.as_line({key: value for key, value in fields.items() if key not in _NOT_SHOWN})
        mark = "" if anchored else "  [not anchored yet]"
        print(f"{entry.n}  {when}  {output.printable(entry.event)}  {said}{mark}", flush=True)


def _plain(entry: Entry, anchored: bool) -> dict[str, Any]:
    head = {"n": entry.n, "time": entry.time, "event": entry.event, "digest": entry.digest.hex(), "anchored": anchored}
    return {**entry.fields, **head}
