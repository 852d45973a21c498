"""A manager's side of its platform's enrolment: evidence, the answer to the challenge, what the authority issues.

Each step can be repeated. SKs that were made and never certified are offered again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives import serialization

from manager_vm.errors import ConfigError, EvidenceError, HardwareTpmError, IntegrityError
from manager_vm.keys import identity
from manager_vm.keys.hwtpm import attest
from manager_vm.keys.hwtpm.auths import Authorizations
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.keys.hwtpm.sealing import SealedKey
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import Contents, Identity, SigningKey
from manager_vm.trust import enrolment, evidence, tpm_structures
from manager_vm.trust.enrolment import MAX_KEYS, CertifiedKey, Enrolled
from manager_vm.trust.signing import VerifyKey

POOL = 64  # SKs for vTPMs to come, unless somebody says otherwise
_AT_ONCE = 8  # SKs made or certified in one request: a slow hardware TPM takes seconds for each
_NOT_FOR_US = frozenset((0x1DF, 0x2DF, 0x3DF, 0x01F))  # TPM_RC_INTEGRITY of TPM2_ActivateCredential


class Enrolment:
    """Thread-safe: each step ends in one commit."""

    def __init__(self, connection: Connection, auths: Authorizations, manifest: Manifest) -> None:
        self._connection = connection
        self._auths = auths
        self._manifest = manifest

    def evidence(self, more: int | None = None) -> bytes:
        """What this platform is. Makes the AK, and SKs to be certified: ``more``, or as many as the pool lacks.

        EvidenceError if the vendor has left no EK certificate.
        """
        kind, certificate = self._ek_certificate()
        ek = attest.ek_public(self._connection, self._auths, kind)
        ak = attest.make_ak(self._connection, self._auths)
        contents = self._manifest.contents
        wanted = max(POOL - identity.free(contents), 0) if more is None else more
        if not 0 <= wanted <= MAX_KEYS:
            raise ConfigError(f"{wanted} signing keys: at most {MAX_KEYS} can be made at a time")
        made = self._make_sks(wanted - len(identity.pending(contents)))
        self._manifest.commit(lambda contents: _with_new(contents, ak, made))
        return evidence.pack(certificate, ek, ak)

    def activate(self, data: bytes) -> bytes:
        """The answer to a challenge of our authority; EvidenceError if it is not for this TPM and this AK."""
        contents = self._manifest.contents
        challenge = enrolment.verify_challenge(data, VerifyKey.from_der(contents.authority))
        if contents.identity is None or tpm_structures.parse_public(contents.identity.ak).name != challenge.ak:
            raise EvidenceError("this challenge is for another AK than this manager's")
        kind, made = challenge.kind, challenge.credential
        try:
            secret = attest.activate(self._connection, self._auths, kind, made.blob, made.secret)
        except HardwareTpmError as error:
            if error.rc in _NOT_FOR_US:
                raise EvidenceError("this challenge is for another TPM: its credential does not open here") from error
            raise
        qualifying = enrolment.qualifying_data(challenge.nonce)
        return enrolment.answer(challenge.id, secret, self._certify(identity.pending(contents)[:MAX_KEYS], qualifying))

    def install(self, data: bytes) -> None:
        """Keep what the authority has issued for this platform; EvidenceError for anything else, and then nothing."""
        found = enrolment.verify(data, VerifyKey.from_der(self._manifest.contents.authority))
        self._manifest.commit(lambda contents: _installed(contents, found))

    def show(self) -> dict[str, Any]:
        """Who this platform is, and how many SKs there are for vTPMs to come."""
        contents = self._manifest.contents
        all_, waiting, left = identity.keys(contents), identity.pending(contents), identity.free(contents)
        counts = {"free": left, "assigned": len(all_) - left - len(waiting), "not_certified": len(waiting)}
        if not identity.is_enrolled(contents):
            return {"enrolled": False, "keys": counts}
        found = identity.verified(contents)
        told = {"enrolled": True, "platform": found.name, "serial": found.serial}
        return {**told, "ak": found.ak.name.hex(), "ek_certificate": found.ek.hex(), "keys": counts}

    def _ek_certificate(self) -> tuple[str, bytes]:
        for kind in evidence.KINDS:
            data = attest.ek_certificate(self._connection, kind)
            if data is not None:
                return kind, _without_padding(data)
        raise EvidenceError(
            f"the hardware TPM holds no EK certificate of its vendor ({' or '.join(evidence.KINDS)}): nobody can tell "
            "what it is, so it cannot be enrolled"
        )

    def _make_sks(self, count: int) -> list[SealedKey]:
        made: list[SealedKey] = []
        while len(made) < count:
            made += attest.make_sks(self._connection, self._auths, min(count - len(made), _AT_ONCE))
        return made

    def _certify(self, keys: Sequence[SigningKey], qualifying: bytes) -> list[CertifiedKey]:
        found = []
        for start in range(0, len(keys), _AT_ONCE):
            sealed = [SealedKey(key.public, key.private) for key in keys[start : start + _AT_ONCE]]
            signed = attest.certify(self._connection, self._auths, sealed, qualifying)
            publics = [tpm_structures.unwrap(key.public, "an SK") for key in sealed]
            found += [
                CertifiedKey(public, each.attested, each.signature)
                for public, each in zip(publics, signed, strict=True)
            ]
        return found


def _with_new(contents: Contents, ak: bytes, made: Sequence[SealedKey]) -> Contents:
    found = contents.identity or Identity(ak)
    if found.ak != ak:
        raise IntegrityError(
            "the hardware TPM has another AK than this manager made there; it was changed from outside"
        )
    keys = (*found.keys, *(SigningKey(each.public, each.private) for each in made))
    return replace(contents, identity=replace(found, keys=keys))


def _installed(contents: Contents, new: Enrolled) -> Contents:
    found = contents.identity
    if found is None or found.ak != new.platform.ak.area:
        raise EvidenceError(f"this enrolment is that of another platform ({new.platform.name}): its AK is not ours")
    if found.statement == new.statement:
        return contents
    if found.statement and identity.verified(contents).serial > new.platform.serial:
        raise EvidenceError("a newer enrolment of this platform is installed already")
    issued = {_spki(key): der for key, der in new.certificates}
    ours = [_spki(tpm_structures.parse_public(tpm_structures.unwrap(key.public, "an SK")).key) for key in found.keys]
    if strange := issued.keys() - set(ours):
        raise EvidenceError(f"this enrolment has certificates for {len(strange)} keys that this manager does not have")
    keys = tuple(
        replace(key, certificate=key.certificate or issued.get(spki, b""))
        for key, spki in zip(found.keys, ours, strict=True)
    )
    return replace(contents, identity=Identity(found.ak, new.statement, new.authority, keys))


def _spki(key: tpm_structures.Key) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _without_padding(data: bytes) -> bytes:
    """A DER certificate without what vendors leave behind it in NV."""
    if data[:2] == b"\x30\x82" and len(data) > 4:
        return data[: 4 + int.from_bytes(data[2:4])]
    return data
