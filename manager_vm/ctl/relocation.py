"""vtpmctl's verbs about moving a whole manager: ``relocate``; ``authority relocate`` asks no manager."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manager_vm.ctl import output
from manager_vm.ctl.client import Client, sockets
from manager_vm.ctl.platforms import read
from manager_vm.errors import ConfigError
from manager_vm.trust import local, relocation
from manager_vm.trust.authority import AuthorityDirectory, replace
from manager_vm.wire.admin import Progress

Args = argparse.Namespace
Call = Callable[..., Any]
METHODS = ("precopy", "suspend", "stop", "postcopy")
_DESK = "relocate.sock"
_LONG = 3600.0  # seconds: a VM boots at the other host, over a slow network


def give(args: Args) -> tuple[dict[str, Any], int]:
    """``authority relocate``: one manager may move once."""
    key = AuthorityDirectory.open(args.directory).key
    replace(args.out, relocation.give(args.manager_id, args.relocations, args.source, args.destination, key))
    return {"file": str(args.out), "manager": args.manager_id, "from": args.source, "to": args.destination}, 0


def relocate(args: Args, call: Call) -> None:
    """Move the manager with its VM, take one, or come back."""
    if args.abort:
        told = call(args, "relocate_abort", host=True)
        print(output.as_json(told) if args.json else output.as_fields(told))
    elif args.receive is not None:
        told = desk(args, args.manager, "receive", at=args.receive)
        print(output.as_json(told) if args.json else f"a manager may come to {told['at']}")
    elif args.method == "postcopy":
        raise ConfigError(relocation.NO_POSTCOPY)
    elif args.to is None or args.method is None:
        raise ConfigError("name where the manager moves and how: --to HOST --method precopy, suspend or stop")
    else:
        _move(args, call)


def _move(args: Args, call: Call) -> None:
    to, receiver, platform = _other(args, call)
    ordered = read(args.order) if args.order is not None else _order(args, call, platform)
    told = desk(args, args.manager, "relocate", method=args.method, to=to, receiver=receiver, order=ordered)
    if args.json:
        print(output.as_json(told))
        return
    print(f"the manager is at the other host: {told['total']:.1f} s, of which vTPMs waited {told['downtime']:.2f} s")


def _other(args: Args, call: Call) -> tuple[str, str, str]:
    """(end of the tunnel, the receiver's address, its platform): named, or asked of a host on this machine."""
    if not Path(args.to).is_dir():
        if not args.receiver or not (args.order or args.platform):
            raise ConfigError("for another machine name also --receiver HOST:PORT, and --order or --platform")
        return args.to, args.receiver, args.platform or ""
    told = desk(args, args.to, "receive")
    there = argparse.Namespace(**{**vars(args), "manager": args.to})
    receiver = args.receiver or call(there, "status")["migration"]
    if not receiver:
        raise ConfigError(f"the manager at {args.to} does not listen for moves: it has no address yet ('network')")
    return told["at"], receiver, args.platform or str(call(there, "platform_show")["platform"])


def _order(args: Args, call: Call, platform: str) -> bytes:
    directory = args.authority or local.directory(sockets(args.manager)[0].absolute().parent)
    if directory is None:
        raise ConfigError("a move needs an order of the authority: --order FILE, or --authority DIR to make one")
    key, status = AuthorityDirectory.open(directory).key, call(args, "status")
    source = call(args, "platform_show")["platform"]
    return relocation.give(status["manager"], status["relocation"]["relocations"], source, platform, key)


def desk(args: Args, where: str, verb: str, **values: Any) -> Any:
    """A request of the program that runs the VMs of a host."""
    path = sockets(where)[0].with_name(_DESK)
    if not path.exists():
        raise ConfigError(
            f"no program that runs a host's VMs serves {path}: VMs are moved by their host (python -m image.host)"
        )
    with Client.connect(path, max(args.timeout, _LONG)) as client:
        return client.call(verb, _progress, **values)


def _progress(step: Progress) -> None:
    print(output.printable(step.text), file=sys.stderr)


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """The arguments of ``relocate``."""
    verb.add_argument("--to", metavar="HOST", help="HOST:PORT of the other host's --receive, or DIR on this machine")
    verb.add_argument("--method", choices=METHODS, help="how its VM moves")
    verb.add_argument("--receiver", metavar="HOST:PORT", help="where the receiver listens ('migration' in its status)")
    verb.add_argument("--order", type=Path, metavar="FILE.json", help="the order ('authority relocate')")
    verb.add_argument("--platform", metavar="NAME", help="the receiver's platform, for an order that is made now")
    text = "make the order with this authority (default: the one beside the manager)"
    verb.add_argument("--authority", type=Path, metavar="DIR", help=text)
    verb.add_argument("--receive", metavar="HOST:PORT", help="at the destination: take a manager, the tunnel ends here")
    verb.add_argument("--abort", action="store_true", help="stay, come back, or (receiver) keep no place any more")


def add_order(verb: argparse.ArgumentParser) -> None:
    """The arguments of ``authority relocate``."""
    verb.add_argument("--manager", dest="manager_id", required=True, metavar="ID", help="as 'status' says")
    text = "how often it has moved, as 'status' says"
    verb.add_argument("--relocations", required=True, type=int, metavar="N", help=text)
    verb.add_argument("--from", dest="source", required=True, metavar="PLATFORM", help="where it is")
    verb.add_argument("--to", dest="destination", required=True, metavar="PLATFORM", help="where it may go")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the order")
