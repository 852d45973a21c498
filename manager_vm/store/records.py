"""The durable record of one vTPM and of the manager, and their msgpack form (FORMAT.md)."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, fields, replace
from typing import Any

import msgpack

from manager_vm import crypto
from manager_vm.crypto import Key
from manager_vm.errors import ConfigError, IntegrityError
from manager_vm.protocol.lifecycle import State
from manager_vm.store.marks import Recovered, Recovery, RevokedPlatform
from manager_vm.trust.group import DEFAULT

MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class VtpmRecord:
    """What is known of one vTPM while nothing runs.

    ``blob``/``blob_digest``: the anchored state blob (file name, SHA-256), always present. ``run``: the directory
    of the current run, "" if none. ``boot``: the newest boot number applied. ``resume``: a parked vTPM that the manager
    resumes by itself when it starts. ``ek_names``: TPM names of the EKs by key kind, recorded at manufacture.
    ``group``: who operates it; it never changes.
    ``before``: of a quarantined one, its state before. ``released``: when, and at what loss, it was led out of
    quarantine; kept for ever. ``recovered``: recoveries that it went through, kept for ever. ``issuer``: certificate
    (DER) of the CA of its EK certificates, b"": that of its group here.
    """

    uuid: str
    name: str
    state: State
    uid: int
    blob: str
    blob_digest: bytes
    ek_names: dict[str, bytes]
    certificates: dict[str, bytes]
    run: str = ""
    boot: int = 0
    generation: int = 1
    resume: bool = False
    channel: str = ""
    reason: str = ""
    group: str = DEFAULT
    before: str = ""
    released: str = ""
    recovered: tuple[Recovered, ...] = ()
    issuer: bytes = b""


@dataclass(frozen=True, slots=True)
class Move:
    """A move of one vTPM to (``out``) or from another manager, as ``store/moves`` keeps it.

    ``id``: 16 bytes, hex. ``state``: of ``protocol.handover``. ``vtpm``: uuid. ``generation``: at the destination.
    ``peer``: name of the platform there, ``address`` where its manager listens ("host:port"). ``transcript``:
    transcript 3. ``digest``: SHA-256 of the state, 32 zero bytes before it is known. ``peer_key``: point of the peer's
    move key. ``order``: SHA-256 of the order's payload. ``started``, ``ended``: UTC, "" while it is not over.
    ``cause``: why it failed, ``text`` in words. ``sent``, ``received``: the newest hand-over message of either side,
    signed: the receipts.
    """

    id: str
    out: bool
    state: str
    vtpm: str
    name: str
    group: str
    generation: int
    peer: str
    address: str
    transcript: bytes
    peer_key: bytes
    order: bytes
    started: str
    digest: bytes = bytes(32)
    ended: str = ""
    cause: str = ""
    text: str = ""
    sent: bytes = b""
    received: bytes = b""


@dataclass(frozen=True, slots=True)
class Group:
    """A tenant's group. ``statement``: the platform authority's (``trust/group``), b"" for the default group.

    ``ca_certificate``, ``ca_key``: of the CA that issues its EK certificates (X.509 and PKCS #8, DER). ``operators``:
    the newest statement of the group's authority about each operator's key, by key id.
    """

    statement: bytes
    ca_certificate: bytes
    ca_key: bytes = field(repr=False)
    operators: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VtpmKeys:
    """The state keys of one vTPM: of its blob, and of its run (None if it does not run)."""

    blob: Key
    run: Key | None = None


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The newest entry of the audit log: its number (from 1; 0 = none yet) and SHA-256 of its line."""

    count: int = 0
    digest: bytes = bytes(32)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An SK: TPM2B_PUBLIC, TPM2B_PRIVATE, its certificate (DER, b"" before the enrolment), and whose it is.

    ``vtpm``: uuid of the vTPM whose credentials it signs, "" while it has none.
    """

    public: bytes
    private: bytes = field(repr=False)
    certificate: bytes = b""
    vtpm: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes this manager an attested platform. ``ak``: TPMT_PUBLIC of the AK. ``statement``: the authority's
    that enrols it, b"" before. ``authority``: the authority's certificate (DER), which is above those of ``keys``.
    """

    ak: bytes
    statement: bytes = b""
    authority: bytes = b""
    keys: tuple[SigningKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything a manifest says. A new value is made for each commit; nothing in it is changed in place.

    ``authority``: SubjectPublicKeyInfo (DER) of who enrols operators, b"" before provisioning. ``operators``: the
    authority's newest statement about each operator's key, by key id (``trust/roster``). ``owner``: the Name of the
    SRK of the hardware TPM that holds the anchor. ``groups``: those of tenants, by name; vTPMs made without one are in
    the default group, whose CA and operators are the manager's own. ``identity``: None until evidence was asked
    for. ``recovered``: the recoveries of this manager, for ever. ``moves``: of vTPMs, by id, oldest first;
    ``move_keys``: our private key for each that is not over. ``generations``: the highest that this manager ever
    recorded of vTPMs that have come or gone, by uuid.
    """

    serial: int
    ca_certificate: bytes
    ca_key: bytes = field(repr=False)
    vtpms: dict[str, VtpmRecord] = field(default_factory=dict)
    keys: dict[str, VtpmKeys] = field(default_factory=dict)
    authority: bytes = b""
    operators: dict[str, bytes] = field(default_factory=dict)
    audit: AuditHead = AuditHead()
    owner: bytes = b""
    groups: dict[str, Group] = field(default_factory=dict)
    identity: Identity | None = None
    recovery: Recovery = field(default_factory=Recovery)
    recovered: tuple[Recovered, ...] = ()
    revoked_platforms: tuple[RevokedPlatform, ...] = ()
    moves: dict[str, Move] = field(default_factory=dict)
    move_keys: dict[str, bytes] = field(default_factory=dict, repr=False)
    generations: dict[str, int] = field(default_factory=dict)

    @property
    def manager(self) -> str:
        """Which manager this is, for whoever signs something for it: SHA-256 of its CA's certificate, in hex."""
        return crypto.digest(self.ca_certificate).hex()

    def named(self, name: str) -> VtpmRecord | None:
        """The record with this name."""
        return next((record for record in self.vtpms.values() if record.name == name), None)

    def group(self, name: str) -> Group:
        """The group with this name, also the default one; ConfigError if there is none."""
        if name == DEFAULT:
            return Group(b"", self.ca_certificate, self.ca_key, self.operators)
        if name not in self.groups:
            raise ConfigError(f"there is no group {name[:80]!r} at this manager; 'group list' shows those there are")
        return self.groups[name]

    def issuer(self, record: VtpmRecord) -> bytes:
        """Certificate (DER) of the CA of this vTPM's EK certificates."""
        return record.issuer or self.group(record.group).ca_certificate

    def with_vtpm(self, record: VtpmRecord, keys: VtpmKeys | None = None) -> Contents:
        """The same with ``record`` added or replaced, and its keys if given."""
        new_keys = self.keys if keys is None else {**self.keys, record.uuid: keys}
        return replace(self, vtpms={**self.vtpms, record.uuid: record}, keys=new_keys)

    def without_vtpm(self, uuid: str) -> Contents:
        """The same without this vTPM and its keys."""
        return replace(
            self,
            vtpms={key: value for key, value in self.vtpms.items() if key != uuid},
            keys={key: value for key, value in self.keys.items() if key != uuid},
        )


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
    }
    opened = {"serial": contents.serial, "ca": contents.ca_certificate, "vtpms": records, **trust}
    return bytes(msgpack.packb(opened, default=astuple))


def pack_secret(contents: Contents) -> bytes:
    """The key table, to be sealed: {"ca", "vtpms": {uuid: [blob key, run key or None]}, "groups", "sks", "moves"}.

    SKs stand here, for they say which vTPMs are on one host.
    """
    table = {
        uuid: [keys.blob.reveal(), keys.run.reveal() if keys.run else None] for uuid, keys in contents.keys.items()
    }
    sks = [[key.public, key.private, key.certificate, key.vtpm] for key in _signing_keys(contents)]
    groups = {name: group.ca_key for name, group in contents.groups.items()}
    keys = {"ca": contents.ca_key, "vtpms": table, "groups": groups, "sks": sks, "moves": contents.move_keys}
    return bytes(msgpack.packb(keys))


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
        return replace(contents, identity=_unpack_identity(opened, secret))
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise IntegrityError(
            f"the manifest is authentic but of another format ({error}); run the version that wrote it"
        ) from None


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
