"""vtpmctl's verbs about moves: ``migrate``, ``evacuate``, ``migrations``; ``authority order`` asks no manager."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manager_vm.ctl import output, relocation
from manager_vm.ctl.client import Client, operator_key, sockets
from manager_vm.ctl.platforms import read
from manager_vm.errors import ConfigError, VtpmManagerError
from manager_vm.trust import local, order
from manager_vm.trust.authority import AuthorityDirectory, replace

Args = argparse.Namespace
Call = Callable[..., Any]
_COLUMNS = ("name", "direction", "peer", "state", "generation", "started", "ended", "cause", "text")


@dataclass(frozen=True, slots=True)
class _Peer:
    """The other manager: its address, and its platform's name where it could be asked."""

    address: str
    platform: str


def give(args: Args) -> tuple[dict[str, Any], int]:
    """``authority order``: one vTPM may move once."""
    authority = AuthorityDirectory.open(args.directory)
    made = order.give(args.vtpm, args.generation, args.source, args.destination, authority.key, group=args.group)
    replace(args.out, made)
    return {"file": str(args.out), "vtpm": args.vtpm, "from": args.source, "to": args.destination}, 0


def migrate(args: Args, call: Call) -> None:
    """One vTPM; the order is a file, or is made by the authority of this machine."""
    peer = _peer(args)
    shown = call(args, "show", name=args.name)
    ordered = read(args.order) if args.order is not None else _order(args, call, shown, peer)
    if args.with_guest:
        _with_guest(args, call, shown, peer, ordered)
        return
    moved = call(args, "migrate", name=args.name, order=ordered, to=peer.address, dry_run=args.dry_run)
    if args.json:
        print(output.as_json(moved))
    elif args.dry_run:
        print(f"{args.name} could move to {moved['to']}")
    else:
        print(f"{args.name} is at {moved['to']} now, generation {moved['generation']}")


def _with_guest(args: Args, call: Call, shown: dict[str, Any], peer: _Peer, ordered: bytes) -> None:
    """Both hosts are on this machine; they move the VM, and have their managers move the vTPM meanwhile."""
    if args.dry_run or not Path(args.to).is_dir():
        raise ConfigError("--with-guest takes the directory of a host on this machine, and has no --dry-run")
    back = b"" if args.order is not None else _order(args, call, shown, peer, back=True)
    at = relocation.desk(args, args.to, "guest_receive", vtpm=shown["uuid"])["at"]
    asked = {"name": args.name, "receiver": peer.address, "to": at, "order": ordered, "back": back}
    told = relocation.desk(args, args.manager, "guest_move", **asked)
    if args.json:
        print(output.as_json(told))
    else:
        print(f"{args.name} and its guest are at the other host now; the guest stood still for {told['pause']:.1f} s")


def resume_guest(args: Args) -> None:
    """A guest that stands still after a move that failed, and whose vTPM is here."""
    relocation.desk(args, args.manager, "guest_go_on", name=args.name)


def evacuate(args: Args, call: Call) -> int:
    """All vTPMs that can move, some at once; a line for each. Exit code 1 if one stays."""
    peer, found = _peer(args), call(args, "list")
    rows = [row for row in found if args.group is None or row["group"] == args.group]

    def one(row: dict[str, Any]) -> dict[str, Any]:
        try:
            ordered = _order(args, call, call(args, "show", name=row["name"]), peer)
            call(args, "migrate", name=row["name"], order=ordered, to=peer.address)
            return {"name": row["name"], "moved": True, "text": ""}
        except VtpmManagerError as error:
            return {"name": row["name"], "moved": False, "text": str(error)}

    outcomes = []
    with ThreadPoolExecutor(args.parallel) as workers:
        for number, outcome in enumerate(workers.map(one, rows), 1):
            outcomes.append(outcome)
            said = "moved" if outcome["moved"] else f"stays: {outcome['text']}"
            print(
                f"({number}/{len(rows)}) {output.printable(outcome['name'])}: {output.printable(said)}", file=sys.stderr
            )
    if args.json:
        print(output.as_json(outcomes))
    return int(not all(outcome["moved"] for outcome in outcomes))


def migrations(args: Args, call: Call) -> None:
    """All moves that are remembered."""
    found = call(args, "migrations")
    if args.json:
        print(output.as_json(found))
    else:
        print(output.as_table(found, _COLUMNS) if found else "no moves")


def _peer(args: Args) -> _Peer:
    """``--to``: a directory or socket of a manager on this machine, or HOST:PORT with --platform or --order."""
    if ":" in args.to and not args.to.startswith("unix:") and not Path(args.to).exists():
        return _Peer(args.to, args.platform or "")
    admin_socket, _ = sockets(args.to)
    with Client.connect(admin_socket, args.timeout, operator_key(args.key, admin_socket)) as client:
        address = client.call("status")["migration"]
        if not address:
            raise ConfigError(f"the manager at {args.to} does not listen for moves ('migration' in its configuration)")
        return _Peer(address, args.platform or _platform(client.call("platform_show"), "the other side's platform"))


def _order(args: Args, call: Call, shown: dict[str, Any], peer: _Peer, *, back: bool = False) -> bytes:
    """By --authority, or by the authority beside the manager (dev, simulated hosts). ``back``: for the way back."""
    if not peer.platform:
        raise ConfigError("name the other side's platform with --platform, or give the order with --order")
    directory = args.authority or local.directory(sockets(args.manager)[0].absolute().parent)
    if directory is None:
        raise ConfigError(
            "a move needs an order of the group's authority: --order FILE, or --authority DIR to make one"
        )
    authority = AuthorityDirectory.open(directory)
    source = _platform(call(args, "platform_show"), "this manager's platform")
    generation, group = shown["generation"], shown["group"]
    if back:
        return order.give(shown["uuid"], generation + 1, peer.platform, source, authority.key, group=group)
    return order.give(shown["uuid"], generation, source, peer.platform, authority.key, group=group)


def _platform(told: dict[str, Any], whose: str) -> str:
    if not told.get("enrolled"):
        raise ConfigError(f"{whose} is not enrolled with the authority: nobody can order a move; see 'platform --help'")
    return str(told["platform"])


def add_arguments(verbs: dict[str, argparse.ArgumentParser]) -> None:
    """The arguments of the verbs about moves."""
    for name in ("migrate", "evacuate"):
        verb = verbs[name]
        verb.add_argument("--to", required=True, metavar="PEER", help="HOST:PORT, or DIR of a manager on this machine")
        verb.add_argument("--platform", metavar="NAME", help="the other side's platform, for an order that is made now")
        text = "make the orders with this authority (default: the one beside the manager)"
        verb.add_argument("--authority", type=Path, metavar="DIR", help=text)
    verbs["migrate"].add_argument("--order", type=Path, metavar="FILE.json", help="the order ('authority order')")
    text = "its guest's VM moves too, by the hosts of both managers; PEER is DIR"
    verbs["migrate"].add_argument("--with-guest", action="store_true", help=text)
    verbs["migrate"].add_argument("--dry-run", action="store_true", help="all that comes before the move, no further")
    verbs["evacuate"].add_argument(
        "--parallel", type=_several, default=2, metavar="N", help="so many at once (default: 2)"
    )
    verbs["evacuate"].add_argument("--group", metavar="NAME", help="only the vTPMs of this group")
    verbs["declare-dead"].add_argument("--yes", action="store_true", help="do not ask")


def add_order(verb: argparse.ArgumentParser) -> None:
    """The arguments of ``authority order``."""
    verb.add_argument("--vtpm", required=True, metavar="UUID", help="which vTPM, as 'show' says")
    verb.add_argument("--generation", required=True, type=int, metavar="N", help="its generation, as 'show' says")
    verb.add_argument("--from", dest="source", required=True, metavar="PLATFORM", help="where it is")
    verb.add_argument("--to", dest="destination", required=True, metavar="PLATFORM", help="where it may go")
    verb.add_argument("--group", default="default", metavar="NAME", help="its group, whose authority this is")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the order")


def _several(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) <= 64:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: use a number from 1 to 64")
