"""The keyslot: the root key sealed to this platform's hardware TPM, and the only way to a ``RootKey``.

STATE/keyslot is JSON: the SRK's Name, the authority's public key, TPM2B_PUBLIC and TPM2B_PRIVATE of the sealed
object. Nothing in it is secret, and nothing needs to be trusted: what was changed does not unseal. A manager that moves
has the keyslot of its destination beside it, as STATE/keyslot.next. ``place``: of a manager that has moved, what it
found at its platform (``keys/place``), sealed under the root key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from manager_vm.crypto import Key
from manager_vm.errors import EvidenceError, HardwareTpmError, NoKeyslotError, UnsealError
from manager_vm.keys.hwtpm import nv, ownership, sealing
from manager_vm.keys.hwtpm.connection import Connection, srk_name
from manager_vm.keys.hwtpm.sealing import SealedKey
from manager_vm.store import atomic
from manager_vm.trust import policy
from manager_vm.trust.approval import Approval
from manager_vm.trust.signing import VerifyKey

FILE, NEXT = "keyslot", "keyslot.next"
_MAX_SIZE = 1 << 14  # bytes
_REVOKED = 0x126  # TPM_RC_POLICY, of TPM2_PolicyNV: the comparison fails
_MISSING = frozenset((0x18B, 0x28B))  # TPM_RC_HANDLE


class RootKey(Key):
    """The key under which all others stand. Only this module makes one."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Slot:
    """What the file says."""

    srk: bytes
    authority: VerifyKey
    sealed: SealedKey
    place: bytes = b""


def of_this_platform(state: Path, connection: Connection) -> Keyslot:
    """The keyslot in directory ``state`` that is for the TPM behind ``connection``; else the only one that counts."""
    here, coming = (Keyslot(state / name, connection) for name in (FILE, NEXT))
    if coming.exists() and coming.read().srk == srk_name(connection):
        return coming
    return here


class Keyslot:
    """The keyslot in the file ``path``, for the TPM behind ``connection``."""

    def __init__(self, path: Path, connection: Connection) -> None:
        self._path = path
        self._connection = connection

    def is_at(self, path: Path) -> None:
        """The file has another name now."""
        self._path = path

    def exists(self) -> bool:
        """Whether a root key was made here before."""
        return self._path.exists()

    def create(self, authority: VerifyKey) -> RootKey:
        """Make a root key and seal it to a TPM that nobody owns yet; it is on the disk when this returns."""
        root, data = self.make(authority)
        self.keep(data)
        return root

    def make(self, authority: VerifyKey) -> tuple[RootKey, bytes]:
        """A root key sealed to a TPM that nobody owns yet, and the file; nothing is on the disk yet."""
        ownership.demand_unowned(self._connection)
        srk = ownership.find_or_make_srk(self._connection)
        nv.define_revocation(self._connection)
        root = RootKey(Key.random().reveal())
        return root, self.seal(root, srk, authority)

    def seal(self, root: Key, srk: bytes, authority: VerifyKey, place: bytes = b"") -> bytes:
        """The file with which this root key can be opened at the TPM behind our connection, whose SRK is pinned."""
        sealed = sealing.seal(self._connection, root, authority)
        fields = {"srk": srk, "authority": authority.der, "public": sealed.public, "private": sealed.private}
        return json.dumps({key: value.hex() for key, value in {**fields, "place": place}.items()}).encode()

    def keep(self, data: bytes) -> None:
        """What ``make`` made is this manager's keyslot from now on."""
        atomic.write_file(self._path, data)

    def read(self) -> Slot:
        """What the file says; NoKeyslotError if it is missing or damaged."""
        data = atomic.read_file(self._path, _MAX_SIZE)
        if data is None:
            raise NoKeyslotError(f"the keyslot {self._path} is missing; restore it, without it no vTPM can be opened")
        return self.parse(data)

    def parse(self, data: bytes) -> Slot:
        """What a keyslot's bytes say; NoKeyslotError if they are damaged."""
        try:
            fields = {key: bytes.fromhex(value) for key, value in json.loads(data).items()}
            sealed = SealedKey(fields["public"], fields["private"])
            return Slot(fields["srk"], VerifyKey.from_der(fields["authority"]), sealed, fields.get("place", b""))
        except (ValueError, KeyError, TypeError, AttributeError, EvidenceError):
            raise NoKeyslotError(
                f"the keyslot {self._path} is damaged; restore it, without it no vTPM can be opened"
            ) from None

    def pin(self, slot: Slot | None = None) -> Slot:
        """Salt all sessions to the SRK that the file (or ``slot``) names; UnsealError if this TPM has another one."""
        slot = slot or self.read()
        try:
            self._connection.pin(slot.srk)
        except HardwareTpmError as error:
            raise UnsealError(
                "this hardware TPM is not the one that the root key is sealed to, or was cleared since: the key's SRK "
                f"has the Name {slot.srk.hex()[:20]}... ({error})"
            ) from error
        return slot

    def open(
        self,
        approvals: Sequence[Approval],
        complaints: Sequence[str] = (),
        keep: Callable[[bytes], None] = lambda secret: None,
    ) -> RootKey:
        """Unseal, ``keep`` for a daemon that follows in this boot, then cap: nobody unseals before the next reset."""
        root = self.unseal(approvals, complaints)
        keep(root.reveal())
        sealing.cap(self._connection)
        return root

    def unseal(
        self, approvals: Sequence[Approval], complaints: Sequence[str] = (), slot: Slot | None = None
    ) -> RootKey:
        """The root key in the file (or in ``slot``), by the newest approval that fits what has booted.

        UnsealError says why none does; ``complaints``: about files that are no approvals, for its text.
        """
        slot = self.pin(slot)
        values = sealing.read_pcrs(self._connection)
        fitting = [each for each in approvals if dict(each.pcrs) == values]
        refused = list(complaints)
        for approval in sorted(fitting, key=lambda each: -each.number):
            try:
                return RootKey(sealing.unseal(self._connection, slot.sealed, slot.authority, approval))
            except HardwareTpmError as error:
                refused.append(_refusal(approval, error))
        if not fitting:
            refused.append(_difference(approvals, values))
        raise UnsealError("the root key stays sealed: " + "; ".join(refused))

    def retained(self, secret: bytes, approvals: Sequence[Approval]) -> RootKey:
        """The root key that this daemon's predecessor has kept; it is capped where that one did not come to it."""
        self.pin()
        if sealing.read_pcrs(self._connection) in [dict(each.pcrs) for each in approvals]:
            sealing.cap(self._connection)
        return RootKey(secret)


def _refusal(approval: Approval, error: HardwareTpmError) -> str:
    which = f"approval {approval.number} ({approval.image})"
    if error.rc == _REVOKED:
        return (
            f"{which} is revoked, and the hardware TPM refuses it; boot a newer image, or have this one approved anew"
        )
    if error.rc in _MISSING:
        return f"{which} cannot be checked, for the revocation index is missing from the hardware TPM"
    return f"{which} is refused ({error})"


def _difference(approvals: Sequence[Approval], values: dict[int, bytes]) -> str:
    """Which PCR differs from which approved value, for the approval that comes closest."""
    if not approvals:
        return "there is no approval of this image; have the authority approve it (vtpmctl authority approve)"
    closest = min(approvals, key=lambda each: sum(values[pcr] != each.pcrs[pcr] for pcr in values))
    differing = [pcr for pcr in sorted(values) if values[pcr] != closest.pcrs[pcr]]
    if differing == [policy.CAPPED_PCR] and values[policy.CAPPED_PCR] == policy.capped(closest.pcrs[policy.CAPPED_PCR]):
        return "it was unsealed since the platform's last reset already (PCR 11 is capped); reset the manager's VM"
    listed = ", ".join(
        f"PCR {pcr} is {values[pcr].hex()[:16]}..., approved is {closest.pcrs[pcr].hex()[:16]}..." for pcr in differing
    )
    return f"what has booted is not approved; closest is approval {closest.number} ({closest.image}): {listed}"
