"""What is durable of a manager's own move, on either side, and the place that a receiver has made (RELOCATION.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgpack

from manager_vm.crypto import Key
from manager_vm.errors import IntegrityError
from manager_vm.protocol.relocation import Leaving

MOST_WORDS = 512  # that a receiver keeps for moves which came to nothing; each may be the only way back of a manager


@dataclass(frozen=True, slots=True)
class Place:
    """What a manager finds at its destination. Made by the receiver, whose platform it becomes.

    ``srk``: Name of the SRK there. ``index``: NV index of the place, ``secret`` its authValue; ``own``: that of the
    receiver's anchor, which goes with the claim. ``platform``: the receiver's root key, from which all other
    authorizations there are derived. ``keyslot``: a file. ``ak``, ``statement``, ``authority``, ``keys``: of its
    identity, as in ``records.Identity``. ``log``: the event log there, b"" if there is none. ``released``: the words
    that are kept there, as in ``records.Contents``.
    """

    srk: bytes
    index: int
    own: int
    platform: Key
    secret: Key
    keyslot: bytes
    ak: bytes
    statement: bytes
    authority: bytes
    keys: tuple[tuple[bytes, bytes, bytes], ...] = field(repr=False)
    log: bytes = b""
    released: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Departure:
    """At the source, and on every copy of its disk. ``id``: of the move, 16 bytes, hex.

    ``peer``: name of the platform there, ``peer_ak``: TPMT_PUBLIC of its AK; ``address``: where the receiver listens.
    ``order``: SHA-256 of the order's payload. ``home``: Name of the SRK at the source. ``place`` has secrets.
    """

    id: str
    state: Leaving
    peer: str
    peer_ak: bytes
    address: str
    order: bytes
    home: bytes
    since: str
    ordered: bytes = b""
    place: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Expected:
    """At the receiver: the manager that may come. ``peer_ak``: TPMT_PUBLIC of the source's AK."""

    id: str
    manager: str
    peer: str
    peer_ak: bytes
    index: int
    since: str
    secret: bytes = field(default=b"", repr=False)


def pack_place(place: Place) -> bytes:
    """The bytes that go to the source."""
    said = {
        "srk": place.srk,
        "index": place.index,
        "own": place.own,
        "platform": place.platform.reveal(),
        "secret": place.secret.reveal(),
        "keyslot": place.keyslot,
        "identity": [place.ak, place.statement, place.authority],
        "keys": place.keys,
        "log": place.log,
        "released": place.released,
    }
    return bytes(msgpack.packb(said))


def unpack_place(data: bytes) -> Place:
    """The inverse; IntegrityError for anything else. The bytes are authentic: then it is of another version."""
    try:
        said: dict[str, Any] = msgpack.unpackb(data)
        ak, statement, authority = (_bytes(each) for each in said["identity"])
        keys = tuple((_bytes(a), _bytes(b), _bytes(c)) for a, b, c in said["keys"])
        platform, secret = Key(said["platform"]), Key(said["secret"])
        srk, index, own = _bytes(said["srk"]), int(said["index"]), int(said["own"])
        keyslot, log = _bytes(said["keyslot"]), _bytes(said["log"])
        released = {str(move): (_bytes(a), _bytes(b)) for move, (a, b) in said["released"].items()}
        return Place(srk, index, own, platform, secret, keyslot, ak, statement, authority, keys, log, released)
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise IntegrityError(f"the place that the receiver has made is of another format ({error})") from None


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("bytes are missing")
    return value
