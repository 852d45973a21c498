"""vtpmctl's verbs about VMs that take their vTPMs along: ``standing``; ``authority standing`` asks no manager."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manager_vm.ctl import output
from manager_vm.ctl.platforms import read
from manager_vm.errors import ConfigError
from manager_vm.trust import standing as trust
from manager_vm.trust.authority import AuthorityDirectory, replace

Args = argparse.Namespace
Call = Callable[..., Any]
_COLUMNS = ("vm", "group", "platforms", "serial")


def give(args: Args) -> tuple[dict[str, Any], int]:
    """``authority standing``."""
    key = AuthorityDirectory.open(args.directory).key
    replace(args.out, trust.give(args.vm, args.platforms, args.serial, key, group=args.group))
    return {"file": str(args.out), "vm": args.vm, "platforms": args.platforms, "serial": args.serial}, 0


def standing(args: Args, call: Call) -> None:
    """The standing orders there are; after one was added."""
    if args.action == "add":
        if args.file is None:
            raise ConfigError("'standing add' needs the file of 'authority standing'")
        found = call(args, "standing_add", statement=read(args.file))
    else:
        found = call(args, "standings")
    rows = [{**row, "platforms": ", ".join(row["platforms"]) or "none: revoked"} for row in found]
    print(output.as_json(found) if args.json else output.as_table(rows, _COLUMNS))


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """The arguments of ``standing``."""
    verb.add_argument("action", choices=("add", "list"))
    verb.add_argument("file", type=Path, nargs="?", metavar="FILE.json", help="of 'authority standing'")


def add_order(verb: argparse.ArgumentParser) -> None:
    """The arguments of ``authority standing``."""
    verb.add_argument("--vm", required=True, metavar="UUID", help="which VM: its -uuid")
    text = "between which it may move (none: revoke)"
    verb.add_argument("--platform", dest="platforms", nargs="+", default=[], metavar="NAME", help=text)
    verb.add_argument("--serial", required=True, type=int, metavar="N", help="grows with each one of this VM")
    verb.add_argument("--group", default="default", metavar="NAME", help="its vTPM's group, whose authority this is")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the standing order")
