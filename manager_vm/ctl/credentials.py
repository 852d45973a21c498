"""vtpmctl's verbs about AKs of vTPMs: certify (a manager), credential show (offline)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manager_vm.ctl import output
from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import tpm_structures, vak
from manager_vm.trust.signing import VerifyKey

Args = argparse.Namespace
Call = Callable[..., Any]


def certify(args: Args, call: Call) -> None:
    """Have the manager issue a credential for an AK; or make, and later complete, the request to an outside CA."""
    more = {} if args.response is None else {"response": _read(args.response)}
    found = call(args, "certify", name=args.name, ak=args.ak, **more)
    what = "request" if "request" in found else "credential"
    if args.out is None:
        print(found[what].decode(), end="")
        return
    try:
        args.out.write_bytes(found[what])
    except OSError as error:
        raise ConfigError(f"cannot write {args.out}: {error.strerror}") from None
    told = {"file": str(args.out), "what": what, "hierarchy": found["hierarchy"]}
    print(output.as_json(told) if args.json else output.as_fields(told))


def show(args: Args) -> tuple[dict[str, Any], int]:
    """What a credential proves; exit code."""
    data = _read(args.file)
    found = vak.unpack(data)
    told: dict[str, Any] = {"file": str(args.file), "hierarchy": found.hierarchy.value}
    told["ak"] = tpm_structures.parse_public(found.ak).name.hex()
    authority = VerifyKey.load(args.authority) if args.authority else None
    if authority is None and args.root is None:
        return {**told, "verified": False, "verdict": "NOT verified: name whom you trust with --authority or --root"}, 0
    try:
        proven = vak.verify(data, authority, [vak.root(_read(args.root))] if args.root else [])
    except EvidenceError as error:
        return {**told, "verified": False, "verdict": f"NOT verified: {error}"}, EvidenceError.exit_code
    told |= {"verified": True, "platform": proven.platform}
    if proven.challenge is None:
        return {**told, "verdict": "verified: this AK is in a vTPM"}, 0
    verdict = "verified for the vEK: ask the vTPM to open a credential for vEK and AK (tpm2_makecredential)"
    return {**told, "ek": proven.challenge.name.hex(), "verdict": verdict}, 0


def add_arguments(certify: argparse.ArgumentParser) -> None:
    """The arguments of ``certify`` behind the vTPM's name."""
    certify.add_argument("--ak", type=_handle, required=True, metavar="HANDLE", help="the AK's persistent handle")
    certify.add_argument("--response", type=Path, metavar="FILE.pem", help="what an outside CA has issued for it")
    certify.add_argument("--out", type=Path, metavar="FILE", help="write there (default: standard output)")


def _handle(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no handle: use 0x81000000 to 0x817fffff") from None


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(vak.MAX_SIZE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
