"""vtpmctl's verbs about recovery: ``recovery`` and ``recover`` ask a manager, ``authority enroll --recovery`` does not.

The recovery key's holder runs ``recover``: the private key stays on his machine, the manager gets the store key alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manager_vm.ctl import output
from manager_vm.ctl.platforms import read
from manager_vm.errors import ConfigError, RemoteProtocolError
from manager_vm.trust import approval, envelope, recovery
from manager_vm.trust.authority import AuthorityDirectory
from manager_vm.trust.recovery_register import RecoveryRegister
from manager_vm.trust.signing import SigningKey, VerifyKey

Args = argparse.Namespace
Call = Callable[..., Any]
ACTIONS = ("set", "show", "off")


def enroll(args: Args) -> tuple[dict[str, Any], int]:
    """``authority enroll --recovery``: to whom managers wrap their keys."""
    path, made = RecoveryRegister(AuthorityDirectory.open(args.directory)).name_recipient(VerifyKey.load(args.recovery))
    return {"file": str(path), "recipient": made.key.id, "serial": made.serial}, 0


def order(args: Args) -> tuple[dict[str, Any], int]:
    """``authority recover``: one manager may go from one hardware TPM to another."""
    register = RecoveryRegister(AuthorityDirectory.open(args.directory))
    path, made = register.order(args.recovered, args.old, args.new, args.reason, again=args.again)
    return {"file": str(path), "serial": made.serial, "revoked": approval.numbers(made.revoked)}, 0


def recipient(args: Args, call: Call) -> None:
    """Who can recover; with a statement of the authority, after it was taken."""
    if (args.file is None) == (args.action == "set"):
        needs = "needs the file of the authority's statement" if args.action == "set" else "takes no file"
        raise ConfigError(f"'recovery {args.action}' {needs}")
    if args.action == "set":
        _show(args, call(args, "recovery_set", statement=read(args.file)))
    else:
        _show(args, call(args, "recovery_off" if args.action == "off" else "recovery"))


def recover(args: Args, call: Call) -> None:
    """Unwrap the store key here, wrap it again to the manager that waits, and have it recover."""
    private, ordered = SigningKey.load(args.recovery_key), read(args.order)
    more = [read(path) for path in args.approval]
    match call(args, "recover_offer"):
        case {"manager": str(manager), "from": bytes(), "to": bytes(), "stanza": bytes(stanza), "key": bytes(key)}:
            handover = recovery.hand_over(private, stanza, manager, ordered, VerifyKey.from_der(key))
        case _:
            raise RemoteProtocolError("the manager's offer is none; do both sides have the same version?")
    call(args, "recover", order=ordered, approvals=more, handover=handover)
    said = {"recovered": manager, "order": envelope.digest(recovery.ORDER, ordered).hex()}
    print(output.as_json(said) if args.json else f"recovered manager {manager}\n{_NEXT}")


def add_arguments(verbs: dict[str, argparse.ArgumentParser]) -> None:
    """The arguments of ``recovery``, ``recover`` and ``provision --recovery``."""
    verbs["recovery"].add_argument("action", choices=ACTIONS)
    verbs["recovery"].add_argument("file", type=Path, nargs="?", metavar="FILE.json", help="the authority's (set)")
    verb = verbs["recover"]
    verb.add_argument(
        "--key",
        type=Path,
        dest="recovery_key",
        required=True,
        metavar="FILE",
        help="the recovery key, private; it stays here",
    )
    verb.add_argument("--order", type=Path, required=True, metavar="FILE.json", help="the authority's order")
    text = "of the image that runs there, if the disk does not have it"
    verb.add_argument("--approval", type=Path, action="append", default=[], metavar="FILE.json", help=text)
    text = "to whom keys are wrapped for recovery: the authority's statement"
    verbs["provision"].add_argument("--recovery", type=Path, metavar="FILE.json", help=text)


def add_enrolment(whom: Any) -> None:
    """The alternative of ``authority enroll`` that is about recovery."""
    whom.add_argument("--recovery", type=Path, metavar="FILE", help="a recovery recipient's public key (PEM)")


def add_order(verb: argparse.ArgumentParser) -> None:
    """The arguments of ``authority recover``."""
    verb.add_argument(
        "--manager", dest="recovered", required=True, metavar="ID", help="which manager, as 'status' says"
    )
    verb.add_argument("--from", dest="old", required=True, metavar="NAME", help="SRK of the hardware TPM that it had")
    verb.add_argument("--to", dest="new", required=True, metavar="NAME", help="SRK of the hardware TPM that it gets")
    verb.add_argument("--reason", required=True, metavar="TEXT", help="for people, up to 200 characters")
    verb.add_argument("--again", action="store_true", help="although it was ordered to go elsewhere from there")


_NEXT = """it starts now on the new platform; nothing proves that its disk was the newest. Look through 'operator list',
'approvals' and 'list' for what should be gone; enrol the platform anew ('platform')"""


def _show(args: Args, value: dict[str, Any]) -> None:
    if args.json:
        print(output.as_json(value))
    elif value:
        print(output.as_fields(value))
