"""The ticket that a VM carries instead of its vTPM's state when its hypervisor moves or saves it (MIGRATION.md, 13).

It names a park of a vTPM at a manager. Nothing in it is secret, and it gives nobody anything: who redeems it is
attested and ordered like every destination. msgpack behind a magic number.
"""

from __future__ import annotations

import uuid
from dataclasses import astuple, dataclass
from typing import Any

import msgpack

from manager_vm.errors import RemoteProtocolError

MAX_SIZE = 1024  # bytes
_MAGIC = b"vTPMtkt1"
PARK_SIZE = 16  # bytes
_TEXT = 255  # letters


@dataclass(frozen=True, slots=True)
class Ticket:
    """``vtpm``, ``vm``: UUIDs. ``generation``: of the vTPM. ``park``: 16 random bytes in hex, new with each park.

    ``platform``, ``address``: where that manager is.
    """

    vtpm: str
    name: str
    generation: int
    park: str
    vm: str
    platform: str
    address: str


def pack(ticket: Ticket) -> bytes:
    """Its bytes, at most ``MAX_SIZE``."""
    return _MAGIC + bytes(msgpack.packb(astuple(ticket)))


def parse(data: bytes) -> Ticket:
    """The inverse; RemoteProtocolError for anything else: it comes out of a VM's stream."""
    if len(data) > MAX_SIZE or not data.startswith(_MAGIC):
        raise RemoteProtocolError("this is no ticket of a vTPM: the VM was saved with another TPM")
    try:
        fields: list[Any] = msgpack.unpackb(data[len(_MAGIC) :])
        found = Ticket(*fields)
        texts = all(
            isinstance(each, str) and len(each) <= _TEXT for each in (found.name, found.platform, found.address)
        )
        exact = all(str(uuid.UUID(each)) == each for each in (found.vtpm, found.vm))
        whole = exact and len(bytes.fromhex(found.park)) == PARK_SIZE and found.park == found.park.lower()
        number = isinstance(found.generation, int) and not isinstance(found.generation, bool) and found.generation > 0
        if whole and number and texts and found.name and found.platform:
            return found
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException):
        pass
    raise RemoteProtocolError("this ticket of a vTPM is damaged")
