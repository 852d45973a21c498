"""The durable record of one vTPM and of the manager (FORMAT.md); ``packing`` has their bytes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from manager_vm import crypto
from manager_vm.crypto import Key
from manager_vm.errors import ConfigError
from manager_vm.protocol.lifecycle import State
from manager_vm.store.marks import Recovered, Recovery, RevokedPlatform
from manager_vm.store.relocation import Departure, Expected
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
    (DER) of the CA of its EK certificates, b"": that of its group here. ``vm``: UUID of the only VM that it is served
    to, "" = any (``vtpm/binding``). ``ticket``: the park that a ticket names (``wire/ticket``), of a parked one.
    ``keep``: how many snapshots of it are kept, 0 = none, no way back. ``reverted``: how often it went back to one.
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
    vm: str = ""
    ticket: str = ""
    keep: int = 0
    reverted: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A park that was consumed and is kept (``vtpm/snapshots``).

    ``id``: the park, as tickets name it. ``blob``, ``digest``, ``key``: its state blob, below the vTPM's own directory.
    ``taken``: UTC. ``boot``: of its VM.
    """

    id: str
    blob: str
    digest: bytes
    key: Key
    taken: str
    boot: int


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Of one vTPM, oldest first. ``permitted``: id of the one that an admin lets come back, once; "" = none."""

    kept: tuple[Snapshot, ...] = ()
    permitted: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """A move of one vTPM to (``out``) or from another manager, as ``store/moves`` keeps it.

    ``id``: 16 bytes, hex. ``state``: of ``protocol.handover``. ``vtpm``: uuid. ``generation``: at the destination.
    ``peer``: name of the platform there, ``address`` where its manager listens ("host:port"). ``transcript``:
    transcript 3. ``digest``: SHA-256 of the state, 32 zero bytes before it is known. ``peer_key``: point of the peer's
    move key; ``peer_ak``: Name of its AK. ``order``: SHA-256 of the order's payload. ``started``, ``ended``: UTC, ""
    while it is not over. ``cause``: why it failed, ``text`` in words. ``sent``, ``received``: the newest hand-over
    message of either side, signed: the receipts. ``pulled``: the park, of one that its destination has asked for by a
    ticket.
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
    peer_ak: bytes
    order: bytes
    started: str
    digest: bytes = bytes(32)
    ended: str = ""
    cause: str = ""
    text: str = ""
    sent: bytes = b""
    received: bytes = b""
    pulled: str = ""


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
    recorded of vTPMs that have come or gone, by uuid. ``relocations``: how often the manager itself has moved,
    ``came``: id of the newest of these moves;
    ``departure``, ``expected``: a move of it, or of another manager to here, that is not over; ``released``: the words
    (attested, signature) with which this receiver gave up others, by id of the move. ``standing``: the newest standing
    order of each VM, by its UUID. ``snapshots``: of vTPMs, by uuid.
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
    relocations: int = 0
    came: str = ""
    departure: Departure | None = None
    expected: Expected | None = None
    released: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    standing: dict[str, bytes] = field(default_factory=dict)
    snapshots: dict[str, Snapshots] = field(default_factory=dict)

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
        """The same without this vTPM, its keys and its snapshots."""
        return replace(
            self,
            vtpms={key: value for key, value in self.vtpms.items() if key != uuid},
            keys={key: value for key, value in self.keys.items() if key != uuid},
            snapshots={key: value for key, value in self.snapshots.items() if key != uuid},
        )
