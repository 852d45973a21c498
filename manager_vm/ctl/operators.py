"""vtpmctl's verbs that bring a manager statements of an authority: provision, approve, revoke, operator, group."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manager_vm.ctl import output
from manager_vm.errors import ConfigError
from manager_vm.trust.signing import VerifyKey

Args = argparse.Namespace
Call = Callable[..., Any]
_MAX_FILE = 1 << 18
_NEXT = """next, on the host: power the manager VM down (every vTPM is parked), start it from the new image;
then forbid the old one: vtpmctl authority revoke, vtpmctl revoke"""
_COLUMNS = ("name", "role", "serial", "key")
_GROUP_COLUMNS = ("name", "hierarchy", "vtpms", "operators", "authority")


def provision(args: Args, call: Call) -> None:
    """Hand the authority's public key and its first operators to a manager that has none."""
    operators, approvals = ([_read(path) for path in paths] for paths in (args.operators, args.approval))
    authority = VerifyKey.load(args.authority)
    more = {"recovery": _read(args.recovery)} if args.recovery else {}
    call(args, "provision", authority=authority.der, operators=operators, approvals=approvals, **more)
    print(output.as_json({"authority": authority.id}) if args.json else f"provisioned by authority {authority.id}")


def operator(args: Args, call: Call) -> None:
    """Who is enrolled; with a statement of the authority, after it was taken."""
    about = {} if args.group is None else {"group": args.group}
    if args.action == "list":
        if args.file is not None:
            raise ConfigError("'operator list' takes no file")
        _show(args, call(args, "operators", **about))
        return
    if args.file is None:
        raise ConfigError(f"'operator {args.action}' needs the file of the authority's statement")
    _show(args, call(args, f"operator_{args.action}", statement=_read(args.file), **about))


def group(args: Args, call: Call) -> None:
    """The groups there are; after one was added or removed."""
    if args.action == "list":
        if args.what:
            raise ConfigError("'group list' takes no argument")
        found = call(args, "groups")
    elif args.action == "remove":
        if len(args.what) != 1:
            raise ConfigError("'group remove' needs the group's name")
        found = call(args, "group_remove", name=args.what[0])
    else:
        if not args.what:
            raise ConfigError("'group add' needs the file of the authority's statement")
        statement, *enrolments = [_read(Path(each)) for each in args.what]
        found = call(args, "group_add", statement=statement, operators=enrolments)
    print(output.as_json(found) if args.json else output.as_table(found, _GROUP_COLUMNS))


def approve(args: Args, call: Call) -> None:
    """An approval of an image, taken; then all that are known."""
    _show_approvals(args, call(args, "approve", statement=_read(args.file)))


def upgrade(args: Args, call: Call) -> None:
    """The same, and what the host side has to do then."""
    approve(args, call)
    if not args.json:
        print(_NEXT)


def revoke(args: Args, call: Call) -> None:
    """A revocation, set in the TPM; then all that are known."""
    _show_approvals(args, call(args, "revoke", statement=_read(args.file), force=args.force))


def approvals(args: Args, call: Call) -> None:
    """Which images may unseal there."""
    _show_approvals(args, call(args, "approvals"))


def add_arguments(verbs: dict[str, argparse.ArgumentParser]) -> None:
    """The arguments of these verbs."""
    verbs["provision"].add_argument("authority", type=Path, metavar="AUTHORITY.pub", help="its public key, PEM")
    verbs["provision"].add_argument(
        "operators", type=Path, nargs="+", metavar="OPERATOR.json", help="enrolments, one of an admin at least"
    )
    verbs["provision"].add_argument(
        "--approval",
        type=Path,
        action="append",
        required=True,
        metavar="FILE.json",
        help="of the image that runs there",
    )
    for verb in ("approve", "upgrade", "revoke"):
        verbs[verb].add_argument("file", type=Path, metavar="FILE.json", help="the authority's statement")
    verbs["revoke"].add_argument("--force", action="store_true", help="even if no approval is left there")
    verbs["operator"].add_argument("action", choices=("add", "remove", "list"))
    verbs["operator"].add_argument("file", type=Path, nargs="?", metavar="FILE.json", help="the authority's statement")
    verbs["operator"].add_argument(
        "--group", metavar="NAME", help="of this group, by its authority (default: the host's)"
    )
    verbs["group"].add_argument("action", choices=("add", "list", "remove"))
    verbs["group"].add_argument(
        "what", nargs="*", metavar="FILE.json|NAME", help="add: the statement, and enrolments by the group's authority"
    )


def _show(args: Args, found: list[dict[str, str]]) -> None:
    print(output.as_json(found) if args.json else output.as_table(found, _COLUMNS))


def _show_approvals(args: Args, found: list[dict[str, str]]) -> None:
    print(output.as_json(found) if args.json else output.as_table(found, ("number", "state", "image")))


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
