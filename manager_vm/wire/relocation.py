"""What is said inside the encrypted part of a conversation when a whole manager moves (RELOCATION.md, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field

from manager_vm.wire.fields import Fixed, Layout, Number, Sized

TUNNEL = "vtpm-manager tunnel"  # label of the key of the hosts' streams, exported from the conversation
KEY_SIZE = 32  # bytes
_ATTESTED, _SIGNATURE = Sized(2, 512), Sized(2, 256)


@dataclass(frozen=True, slots=True)
class Adopt:
    """Source: make a place for me. ``root``: the root key. ``revoked``: approvals that are void, one bit each."""

    root: bytes = field(repr=False)
    revoked: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Source: it has left; claim for its disk. ``secret``: the erase secret, which opens that manifest."""

    attested: bytes
    signature: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Release:
    """Source: nobody comes."""


@dataclass(frozen=True, slots=True)
class Told:
    """Receiver: a word of its hardware TPM. ``claimed``: 1 CLAIMED, 0 RELEASED."""

    claimed: int
    attested: bytes
    signature: bytes


Message = Adopt | Commit | Release | Told
# kind of an inner message -> (message, layout)
INNER: dict[int, tuple[type, Layout]] = {
    16: (Adopt, {"root": Fixed(KEY_SIZE), "revoked": Number(8)}),
    17: (Commit, {"attested": _ATTESTED, "signature": _SIGNATURE, "secret": Fixed(KEY_SIZE)}),
    18: (Release, {}),
    19: (Told, {"claimed": Number(1), "attested": _ATTESTED, "signature": _SIGNATURE}),
}
