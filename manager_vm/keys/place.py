"""A place for a manager at another platform: made by the receiver there, found by the manager when it comes.

The receiver's root key and the place's secret lie in the manager's keyslot there, sealed under the manager's own root
key: so whoever opens that keyslot has the authorizations of the platform that it has taken over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from manager_vm import crypto
from manager_vm.crypto import KEY_SIZE, Key
from manager_vm.errors import IntegrityError
from manager_vm.keys.hwtpm import auths, nv
from manager_vm.keys.hwtpm.auths import Authorizations
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.keys.keyslot import Keyslot, Slot
from manager_vm.store.records import Contents, Identity, SigningKey
from manager_vm.store.relocation import Place
from manager_vm.trust import policy
from manager_vm.trust.signing import VerifyKey

_PLACE = b"vtpm-manager place"
_INDICES = (policy.ANCHOR_INDEX, policy.OTHER_ANCHOR_INDEX)


def authorizations(root: Key, slot: Slot) -> Authorizations:
    """What opens the objects of the hardware TPM that this keyslot is for."""
    if not slot.place:
        return auths.derive(root, slot.srk)
    platform, secret, index = _opened(root, slot)
    return _taken_over(slot.srk, platform, secret, index)


def platform_key(own: Footing) -> Key:
    """The key from which the authorizations of this platform are derived."""
    slot = own.slot.read()
    return _opened(own.root, slot)[0] if slot.place else own.root


def _opened(root: Key, slot: Slot) -> tuple[Key, Key, int]:
    """(platform key, secret, index) of the place in a keyslot."""
    plain = crypto.unseal(root, slot.place, _PLACE + slot.srk, "the place in the keyslot")
    index = int.from_bytes(plain[2 * KEY_SIZE :])
    if index not in _INDICES:
        raise IntegrityError("the place in the keyslot names no anchor: it was made by another version")
    return Key(plain[:KEY_SIZE]), Key(plain[KEY_SIZE : 2 * KEY_SIZE]), index


def found(place: Place) -> Authorizations:
    """The same for a place that the receiver has described."""
    return _taken_over(place.srk, place.platform, place.secret, place.index)


@dataclass(frozen=True, slots=True)
class Footing:
    """What a manager stands on: its hardware TPM, its root key, the file that this is sealed in, what opens the TPM."""

    tpm: Connection
    root: Key
    slot: Keyslot
    auths: Authorizations


def make(own: Footing, contents: Contents, coming: Key, log: bytes) -> Place:
    """Make a place for the manager with the root key ``coming``; one that was made before is nobody's any more.

    ``own``, ``contents``: the receiver's. ``log``: of the events that led to the PCRs here.
    """
    srk, secret = own.slot.read().srk, Key.random()
    index = nv.define_place(own.tpm, own.auths, secret)
    plain = platform_key(own).reveal() + secret.reveal() + index.to_bytes(4)
    sealed = crypto.seal(coming, plain, _PLACE + srk)
    keyslot = own.slot.seal(coming, srk, VerifyKey.from_der(contents.authority), sealed)
    identity = contents.identity or Identity(b"")
    keys = tuple((key.public, key.private, key.certificate) for key in identity.keys if not key.vtpm)
    return Place(
        srk=srk,
        index=index,
        own=own.auths.index,
        platform=platform_key(own),
        secret=secret,
        keyslot=keyslot,
        ak=identity.ak,
        statement=identity.statement,
        authority=identity.authority,
        keys=keys,
        log=log,
        released=contents.released,
    )


def opens(root: Key, slot: Slot, place: Place) -> bool:
    """Whether what this keyslot gives is what the receiver says of the place."""
    try:
        platform, secret, index = _opened(root, slot)
    except IntegrityError:
        return False
    said = (place.platform.reveal(), place.secret.reveal(), place.index)
    return (platform.reveal(), secret.reveal(), index) == said


def arrived(contents: Contents, place: Place) -> Contents:
    """What the manager is at its destination: the receiver's identity and words are its own, the move is over."""
    keys = tuple(SigningKey(public, private, certificate) for public, private, certificate in place.keys)
    return replace(
        contents,
        owner=place.srk,
        identity=Identity(place.ak, place.statement, place.authority, keys),
        relocations=contents.relocations + 1,
        came=contents.departure.id if contents.departure else "",
        departure=None,
        released={**contents.released, **place.released},
    )


def _taken_over(srk: bytes, platform: Key, secret: Key, index: int) -> Authorizations:
    return replace(auths.derive(platform, srk), anchor=secret, index=index)
