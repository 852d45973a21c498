"""The authority's directory: its key, and one file for each statement that it has signed. Used offline.

    authority.key   PKCS #8, PEM, mode 0600        authority.pub            for every manager, verifier, operator
    authority.pem          its X.509 certificate   platforms, challenges, enrolments: see ``register``
    recovery/N.json        see ``recovery_register``
    approvals/N.json       N = the approval's bit  revocations/N.json       in the order in which they were made
    operators/NAME.json    who is enrolled         removals/KEY-ID.json     and beside it KEY-ID.enrolment.json
    groups/NAME.json       tenants' groups

The directory is the register: what stands there is used up. No file is ever written twice, but an operator's and a
group's.
"""

from __future__ import annotations

import datetime
import fcntl
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import approval, attestation_ca, envelope, operator, policy
from manager_vm.trust.operator import Operator, Role
from manager_vm.trust.signing import SigningKey, VerifyKey

_KEY, _PUBLIC, _CERTIFICATE = "authority.key", "authority.pub", "authority.pem"
_APPROVALS, _REVOCATIONS, _OPERATORS, _REMOVALS = "approvals", "revocations", "operators", "removals"
GROUPS, PLATFORMS, CHALLENGES, ENROLMENTS = "groups", "platforms", "challenges", "enrolments"
RECOVERY = "recovery"
_FOLDERS = (_APPROVALS, _REVOCATIONS, _OPERATORS, _REMOVALS, GROUPS, PLATFORMS, CHALLENGES, ENROLMENTS, RECOVERY)
_Said = TypeVar("_Said")


class AuthorityDirectory:
    """One authority. Every method leaves, after a crash, each file whole or absent."""

    def __init__(self, path: Path, key: SigningKey) -> None:
        self.path = path
        self.key = key

    @classmethod
    def init(cls, path: Path) -> AuthorityDirectory:
        """A new authority in a new or empty directory; ConfigError if there is anything in it."""
        with config_errors(f"make {path}"):
            path.mkdir(mode=0o700, exist_ok=True)
            _demand_private(path)
            if (path / _KEY).exists():
                raise ConfigError(f"{path} has an authority already, and its key is never replaced; name another one")
            if any(path.iterdir()):
                raise ConfigError(f"{path} is not empty; name a new directory")
        SigningKey.create().store(path / _KEY)
        _sync(path)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> AuthorityDirectory:
        """The authority in ``path``; ConfigError unless directory and key belong to the caller alone."""
        with config_errors(f"open the authority {path}"):
            _demand_private(path)
            if not (path / _KEY).exists():
                raise ConfigError(f"{path} has no authority; make one with 'vtpmctl authority init {path}'")
            _demand_private(path / _KEY)
            found = cls(path, SigningKey.load(path / _KEY))
            found._complete()
        return found

    @property
    def public(self) -> VerifyKey:
        """What others verify the statements with."""
        return self.key.public

    @property
    def certificate(self) -> bytes:
        """The authority's certificate (DER), under which third parties verify SKs' certificates."""
        with config_errors(f"read {self.path / _CERTIFICATE}"):
            pem = (self.path / _CERTIFICATE).read_bytes()
        try:
            der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
        except ValueError:
            der = b""
        attestation_ca.verify_authority(der, self.public)
        return der

    def approve(self, image: str, pcrs: Mapping[int, bytes], number: int | None = None) -> Path:
        """Sign that ``image`` may unseal while its PCRs are ``pcrs``; the file. ``number``: default the next one."""
        with self.locked():
            used = self.used()
            if number is None:
                number = _next(used)
            elif number in used:
                raise ConfigError(f"approval number {number} is used already, and each is used once; leave it out")
            path = self.path / _APPROVALS / f"{number}.json"
            create(path, approval.approve(number, image, pcrs, self.key))
        return path

    def revoke(self, numbers: Collection[int] = (), reason: str = "", *, below: int = 0) -> Path:
        """Sign that these approvals, and all with a number under ``below``, are void; the file."""
        if not 0 <= below <= policy.MAX_APPROVALS or any(not 0 <= each < policy.MAX_APPROVALS for each in numbers):
            raise ConfigError(f"approvals have the numbers 0 to {policy.MAX_APPROVALS - 1}; use those")
        wanted = {*numbers, *range(below)}
        statement = approval.revoke(sum(1 << number for number in wanted), reason, self.key)
        with self.locked():
            sequence = max(numbered(self.path / _REVOCATIONS), default=-1) + 1
            path = self.path / _REVOCATIONS / f"{sequence}.json"
            create(path, statement)
        return path

    def enroll_operator(self, name: str, key: VerifyKey, role: Role, description: str = "") -> Path:
        """Sign whose key may ask for what; the file. The same key again: the newer role counts."""
        with self.locked():
            self._demand_fresh(name, key)
            statement = operator.enroll(
                name, key, role, self.key, serial=self._last_serial() + 1, description=description
            )
            path = self.path / _OPERATORS / f"{name}.json"
            replace(path, statement)
        return path

    def remove_operator(self, name: str, reason: str = "") -> Path:
        """Sign that the key of operator ``name`` is void for ever; the file. The name is free for another key."""
        with self.locked():
            enrolled = self.operators()
            if name not in enrolled:
                raise ConfigError(
                    f"no operator {name[:80]!r} is enrolled here; there are: {', '.join(enrolled) or 'none'}"
                )
            key = enrolled[name].key
            path = self.path / _REMOVALS / f"{key.id}.json"
            if not path.exists():  # else a crash came before the next step
                create(path, operator.remove(key, reason, self.key))
            with config_errors(f"write {path.parent}"):
                os.rename(self.path / _OPERATORS / f"{name}.json", path.with_name(f"{key.id}.enrolment.json"))
                _sync(path.parent)
                _sync(self.path / _OPERATORS)
        return path

    # -- what the directory says ------------------------------------------------------------------------------

    def approved(self) -> set[int]:
        """Numbers of all approvals that were made."""
        return numbered(self.path / _APPROVALS)

    def revoked(self) -> set[int]:
        """Numbers of all approvals that were revoked, made or not."""
        folder = self.path / _REVOCATIONS
        bits = 0
        for number in numbered(folder):
            bits |= self.said(folder / f"{number}.json", approval.verify_revocation)
        return set(approval.numbers(bits))

    def used(self) -> set[int]:
        """Numbers that no new approval can have."""
        return self.approved() | self.revoked()

    def operators(self) -> dict[str, Operator]:
        """All who are enrolled."""
        with config_errors(f"read {self.path / _OPERATORS}"):
            paths = sorted(path for path in (self.path / _OPERATORS).iterdir() if path.suffix == ".json")
        return {path.stem: self.said(path, operator.verify) for path in paths}

    def _demand_fresh(self, name: str, key: VerifyKey) -> None:
        """ConfigError unless ``name`` is nobody's or this key's, and the key nobody else's."""
        if key.id == self.public.id:
            raise ConfigError("this is the authority's own key; make one for the operator with 'vtpmctl key new FILE'")
        if (self.path / _REMOVALS / f"{key.id}.json").exists():
            raise ConfigError("this key was removed, for ever; make a new one with 'vtpmctl key new FILE'")
        for other in self.operators().values():
            if (other.name == name) != (other.key.id == key.id):
                what = "has another key" if other.name == name else "has this key"
                raise ConfigError(f"operator {other.name} {what}; first 'vtpmctl authority remove' that operator")

    def _last_serial(self) -> int:
        with config_errors(f"read {self.path / _REMOVALS}"):
            former = sorted((self.path / _REMOVALS).glob("*.enrolment.json"))
        known = [*self.operators().values(), *(self.said(path, operator.verify) for path in former)]
        return max((each.serial for each in known), default=0)

    def said(self, path: Path, verify: Callable[[bytes, VerifyKey], _Said]) -> _Said:
        """What a file says that we must have signed."""
        try:
            return verify(read_statement(path), self.public)
        except EvidenceError as error:
            raise EvidenceError(f"{path}: {error}; restore the authority's directory from its copy") from None

    def _complete(self) -> None:
        """Make what an interrupted ``init`` has left out; ConfigError if the public key is another one's."""
        for name in _FOLDERS:
            (self.path / name).mkdir(mode=0o700, exist_ok=True)
        if not (self.path / _PUBLIC).exists():
            self.public.store(self.path / _PUBLIC)
            _sync(self.path)
        if not (self.path / _CERTIFICATE).exists():
            made = attestation_ca.certify_authority(self.key, datetime.datetime.now(datetime.UTC))
            replace(self.path / _CERTIFICATE, made.public_bytes(serialization.Encoding.PEM))
        if VerifyKey.load(self.path / _PUBLIC).id != self.public.id:
            raise ConfigError(f"{_PUBLIC} in {self.path} does not belong to {_KEY}; restore both from one copy")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time."""
        with config_errors(f"lock {self.path}"):
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def read_statement(path: Path) -> bytes:
    """A file's bytes, as many as a statement may have and one; ConfigError if it cannot be read."""
    with config_errors(f"read {path}"), open(path, "rb") as file:
        return file.read(envelope.MAX_SIZE + 1)


def _next(used: set[int]) -> int:
    """Above all that were used, so that 'revoke below N' means all older ones."""
    number = max(used, default=-1) + 1
    if number < policy.MAX_APPROVALS:
        return number
    free = sorted(set(range(policy.MAX_APPROVALS)) - used)
    if free:
        raise ConfigError(f"number {number - 1} was the last; name a free one with --number: {_listed(free)}")
    raise ConfigError(f"all {policy.MAX_APPROVALS} approvals of this authority are used; make a new authority")


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def numbered(folder: Path) -> set[int]:
    """The numbers that statements of this folder are called by."""
    with config_errors(f"read {folder}"):
        stems = [path.stem for path in folder.iterdir() if path.suffix == ".json"]
    return {int(stem) for stem in stems if stem.isascii() and stem.isdigit() and len(stem) < 10}


def _demand_private(path: Path) -> None:
    info = path.stat()
    if info.st_uid != os.geteuid():
        raise ConfigError(f"{path} belongs to user {info.st_uid}, not to you; run as its owner")
    if info.st_mode & 0o077:
        raise ConfigError(f"{path} is open to other users; chmod go= {path}, and look who could have changed it")


def create(path: Path, data: bytes) -> None:
    """A new file, durable on return; ConfigError if there is one already."""
    with config_errors(f"write {path}"):
        pending = _pending(path, data)
        try:
            os.link(pending, path)
        finally:
            os.unlink(pending)
        _sync(path.parent)


def replace(path: Path, data: bytes) -> None:
    """A file of which the newest version counts; durable on return."""
    with config_errors(f"write {path}"):
        os.rename(_pending(path, data), path)
        _sync(path.parent)


def _pending(path: Path, data: bytes) -> Path:
    pending = path.with_name(path.name + ".tmp")
    fd = os.open(pending, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    return pending


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def config_errors(what: str) -> Iterator[None]:
    """Turn an OSError of the block into a ConfigError that names ``what``."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot {what}: {error.strerror}; check path, owner and free space") from None
