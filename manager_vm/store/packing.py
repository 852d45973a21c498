"""The manifest's contents as bytes, and back: msgpack (FORMAT.md)."""

from __future__ import annotations

from dataclasses import astuple, fields, replace
from typing import Any

import msgpack

from manager_vm import crypto
from manager_vm.crypto import Key
from manager_vm.errors import IntegrityError
from manager_vm.protocol.lifecycle import State
from manager_vm.protocol.relocation import Leaving
from manager_vm.store.marks import Recovered, Recovery, RevokedPlatform
from manager_vm.store.records import (
    AuditHead,
    Contents,
    Group,
    Identity,
    Move,
    SigningKey,
    Snapshot,
    Snapshots,
    VtpmKeys,
    VtpmRecord,
)
from manager_vm.store.relocation import Departure, Expected


def pack_open(contents: Contents, stanza: bytes = b"") -> bytes:
    """What may be read by anybody who has the disk: records and certificates, no key but what ``stanza`` wraps."""
    records = [{f.name: getattr(record, f.name) for f in fields(record)} for record in contents.vtpms.values()]
    trust = {
        "authority": contents.authority,
        "operators": contents.operators,
        "audit": [contents.audit.count, contents.audit.digest],
        "owner": contents.owner,
        "groups": {name: [x.statement, x.ca_certificate, x.operators] for name, x in contents.groups.items()},
        "identity": [found.ak, found.statement, found.authority] if (found := contents.identity) else None,
        "recovery": [contents.recovery.statement, contents.recovery.off, stanza],
        "recovered": contents.recovered,
        "revoked_platforms": contents.revoked_platforms,
        "moves": list(contents.moves.values()),
        "generations": contents.generations,
        "relocation": _pack_relocation(contents),
        "standing": contents.standing,
    }
    opened = {"serial": contents.serial, "ca": contents.ca_certificate, "vtpms": records, **trust}
    return bytes(msgpack.packb(opened, default=astuple))


def pack_secret(contents: Contents) -> bytes:
    """The key table, to be sealed: {"ca", "vtpms": {uuid: [blob key, run key or None]}, "groups", "sks", "moves", ...}.

    SKs stand here, for they say which vTPMs are on one host.
    """
    table = {
        uuid: [keys.blob.reveal(), keys.run.reveal() if keys.run else None] for uuid, keys in contents.keys.items()
    }
    sks = [[key.public, key.private, key.certificate, key.vtpm] for key in _signing_keys(contents)]
    groups = {name: group.ca_key for name, group in contents.groups.items()}
    keys = {"ca": contents.ca_key, "vtpms": table, "groups": groups, "sks": sks, "moves": contents.move_keys}
    place = contents.departure.place if contents.departure else b""
    secret = contents.expected.secret if contents.expected else b""
    snapshots = {uuid: _pack_snapshots(each) for uuid, each in contents.snapshots.items()}
    return bytes(msgpack.packb({**keys, "relocation": [place, secret], "snapshots": snapshots}))


def unpack(open_part: bytes, secret_part: bytes) -> Contents:
    """The inverse of both. The bytes are authentic already; IntegrityError means another format version."""
    try:
        opened: dict[str, Any] = msgpack.unpackb(open_part)
        secret: dict[str, Any] = msgpack.unpackb(secret_part)
        records = [_unpack_record(item) for item in opened["vtpms"]]
        keys = {uuid: VtpmKeys(Key(blob), Key(run) if run else None) for uuid, (blob, run) in secret["vtpms"].items()}
        vtpms = {record.uuid: record for record in records}
        contents = Contents(opened["serial"], opened["ca"], secret["ca"], vtpms, keys)
        contents = replace(contents, **_unpack_trust(opened), groups=_unpack_groups(opened, secret))
        moves = {move.id: move for move in (Move(*each) for each in opened["moves"])}
        contents = replace(contents, moves=moves, move_keys=secret["moves"], generations=opened["generations"])
        contents = replace(contents, **_unpack_relocation(opened["relocation"], *secret["relocation"]))
        snapshots = secret.get("snapshots", {})  # since 2026-11-27
        contents = replace(contents, snapshots={uuid: _unpack_snapshots(*each) for uuid, each in snapshots.items()})
        return replace(contents, identity=_unpack_identity(opened, secret))
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise IntegrityError(
            f"the manifest is authentic but of another format ({error}); run the version that wrote it"
        ) from None


def _pack_snapshots(found: Snapshots) -> list[Any]:
    kept = [[each.id, each.blob, each.digest, each.key.reveal(), each.taken, each.boot] for each in found.kept]
    return [found.permitted, kept]


def _unpack_snapshots(permitted: str, kept: list[list[Any]]) -> Snapshots:
    found = (Snapshot(id_, blob, digest, Key(key), taken, boot) for id_, blob, digest, key, taken, boot in kept)
    return Snapshots(tuple(found), permitted)


def _pack_relocation(contents: Contents) -> list[Any]:
    """What may be read; the place and its secret stand in the key table."""
    leaving, expected = contents.departure, contents.expected
    return [
        [contents.relocations, contents.came],
        astuple(leaving)[:-1] if leaving else None,
        astuple(expected)[:-1] if expected else None,
        contents.released,
    ]


def _unpack_relocation(opened: list[Any], place: bytes, secret: bytes) -> dict[str, Any]:
    (count, came), leaving, expected, released = opened
    departure = Departure(*[*leaving, place]) if leaving else None
    return {
        "relocations": count,
        "came": came,
        "departure": replace(departure, state=Leaving(departure.state)) if departure else None,
        "expected": Expected(*[*expected, secret]) if expected else None,
        "released": {move: (attested, signature) for move, (attested, signature) in released.items()},
    }


def _unpack_groups(opened: dict[str, Any], secret: dict[str, Any]) -> dict[str, Group]:
    keys = secret.get("groups", {})
    return {
        name: Group(statement, certificate, keys[name], operators)
        for name, (statement, certificate, operators) in opened.get("groups", {}).items()
    }


def _unpack_trust(opened: dict[str, Any]) -> dict[str, Any]:
    """The fields that say who may ask for what."""
    return {
        "authority": opened["authority"],
        "operators": opened["operators"],
        "audit": AuditHead(*opened["audit"]),
        "owner": opened["owner"],
        "recovery": Recovery(*opened["recovery"][:2]),
        "recovered": _unpack_marks(opened["recovered"]),
        "revoked_platforms": tuple(RevokedPlatform(*each) for each in opened["revoked_platforms"]),
        "standing": opened.get("standing", {}),  # since 2026-11-27
    }


def unpack_outside(open_part: bytes) -> tuple[int, str, bytes, bytes, bytes]:
    """(serial, manager, owner, recovery statement, stanza) of what may be anything; IntegrityError if it is none."""
    try:
        opened = msgpack.unpackb(open_part)
        match opened["serial"], opened["ca"], opened["owner"], opened["recovery"]:
            case int(serial), bytes(ca), bytes(owner), [bytes(statement), bool(off), bytes(stanza)]:
                return serial, crypto.digest(ca).hex(), owner, b"" if off else statement, stanza
    except (ValueError, KeyError, TypeError, msgpack.UnpackException):
        pass
    raise IntegrityError("the manifest is of another format; run the version that wrote it")


def _unpack_record(item: dict[str, Any]) -> VtpmRecord:
    return VtpmRecord(**{**item, "state": State(item["state"]), "recovered": _unpack_marks(item["recovered"])})


def _unpack_marks(marks: list[list[Any]]) -> tuple[Recovered, ...]:
    return tuple(Recovered(*each) for each in marks)


def _signing_keys(contents: Contents) -> tuple[SigningKey, ...]:
    return contents.identity.keys if contents.identity else ()


def _unpack_identity(opened: dict[str, Any], secret: dict[str, Any]) -> Identity | None:
    if opened["identity"] is None:
        return None
    ak, statement, authority = opened["identity"]
    return Identity(ak, statement, authority, tuple(SigningKey(*each) for each in secret["sks"]))
