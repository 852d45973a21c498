"""What two managers say to each other during a move: bytes <-> dataclasses (MIGRATION.md, sections 2 and 7)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from manager_vm.errors import RemoteProtocolError
from manager_vm.wire import fields, relocation
from manager_vm.wire.fields import Fixed, Layout, Number, Sized, Text
from manager_vm.wire.framing import Frame

VERSION = 1
ID_SIZE = 16  # bytes of a move's id, of a uuid
POINT_SIZE = 65
NONCE_SIZE = 32
DIGEST_SIZE = 32
SIGNATURE_SIZE = 64
MAX_ORDER = 1 << 14
MAX_EVIDENCE = 290_000
MAX_TEXT = 400
MAX_STATE = 1 << 20
MAX_PART = 32_768
_SIGNED = b"vtpm-manager hand-over 1\0"


class Cause(IntEnum):
    """Why a move failed (R3). ``word`` is what people and errors say."""

    TAMPERED = 1
    REPLAYED = 2
    EVIDENCE = 3
    POLICY = 4
    ORDER = 5
    VERSION = 6
    RESUME_FAILED = 7
    PEER_LOST = 8
    TIMEOUT = 9
    BUSY = 10
    FAULT = 11

    @property
    def word(self) -> str:
        """In lower case, words with a hyphen."""
        return self.name.lower().replace("_", "-")


class Kind(IntEnum):
    """Of a hand-over message (section 8)."""

    PREPARED = 1
    COMMIT = 2
    COMMITTED = 3
    RELEASED = 4
    ABORTED = 5


@dataclass(frozen=True, slots=True)
class Offer:
    """Source: may this vTPM come? ``listens``: "host:port" of the source's own listener, a hint."""

    lowest: int
    highest: int
    move: bytes
    order: bytes
    share: bytes
    nonce: bytes
    move_key: bytes
    features: str
    listens: str


@dataclass(frozen=True, slots=True)
class Accept:
    """Destination: it may. ``evidence`` is over transcript 1."""

    version: int
    move: bytes
    share: bytes
    nonce: bytes
    move_key: bytes
    features: str
    evidence: bytes


@dataclass(frozen=True, slots=True)
class Confirm:
    """Source: who it is. ``evidence`` is over transcript 2."""

    move: bytes
    evidence: bytes


@dataclass(frozen=True, slots=True)
class Refuse:
    """Either: it ends here, and why. ``text`` is for people."""

    move: bytes
    cause: Cause
    text: str


@dataclass(frozen=True, slots=True)
class Record:
    """Either: an encrypted inner message. ``seq`` stands in the frame's header."""

    seq: int
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Handover:
    """Either: a signed word about who has the vTPM. ``vtpm``: uuid, 16 bytes. ``signature``: r || s, b"" unsigned."""

    kind: Kind
    move: bytes
    transcript: bytes
    state: bytes
    vtpm: bytes
    generation: int
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Pull:
    """Destination, first, or inner behind Ahead: the vTPM of this ticket (section 13). ``listens``: as in Offer."""

    ticket: bytes
    platform: str
    listens: str


@dataclass(frozen=True, slots=True)
class Ahead:
    """Destination, first: let us agree now, a ticket of this VM comes soon (section 13).

    ``order``: SHA-256 of the standing order, which whoever may ask has. ``listens``: as in Offer.
    """

    vm: str
    order: bytes
    platform: str
    listens: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Destination, inner: a swtpm waits."""


@dataclass(frozen=True, slots=True)
class KeyKept:
    """Destination, inner: this conversation was for a key alone, and the key waits for the host there."""


@dataclass(frozen=True, slots=True)
class StatePart:
    """Source, inner: bytes of the state, which has ``total``, from ``offset`` on."""

    total: int
    offset: int
    data: bytes


Outer = Offer | Accept | Confirm | Refuse | Record | Handover | Pull | Ahead
Inner = Ready | KeyKept | StatePart | Handover | Refuse | Pull | relocation.Message

_ID, _POINT, _NONCE, _DIGEST = Fixed(ID_SIZE), Fixed(POINT_SIZE), Fixed(NONCE_SIZE), Fixed(DIGEST_SIZE)
_FEATURES = Text(Sized(2, 1024))
_EVIDENCE = Sized(4, MAX_EVIDENCE)
_OFFER: Layout = {
    "lowest": Number(2),
    "highest": Number(2),
    "move": _ID,
    "order": Sized(2, MAX_ORDER),
    "share": _POINT,
    "nonce": _NONCE,
    "move_key": _POINT,
    "features": _FEATURES,
    "listens": Text(Sized(2, 255)),
}
_ACCEPT: Layout = {
    "version": Number(2),
    "move": _ID,
    "share": _POINT,
    "nonce": _NONCE,
    "move_key": _POINT,
    "features": _FEATURES,
    "evidence": _EVIDENCE,
}
_CONFIRM: Layout = {"move": _ID, "evidence": _EVIDENCE}
_REFUSE: Layout = {"move": _ID, "cause": Number(1), "text": Text(Sized(2, MAX_TEXT))}
_UNSIGNED: Layout = {
    "kind": Number(1),
    "move": _ID,
    "transcript": _DIGEST,
    "state": _DIGEST,
    "vtpm": _ID,
    "generation": Number(8),
}
_HANDOVER: Layout = {**_UNSIGNED, "signature": Fixed(SIGNATURE_SIZE)}
_PULL: Layout = {"ticket": Sized(2, 1024), "platform": Text(Sized(1, 63)), "listens": Text(Sized(2, 255))}
_AHEAD: Layout = {
    "vm": Text(Sized(1, 36)),
    "order": _DIGEST,
    "platform": Text(Sized(1, 63)),
    "listens": Text(Sized(2, 255)),
}
_STATE_PART: Layout = {"total": Number(4), "offset": Number(4), "data": Sized(2, MAX_PART)}

_RECORD = 0x63
# type -> (message, layout, largest body)
_OUTER: dict[int, tuple[type, Layout, int]] = {
    0x60: (Offer, _OFFER, 32_768),
    0x61: (Accept, _ACCEPT, 300_000),
    0x62: (Confirm, _CONFIRM, 300_000),
    0x64: (Refuse, _REFUSE, 512),
    0x65: (Handover, _HANDOVER, 512),
    0x66: (Pull, _PULL, 2048),
    0x67: (Ahead, _AHEAD, 512),
}
_INNER: dict[int, tuple[type, Layout]] = {
    1: (Ready, {}),
    2: (StatePart, _STATE_PART),
    3: (Handover, _HANDOVER),
    4: (Refuse, _REFUSE),
    5: (KeyKept, {}),
    6: (Pull, _PULL),
    **relocation.INNER,
}
MAX_RECORD = 33_024
MAX_BODY = {**{kind: limit for kind, (_, _, limit) in _OUTER.items()}, _RECORD: MAX_RECORD}
_OUTER_TYPES = {message: kind for kind, (message, _, _) in _OUTER.items()}
_INNER_TYPES = {message: kind for kind, (message, _) in _INNER.items()}


def to_frame(message: Outer) -> Frame:
    """The frame of a message."""
    if isinstance(message, Record):
        return Frame(_RECORD, seq=message.seq, body=message.sealed)
    return Frame(_OUTER_TYPES[type(message)], body=body(message))


def from_frame(frame: Frame) -> Outer:
    """The message in a frame; RemoteProtocolError if there is none."""
    if frame.name or frame.arg or len(frame.body) > MAX_BODY.get(frame.type, -1):
        raise RemoteProtocolError(f"the other end sent a frame of type {frame.type:#04x} that a move does not have")
    if frame.type == _RECORD:
        return Record(frame.seq, frame.body)
    if frame.seq:
        raise RemoteProtocolError("the other end numbered a message that has no number")
    message, layout, _ = _OUTER[frame.type]
    return _made(message, layout, frame.body)  # type: ignore[return-value]


def body(message: Outer) -> bytes:
    """The body of a message that is not a RECORD: what transcripts are over."""
    _, layout, _ = _OUTER[_OUTER_TYPES[type(message)]]
    return fields.pack(layout, message)


def pack_inner(message: Inner) -> bytes:
    """The plaintext of a RECORD."""
    kind = _INNER_TYPES[type(message)]
    return bytes([kind]) + fields.pack(_INNER[kind][1], message)


def parse_inner(plain: bytes) -> Inner:
    """The inverse; RemoteProtocolError for anything else."""
    if not plain or plain[0] not in _INNER:
        raise RemoteProtocolError("the other end sent a record without a message")
    message, layout = _INNER[plain[0]]
    return _made(message, layout, plain[1:])  # type: ignore[return-value]


def pack_handover(message: Handover) -> bytes:
    """As it is kept: a receipt."""
    return fields.pack(_HANDOVER, message)


def parse_handover(data: bytes) -> Handover:
    """The inverse; RemoteProtocolError for anything else."""
    return _made(Handover, _HANDOVER, data)  # type: ignore[return-value]


def signed_bytes(message: Handover) -> bytes:
    """What the signature of a hand-over message is over."""
    return _SIGNED + fields.pack(_UNSIGNED, message)


def _made(message: type, layout: Layout, data: bytes) -> object:
    found = fields.parse(layout, data)
    try:
        if message is Handover:
            found["kind"] = Kind(found["kind"])
        if message is Refuse:
            found["cause"] = Cause(found["cause"])
    except ValueError:
        raise RemoteProtocolError("the other end sent a message of a kind that is not known") from None
    return message(**found)
