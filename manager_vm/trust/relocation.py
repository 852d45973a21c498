"""Orders to move a manager to another platform (R1), and the words of its hand-over (RELOCATION.md).

A word is TPM2_NV_Certify, by a platform's AK, of what stands in an anchor: the hardware TPMs themselves say where the
manager is. Nobody needs to keep a key for them, and they may take any way.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.protocol.relocation import Word
from manager_vm.trust import envelope, operator, tpm_structures
from manager_vm.trust.signing import SigningKey, VerifyKey
from manager_vm.trust.tpm_structures import NvCertify, Public

ORDER = "relocation-order"
MAX_SIZE = 1 << 14  # bytes of the statement
RELEASED = hashlib.sha256(b"vtpm-manager relocation released").digest()  # what stands in a place that was given back
DIGEST_SIZE = 32
NO_POSTCOPY = (
    "post-copy is refused: from its start on half of the manager's memory is at either host, and a link that breaks "
    "then loses the only memory of all vTPMs; use precopy, which can always be given up"
)
_MANAGER = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Order:
    """Made by ``verify`` only. ``manager``: its id. ``relocations``: how often it was moved before: it dies by its use.

    ``issued`` is for people: the host owns the clock. ``digest``: SHA-256 of the payload.
    """

    manager: str
    relocations: int
    source: str
    destination: str
    issued: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Said:
    """A word as it travels: TPMS_ATTEST and TPMT_SIGNATURE, marshalled."""

    attested: bytes
    signature: bytes


def give(manager: str, relocations: int, source: str, destination: str, authority: SigningKey) -> bytes:
    """A signed order, dated now; ConfigError for one that nobody could follow."""
    if not _MANAGER.fullmatch(manager):
        raise ConfigError(f"{manager[:80]!r} is no manager's id: use the 64 hex digits that 'status' prints")
    if not _is_count(relocations):
        raise ConfigError(f"relocations {relocations}: use the number that 'status' prints")
    for name in (source, destination):
        if not operator.is_name(name):
            raise ConfigError(f"{name[:80]!r} is no name: use 1 to 63 letters, digits, '.', '_' or '-'")
    if source == destination:
        raise ConfigError("a move leads to another platform, and these are the same")
    issued = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    body = {"id": os.urandom(16).hex(), "manager": manager, "relocations": relocations, "issued": issued}
    return envelope.sign(ORDER, {**body, "source": source, "destination": destination}, authority)


def verify(data: bytes, authority: VerifyKey) -> Order:
    """The order that ``authority`` signed; EvidenceError otherwise."""
    if len(data) > MAX_SIZE:
        raise EvidenceError(f"an order of {len(data)} bytes; at most {MAX_SIZE} are looked at")
    body, _ = envelope.verify(ORDER, data, [authority])
    id_, manager, relocations = (body.get(name) for name in ("id", "manager", "relocations"))
    source, destination, issued = (body.get(name) for name in ("source", "destination", "issued"))
    named = operator.is_name(source) and operator.is_name(destination) and source != destination
    fits = all(isinstance(each, str) for each in (id_, manager, issued)) and _ID.fullmatch(str(id_))
    if not named or not fits or not _MANAGER.fullmatch(str(manager)) or not _is_count(relocations):
        raise EvidenceError("this relocation order does not say what it orders: it was made by another version")
    digest = envelope.digest(ORDER, data)
    return Order(str(manager), int(str(relocations)), str(source), str(destination), str(issued), digest)


def is_order(data: bytes) -> bool:
    """Whether a statement claims to be such an order; nobody has verified it."""
    try:
        return len(data) <= MAX_SIZE and envelope.kind_of(data) == ORDER
    except EvidenceError:
        return False


def qualifying(word: Word, move: bytes) -> bytes:
    """Qualifying data of a word, 32 bytes. ``move``: its id, 16 bytes."""
    return hashlib.sha256(b"vtpm-manager relocation " + word.encode() + b"\0" + move).digest()


def verify_word(said: Said, word: Word, move: bytes, ak: Public, names: Sequence[bytes]) -> bytes:
    """What stands in the anchor (32 bytes), as this AK has certified it for this word of this move.

    ``names``: the Names that the index may have. EvidenceError for anything else.
    """
    tpm_structures.verify_signature(ak, said.attested, said.signature)
    found = tpm_structures.parse_attest(said.attested)
    if found.extra_data != qualifying(word, move):
        raise EvidenceError(f"this is no {word!r} of this move: it was certified for something else")
    if not isinstance(found.attested, NvCertify) or found.attested.index_name not in names:
        raise EvidenceError(f"a {word!r} certifies something else than the anchor")
    contents = found.attested.contents
    if found.attested.offset or len(contents) != DIGEST_SIZE:
        raise EvidenceError(f"a {word!r} does not certify the digest in the anchor")
    if (contents == RELEASED) is not (word is Word.RELEASED):
        raise EvidenceError(f"what stands in the anchor is not what {word!r} says")
    return contents


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 32
