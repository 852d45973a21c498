"""vtpmctl's verb ``snapshots``, and the arguments of ``revert``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from manager_vm.ctl import output

Args = argparse.Namespace
Call = Callable[..., Any]
_COLUMNS = ("snapshot", "taken", "boot", "permitted")


def snapshots(args: Args, call: Call) -> None:
    """Those that are kept; after a change."""
    if args.keep is not None:
        found = call(args, "snapshots_keep", name=args.name, count=args.keep)
    elif args.drop is not None:
        found = call(args, "snapshot_drop", name=args.name, snapshot=args.drop)
    else:
        found = call(args, "snapshots", name=args.name)
    show(args, found)


def show(args: Args, found: dict[str, Any]) -> None:
    """As a table under what holds for all of them."""
    if args.json:
        print(output.as_json(found))
        return
    rows = [{**row, "permitted": row["snapshot"] == found["permitted"]} for row in found["snapshots"]]
    print(f"keeps {found['keep']} (at most {found['most']} here), has gone back {found['reverted']} times")
    print(output.as_table(rows, _COLUMNS))


def add_arguments(verbs: dict[str, argparse.ArgumentParser]) -> None:
    """The arguments of ``snapshots`` and ``revert``, but the vTPM's name."""
    change = verbs["snapshots"].add_mutually_exclusive_group()
    change.add_argument("--keep", type=int, metavar="N", help="keep so many from now on, 0 = none")
    change.add_argument("--drop", metavar="SNAPSHOT", help="give one up")
    revert = verbs["revert"]
    revert.add_argument("snapshot", metavar="SNAPSHOT", help="its id")
    revert.add_argument("--now", action="store_true", help="at once, without a VM that comes with its image")
    revert.add_argument("--yes", action="store_true", help="do not ask")
