"""What ``vtpmctl authority`` and ``vtpmctl key`` do: an authority's directory, keys, statements in files."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manager_vm.ctl import actions, credentials, migration, platforms
from manager_vm.ctl import recovery as recovering
from manager_vm.ctl import relocation as relocating
from manager_vm.ctl import standing as standing_orders
from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import (
    approval,
    enrolment,
    envelope,
    group,
    group_register,
    operator,
    order,
    platform,
    policy,
    recovery,
    relocation,
    standing,
)
from manager_vm.trust.authority import AuthorityDirectory, read_statement
from manager_vm.trust.group import Hierarchy
from manager_vm.trust.operator import Role
from manager_vm.trust.pcrs import CAPPED_PCR, capped
from manager_vm.trust.signing import SigningKey, VerifyKey

Args = argparse.Namespace
Result = tuple[dict[str, Any], int]  # what to print, exit code
_BANK = "sha256"
_MAX_FILE = 1 << 20  # bytes of pcrs.json and image.json
_NOT_TRUSTED = EvidenceError.exit_code


# -- the authority's directory ------------------------------------------------------------------------------------


def _init(args: Args) -> Result:
    made = AuthorityDirectory.init(args.directory)
    return {"directory": str(made.path), "public": str(made.path / "authority.pub"), "key_id": made.public.id}, 0


def _approve(args: Args) -> Result:
    authority = AuthorityDirectory.open(args.directory)
    values, name = _expected(args)
    path = authority.approve(args.name or name, values, args.number)
    made = approval.verify(read_statement(path), authority.public)
    told = {"file": str(path), "number": made.number, "image": made.image, "pcrs": _hex(made.pcrs)}
    return {**told, "after_cap": _after_cap(made.pcrs), "policy": made.policy.hex()}, 0


def _revoke(args: Args) -> Result:
    authority = AuthorityDirectory.open(args.directory)
    path = authority.revoke(args.number or (), args.reason, below=args.below or 0)
    bits = approval.verify_revocation(read_statement(path), authority.public)
    left = sorted(authority.approved() - authority.revoked())
    return {"file": str(path), "revoked": approval.numbers(bits), "left": left}, 0


def _enroll(args: Args) -> Result:
    if args.group is not None:
        return _enroll_group(args)
    if args.authority is not None or args.hierarchy is not None:
        raise ConfigError("--authority and --hierarchy belong to --group")
    if args.operator is None:
        if args.key is not None or args.role is not None or args.description:
            raise ConfigError("--key, --role and --description belong to --operator")
        return platforms.enroll(args) if args.recovery is None else recovering.enroll(args)
    if args.key is None or args.role is None:
        raise ConfigError("--operator needs the operator's public --key and a --role")
    authority = AuthorityDirectory.open(args.directory)
    role = Role(args.role)
    path = authority.enroll_operator(args.operator, VerifyKey.load(args.key), role, args.description)
    made = operator.verify(read_statement(path), authority.public)
    return {"file": str(path), "operator": made.name, "role": made.role.value, "key_id": made.key.id}, 0


def _enroll_group(args: Args) -> Result:
    if args.authority is None:
        raise ConfigError("--group needs the public key of the group's own --authority")
    if args.key is not None or args.role is not None or args.description:
        raise ConfigError("--key, --role and --description belong to --operator")
    authority = AuthorityDirectory.open(args.directory)
    path = group_register.enroll(
        authority, args.group, VerifyKey.load(args.authority), Hierarchy(args.hierarchy or "sk")
    )
    made = group.verify(read_statement(path), authority.public)
    told = {"file": str(path), "group": made.name, "hierarchy": made.hierarchy.value}
    return {**told, "authority": made.authority.id, "serial": made.serial}, 0


def _remove(args: Args) -> Result:
    authority = AuthorityDirectory.open(args.directory)
    path = authority.remove_operator(args.operator, args.reason)
    key_id = operator.verify_removal(read_statement(path), authority.public)
    return {"file": str(path), "operator": args.operator, "key_id": key_id}, 0


def _new_key(args: Args) -> Result:
    public = args.file.with_name(args.file.name + ".pub")
    if public.exists():
        raise ConfigError(f"{public} is there already, and no key is ever overwritten; name another file")
    key = SigningKey.create()
    key.store(args.file)
    key.public.store(public)
    return {"key": str(args.file), "public": str(public), "key_id": key.public.id}, 0


# -- expected PCR values ------------------------------------------------------------------------------------------


def _expected(args: Args) -> tuple[dict[int, bytes], str]:
    """(PCR values, what to call them)."""
    if args.pcrs:
        return _pcrs(_json(args.pcrs), args.pcrs), args.pcrs.name
    told, about = _json(args.image / "pcrs.json"), _json(args.image / "image.json")
    if told.get("uki") != _sha256(args.image / "uki.efi"):
        raise ConfigError(f"{args.image}/pcrs.json is not of the uki.efi beside it; build it again: ./build.sh image")
    name = " ".join(str(about.get(part, "")) for part in ("kind", "profile", "root_hash"))
    return _pcrs(told, args.image / "pcrs.json"), name


def read_pcrs(path: Path) -> dict[int, bytes]:
    """PCR -> value before the cap, from a file of image.measure."""
    return _pcrs(_json(path), path)


def _pcrs(told: dict[str, Any], path: Path) -> dict[int, bytes]:
    try:
        values = {int(pcr): bytes.fromhex(value) for pcr, value in told["pcrs"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        values = {}
    if told.get("bank") != _BANK or not values:
        raise ConfigError(f"{path} has no SHA-256 PCR values; make it with: python3 -m image.measure IMAGE --json")
    return values


def _json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(_MAX_FILE))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; './build.sh image' makes it") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is no JSON object; './build.sh image' makes it")
    return value


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, _BANK).hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; './build.sh image' makes it") from None


def _hex(values: Any) -> dict[str, str]:
    return {str(pcr): values[pcr].hex() for pcr in sorted(values)}


def _after_cap(values: Any) -> dict[str, str]:
    return {str(CAPPED_PCR): capped(values[CAPPED_PCR]).hex()}


# -- showing a statement ------------------------------------------------------------------------------------------


def _show(args: Args) -> Result:
    data = read_statement(args.file)
    kind = envelope.kind_of(data)
    told: dict[str, Any] = {"file": str(args.file), "kind": kind, "signed_by": envelope.signers(data)}
    statement = envelope.peek(kind, data)
    if not args.authority:
        verdict = "NOT verified: name the authority's public key with --authority"
        return {**told, "verified": False, "verdict": verdict, "statement": statement}, 0
    try:
        meaning = _meaning(kind, data, VerifyKey.load(args.authority))
    except EvidenceError as error:
        verdict = f"NOT verified: {error}"
        return {**told, "verified": False, "verdict": verdict, "statement": statement}, _NOT_TRUSTED
    verdict = f"verified: signed by {args.authority}"
    return {**told, "verified": True, "verdict": verdict, "statement": statement, "meaning": meaning}, 0


def _meaning(kind: str, data: bytes, authority: VerifyKey) -> dict[str, Any]:
    """What follows from a statement that ``authority`` signed; EvidenceError if it did not."""
    if kind not in _MEANINGS:
        raise EvidenceError(f"this version knows no statement of the kind {kind!r}")
    return _MEANINGS[kind](data, authority)


def _of_approval(data: bytes, authority: VerifyKey) -> dict[str, Any]:
    found = approval.verify(data, authority)
    sealed = policy.authorised_by(authority).hex()
    return {"policy": found.policy.hex(), "sealed_under": sealed, "after_cap": _after_cap(found.pcrs)}


def _of_revocation(data: bytes, authority: VerifyKey) -> dict[str, Any]:
    return {"revoked": approval.numbers(approval.verify_revocation(data, authority))}


def _of_operator(data: bytes, authority: VerifyKey) -> dict[str, Any]:
    found = operator.verify(data, authority)
    return {"operator": found.name, "may": actions.ROLES[found.role.value], "key_id": found.key.id}


def _of_removal(data: bytes, authority: VerifyKey) -> dict[str, Any]:
    return {"removed": operator.verify_removal(data, authority)}


def _of_group(data: bytes, authority: VerifyKey) -> dict[str, Any]:
    found = group.verify(data, authority)
    return {"group": found.name, "hierarchy": found.hierarchy.value, "operators_enrolled_by": found.authority.id}


def _of_platform(data: bytes, authority: VerifyKey) -> dict[str, Any]:
    found = platform.verify(data, authority)
    return {"platform": found.name, "serial": found.serial, "ak": found.ak.name.hex(), "ek_certificate": found.ek.hex()}


def _of_challenge(data: bytes, authority: VerifyKey) -> dict[str, Any]:
    found = enrolment.verify_challenge(data, authority)
    return {"challenge": found.id, "ak": found.ak.hex()}


def _of_recipient(data: bytes, authority: VerifyKey) -> dict[str, Any]:
    found = recovery.verify_recipient(data, authority)
    return {"wrap_to": found.key.id, "serial": found.serial}


def _of_order(data: bytes, authority: VerifyKey) -> dict[str, Any]:
    found = recovery.verify_order(data, authority)
    way = {"recover": found.manager, "from": found.old.hex(), "to": found.new.hex()}
    return {**way, "revoked": approval.numbers(found.revoked), "order": found.id.hex()}


def _of_move(data: bytes, authority: VerifyKey) -> dict[str, Any]:
    found = order.verify(data, lambda group: authority)
    way = {"vtpm": found.vtpm, "generation": found.generation, "from": found.source, "to": found.destination}
    return {**way, "group": found.group, "issued": found.issued, "order": found.id}


def _of_relocation(data: bytes, authority: VerifyKey) -> dict[str, Any]:
    found = relocation.verify(data, authority)
    way = {"relocate": found.manager, "moved": found.relocations, "from": found.source, "to": found.destination}
    return {**way, "issued": found.issued}


def _of_standing(data: bytes, authority: VerifyKey) -> dict[str, Any]:
    found = standing.verify(data, lambda group: authority)
    way = {"vm": found.vm, "platforms": list(found.platforms), "serial": found.serial}
    return {**way, "group": found.group, "issued": found.issued}


_MEANINGS: dict[str, Callable[[bytes, VerifyKey], dict[str, Any]]] = {
    approval.APPROVAL: _of_approval,
    approval.REVOCATION: _of_revocation,
    operator.OPERATOR: _of_operator,
    operator.OPERATOR_REMOVAL: _of_removal,
    group.GROUP: _of_group,
    platform.PLATFORM: _of_platform,
    enrolment.CHALLENGE: _of_challenge,
    recovery.RECIPIENT: _of_recipient,
    recovery.ORDER: _of_order,
    order.ORDER: _of_move,
    relocation.ORDER: _of_relocation,
    standing.STANDING: _of_standing,
}

ACTIONS: dict[tuple[str, str], Callable[[Args], Result]] = {
    ("authority", "init"): _init,
    ("authority", "approve"): _approve,
    ("authority", "revoke"): _revoke,
    ("authority", "enroll"): _enroll,
    ("authority", "remove"): _remove,
    ("authority", "recover"): recovering.order,
    ("authority", "order"): migration.give,
    ("authority", "relocate"): relocating.give,
    ("authority", "standing"): standing_orders.give,
    ("authority", "show"): _show,
    ("key", "new"): _new_key,
    ("credential", "show"): credentials.show,
}
