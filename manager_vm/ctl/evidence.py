"""vtpmctl quote, receipt: evidence asked for by an operator; verify, verify-receipt: verified without a manager."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from manager_vm.ctl import output, statements
from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import bundle, linked
from manager_vm.trust import receipt as receipts
from manager_vm.trust.evidence import load_vendors
from manager_vm.trust.group import DEFAULT
from manager_vm.trust.linked import Demand
from manager_vm.trust.pcrs import BOUND_PCRS
from manager_vm.trust.signing import VerifyKey
from manager_vm.wire.quote import NONCE_SIZES

Args = argparse.Namespace


def quote(args: Args, call: Callable[..., Any]) -> None:
    """Print or write the bundle about a vTPM and its platform."""
    data: bytes = call(args, "quote", name=args.name, nonce=_nonce(args.nonce))
    if args.out is None:
        print(data.decode(), end="")
        return
    _write(args.out, data)
    if args.json:
        print(output.as_json({"file": str(args.out)}))


def verify(args: Args) -> int:
    """Print what is proven line by line; the exit code says whether all was."""
    demand = Demand(
        authority=VerifyKey.load(args.authority),
        nonce=_nonce(args.nonce),
        now=datetime.datetime.now(datetime.UTC),
        expected=None if args.expect is None else _expected(args.expect),
        ek_ca=() if args.ek_ca is None else tuple(load_vendors(args.ek_ca)),
    )
    return _tell(args, linked.verify(_read(args.bundle, bundle.MAX_SIZE), demand))


def receipt(args: Args, call: Callable[..., Any]) -> None:
    """Write the receipt of a move."""
    data: bytes = call(args, "receipt", move=args.move)
    _write(args.out, data)
    if args.json:
        print(output.as_json({"file": str(args.out)}))


def verify_receipt(args: Args) -> int:
    """Print what a receipt proves line by line; the exit code says whether all of it is good."""
    authority = VerifyKey.load(args.authority)

    def of_group(group: str) -> VerifyKey:
        if group == DEFAULT:
            return authority
        if args.group_authority is None:
            raise ConfigError(f"the vTPM is of group {group!r}: name its authority's key with --group-authority")
        return VerifyKey.load(args.group_authority)

    return _tell(args, receipts.verify(_read(args.receipt, receipts.MAX_SIZE), authority, of_group))


def _tell(args: Args, lines: Iterator[str]) -> int:
    proven: list[str] = []
    try:
        for line in lines:
            proven.append(line)
            if not args.json:
                print(f"proven  {output.printable(line)}")
    except EvidenceError as error:
        if args.json:
            print(output.as_json({"verified": False, "proven": proven, "not_proven": str(error)}))
        else:
            print(f"FAILED  {output.printable(str(error))}")
        return EvidenceError.exit_code
    if args.json:
        print(output.as_json({"verified": True, "proven": proven, "not_proven": None}))
    return 0


def add_arguments(verbs: dict[str, argparse.ArgumentParser]) -> None:
    """Of these verbs; that a vTPM is named stands with all others."""
    for verb in ("quote", "verify"):
        verbs[verb].add_argument("--nonce", required=True, metavar="HEX", help="the verifier's, 16 to 64 bytes")
    verbs["quote"].add_argument("--out", type=Path, metavar="FILE", help="write there")
    asked, shown = verbs["receipt"], verbs["verify-receipt"]
    asked.add_argument("move", metavar="MOVE", help="its id, or a vTPM's name: its newest move")
    asked.add_argument("--out", type=Path, required=True, metavar="FILE", help="write there")
    shown.add_argument("receipt", type=Path, metavar="FILE", help="the file to verify")
    shown.add_argument("--authority", type=Path, required=True, metavar="FILE", help="authority.pub of the platforms")
    shown.add_argument("--group-authority", type=Path, metavar="FILE", help="authority.pub of the vTPM's group")
    told = verbs["verify"]
    told.add_argument("bundle", type=Path, metavar="BUNDLE", help="the file to verify")
    told.add_argument("--authority", type=Path, required=True, metavar="FILE", help="authority.pub")
    told.add_argument("--expect", type=Path, metavar="pcrs.json", help="the image that must have booted")
    told.add_argument("--ek-ca", type=Path, metavar="ca.pem", help="who must have certified the vTPM's EK")


def _nonce(text: str) -> bytes:
    with suppress(ValueError):
        found = bytes.fromhex(text)
        if len(found) in NONCE_SIZES:
            return found
    raise ConfigError(f"--nonce takes {NONCE_SIZES[0]} to {NONCE_SIZES[-1]} bytes in hex digits")


def _expected(path: Path) -> Mapping[int, bytes]:
    values = statements.read_pcrs(path)
    if missing := set(BOUND_PCRS) - values.keys():
        raise ConfigError(f"{path} lacks PCR {min(missing)}; make it with: python3 -m image.measure IMAGE --json")
    return {pcr: values[pcr] for pcr in BOUND_PCRS}


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _read(path: Path, most: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
