"""The authority's register of platforms: who is enrolled, which challenges are open, what was issued to whom.

platforms/NAME.json      the newest statement about a platform    challenges/ID.json   open; removed by its answer
enrolments/SERIAL.json   what was handed out: here alone stands which SK's certificate is which platform's
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import attestation_ca, enrolment, evidence, operator, platform, tpm_structures
from manager_vm.trust.authority import (
    CHALLENGES,
    ENROLMENTS,
    PLATFORMS,
    AuthorityDirectory,
    config_errors,
    create,
    read_statement,
    replace,
)
from manager_vm.trust.enrolment import SECRET_SIZE, Pending
from manager_vm.trust.evidence import Evidence
from manager_vm.trust.platform import Platform
from manager_vm.trust.tpm_structures import Public

_ID_SIZE = 16  # bytes


class Register:
    """The platforms of one authority."""

    def __init__(self, authority: AuthorityDirectory) -> None:
        self._authority = authority

    def challenge(
        self, name: str, data: bytes, vendors: Sequence[x509.Certificate], level: int = 0
    ) -> tuple[Evidence, bytes]:
        """(verified evidence, challenge) for the platform that is to be called ``name`` and have this trust level.

        EvidenceError for evidence that does not hold, ConfigError for a name or a TPM that is enrolled otherwise.
        """
        if not 0 <= level <= platform.MAX_LEVEL:
            raise ConfigError(f"trust level {level}: use a number from 0 to {platform.MAX_LEVEL}")
        if not operator.is_name(name):
            raise ConfigError(f"{name[:80]!r} is no platform's name: use 1 to 63 letters, digits, '.', '_' or '-'")
        found = evidence.verify(data, vendors, _now())
        id_, secret, nonce = os.urandom(_ID_SIZE).hex(), os.urandom(SECRET_SIZE), os.urandom(SECRET_SIZE)
        made = enrolment.challenge(id_, name, found, secret, nonce, self._authority.key)
        pending = Pending(name, found.ak.area, found.ek_digest, nonce, hashlib.sha256(secret).digest(), level)
        with self._authority.locked():
            self._demand_fresh(name, found.ek_digest)
            create(self._path(CHALLENGES, id_), enrolment.pack_pending(pending))
        return found, made

    def enrol(self, data: bytes) -> tuple[Platform, list[Public], bytes]:
        """(platform, its SKs, enrolment) for an answer, which is used up by it; EvidenceError for one that is wrong."""
        path = self._path(CHALLENGES, enrolment.challenge_of(data))
        with self._authority.locked():
            if not path.exists():
                raise EvidenceError("this authority waits for no such answer: it was used already, or is another's")
            pending = enrolment.unpack_pending(read_statement(path))
            keys = enrolment.verify_answer(data, pending)
            self._demand_fresh(pending.name, pending.ek)
            made, statement = self._statement(pending)
            certificates = [self._certify(key) for key in keys]
            issued = enrolment.pack(statement, self._authority.certificate, certificates)
            create(self._path(ENROLMENTS, str(made.serial)), issued)
            replace(self._path(PLATFORMS, made.name), statement)
            with config_errors(f"remove {path}"):
                path.unlink()
        return made, keys, issued

    def platforms(self) -> dict[str, Platform]:
        """All that are enrolled."""
        folder = self._authority.path / PLATFORMS
        with config_errors(f"read {folder}"):
            paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
        return {path.stem: self._authority.said(path, platform.verify) for path in paths}

    def _statement(self, pending: Pending) -> tuple[Platform, bytes]:
        folder = self._authority.path / ENROLMENTS
        with config_errors(f"read {folder}"):
            serials = [int(path.stem) for path in folder.glob("*.json") if path.stem.isascii() and path.stem.isdigit()]
        serial = max(serials, default=0) + 1
        ak = tpm_structures.parse_public(pending.ak)
        statement = platform.enrol(pending.name, ak, pending.ek, serial, self._authority.key, level=pending.level)
        return platform.verify(statement, self._authority.public), statement

    def _certify(self, key: Public) -> bytes:
        assert isinstance(key.key, ec.EllipticCurvePublicKey)  # platform.check_sk
        return attestation_ca.certify_sk(key.key, self._authority.key, _now())

    def _demand_fresh(self, name: str, ek: bytes) -> None:
        """ConfigError unless ``name`` is nobody's or this TPM's, and the TPM nobody else's."""
        for other in self.platforms().values():
            if (other.name == name) != (other.ek == ek):
                what = "has another TPM" if other.name == name else "has this TPM"
                raise ConfigError(f"platform {other.name} {what}; one TPM has one name, for ever")

    def _path(self, folder: str, stem: str) -> Path:
        return self._authority.path / folder / f"{stem}.json"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
