"""The order to move one vTPM from one platform to another (R1), signed by the authority of its group (MIGRATION.md, 3).

It names the vTPM's generation, which grows with each move: so an order dies by its use, whatever a host's clock says.
"""

from __future__ import annotations

import datetime
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import envelope, operator
from manager_vm.trust.group import DEFAULT
from manager_vm.trust.signing import SigningKey, VerifyKey

ORDER = "migration-order"
MAX_SIZE = 1 << 14  # bytes of the statement
_ID = re.compile(r"[0-9a-f]{32}")
_ID_SIZE = 16  # bytes


@dataclass(frozen=True, slots=True)
class Order:
    """Made by ``verify`` only. ``vtpm``: uuid; ``generation``: at the source. ``source``, ``destination``: platforms.

    ``issued`` is for people: the host owns the clock. ``digest``: SHA-256 of the payload. ``vm``: UUID of the VM whose
    standing order (``standing``) this one follows from, "" = it stands by itself.
    """

    id: str
    vtpm: str
    generation: int
    group: str
    source: str
    destination: str
    issued: str
    digest: bytes
    vm: str = ""


def give(
    vtpm: str, generation: int, source: str, destination: str, authority: SigningKey, *, group: str = DEFAULT
) -> bytes:
    """A signed order, dated now; ConfigError for one that nobody could follow."""
    if not _is_uuid(vtpm):
        raise ConfigError(f"{vtpm[:80]!r} is no vTPM's uuid: use the one that 'show' prints")
    if not operator.is_serial(generation):
        raise ConfigError(f"generation {generation}: use the one that 'show' prints")
    for name in (source, destination, group):
        if not operator.is_name(name):
            raise ConfigError(f"{name[:80]!r} is no name: use 1 to 63 letters, digits, '.', '_' or '-'")
    if source == destination:
        raise ConfigError("a move leads to another platform, and these are the same")
    body = {"id": os.urandom(_ID_SIZE).hex(), "vtpm": vtpm, "generation": generation, "group": group}
    issued = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return envelope.sign(ORDER, {**body, "source": source, "destination": destination, "issued": issued}, authority)


def verify(data: bytes, authority: Callable[[str], VerifyKey]) -> Order:
    """The order that the authority of its group has signed; EvidenceError otherwise.

    ``authority`` gives the key of a group's authority by the group's name, and raises for a group that is not known.
    """
    if len(data) > MAX_SIZE:
        raise EvidenceError(f"an order of {len(data)} bytes; at most {MAX_SIZE} are looked at")
    group = envelope.peek(ORDER, data).get("group")
    if not operator.is_name(group):
        raise EvidenceError("this order names no group: it was made by another version")
    body, _ = envelope.verify(ORDER, data, [authority(group)])
    id_, vtpm, generation, issued = (body.get(name) for name in ("id", "vtpm", "generation", "issued"))
    source, destination = body.get("source"), body.get("destination")
    named = operator.is_name(source) and operator.is_name(destination) and source != destination
    fits = isinstance(id_, str) and _ID.fullmatch(id_) and isinstance(issued, str) and _is_uuid(vtpm)
    if not named or not fits or not operator.is_serial(generation):
        raise EvidenceError("this order does not say what it orders: it was made by another version")
    digest = envelope.digest(ORDER, data)
    return Order(str(id_), str(vtpm), generation, group, str(source), str(destination), str(issued), digest)


def _is_uuid(text: object) -> bool:
    try:
        return isinstance(text, str) and str(uuid.UUID(text)) == text
    except ValueError:
        return False
