"""vtpmctl's verbs about platforms: ``platform`` asks a manager, ``authority enroll --platform | --answer`` does not."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manager_vm.ctl import output
from manager_vm.errors import ConfigError
from manager_vm.trust import evidence
from manager_vm.trust.authority import AuthorityDirectory, replace
from manager_vm.trust.enrolment import MAX_KEYS
from manager_vm.trust.register import Register

Args = argparse.Namespace
Call = Callable[..., Any]
ACTIONS = ("evidence", "activate", "install", "show")
_MAX_FILE = 1 << 18


def platform(args: Args, call: Call) -> None:
    """One step of an enrolment, at the manager."""
    if (args.file is None) != (args.action in ("evidence", "show")):
        needs = "needs a file of the authority" if args.file is None else "takes no file"
        raise ConfigError(f"'platform {args.action}' {needs}; see 'vtpmctl platform --help'")
    if (args.out is None) != (args.action in ("install", "show")):
        needs = "needs --out FILE" if args.out is None else "makes no file"
        raise ConfigError(f"'platform {args.action}' {needs}; see 'vtpmctl platform --help'")
    if args.more is not None and args.action != "evidence":
        raise ConfigError("--more belongs to 'platform evidence'")
    if args.action == "evidence":
        _save(args, call(args, "platform_evidence", more=args.more))
    elif args.action == "activate":
        _save(args, call(args, "platform_activate", statement=read(args.file)))
    elif args.action == "install":
        _show(args, call(args, "platform_install", statement=read(args.file)))
    else:
        _show(args, call(args, "platform_show"))


def enroll(args: Args) -> tuple[dict[str, Any], int]:
    """``authority enroll`` of a platform: from evidence to a challenge, from its answer to the enrolment."""
    if args.out is None:
        raise ConfigError("name with --out the file for the manager")
    if args.answer is not None and any(each is not None for each in (args.evidence, args.vendor_ca, args.level)):
        raise ConfigError("--evidence, --vendor-ca and --level belong to --platform; for an answer the rest is known")
    register = Register(AuthorityDirectory.open(args.directory))
    if args.answer is not None:
        made, keys, issued = register.enrol(read(args.answer))
        replace(args.out, issued)
        told = {"platform": made.name, "serial": made.serial, "keys": len(keys), "ak": made.ak.name.hex()}
        return {"file": str(args.out), **told}, 0
    if args.evidence is None or args.vendor_ca is None:
        raise ConfigError("--platform needs the platform's --evidence, and --vendor-ca: who has made its TPM")
    vendors = [each for path in args.vendor_ca for each in evidence.load_vendors(path)]
    found, challenge = register.challenge(args.platform, read(args.evidence), vendors, args.level or 0)
    replace(args.out, challenge)
    told = {"platform": args.platform, "ek": found.kind, "ek_certificate": found.ek_digest.hex()}
    return {"file": str(args.out), **told, "ak": found.ak.name.hex()}, 0


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """The arguments of ``platform``."""
    verb.add_argument("action", choices=ACTIONS)
    verb.add_argument(
        "file", type=Path, nargs="?", metavar="FILE.json", help="challenge (activate), enrolment (install)"
    )
    verb.add_argument("--out", type=Path, metavar="FILE.json", help="where evidence or answer go")
    help_ = f"signing keys to be certified, at most {MAX_KEYS} (evidence; default: up to 64 for vTPMs to come)"
    verb.add_argument("--more", type=int, metavar="N", help=help_)


def add_enrolment(enroll: argparse.ArgumentParser, whom: Any) -> None:
    """The arguments of ``authority enroll`` that are about platforms. ``whom``: its group of alternatives."""
    whom.add_argument("--platform", metavar="NAME", help="a platform: 1 to 63 letters, digits, '.', '_' or '-'")
    whom.add_argument("--answer", type=Path, metavar="FILE", help="a platform's answer to its challenge")
    enroll.add_argument("--evidence", type=Path, metavar="FILE", help="of 'platform evidence', for --platform")
    text = "certificates (PEM) of who has made its TPM, for --platform"
    enroll.add_argument("--vendor-ca", type=Path, action="append", metavar="FILE", help=text)
    text = "how far it is trusted, 0 to 255, for --platform (default: 0): no vTPM moves to a lower level"
    enroll.add_argument("--level", type=int, metavar="N", help=text)
    enroll.add_argument("--out", type=Path, metavar="FILE", help="the challenge, or with --answer the enrolment")


def read(path: Path) -> bytes:
    """A file's bytes, as many as any of ours has and one; ConfigError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def _save(args: Args, data: bytes) -> None:
    replace(args.out, data)
    print(output.as_json({"file": str(args.out)}) if args.json else args.out)


def _show(args: Args, value: dict[str, Any]) -> None:
    if args.json:
        print(output.as_json(value))
    elif value:
        print(output.as_fields(value))
