"""An authority and its first operator in a directory of this machine: for ``dev`` and for simulated hosts.

An ``AuthorityDirectory`` in which also lies ``operator.key``, the key of an admin whom it has enrolled. Whoever reads
that directory is both; a real authority's key lies elsewhere.
"""

from __future__ import annotations

import datetime
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from manager_vm.errors import ConfigError
from manager_vm.trust import approval, evidence
from manager_vm.trust.authority import AuthorityDirectory
from manager_vm.trust.operator import Role
from manager_vm.trust.register import Register
from manager_vm.trust.signing import SigningKey, VerifyKey

DIRECTORY = "authority"
OPERATOR_KEY = "operator.key"
_NAME = "local"
_MAX_FILE = 1 << 16


class Candidate(Protocol):
    """A manager whose platform is to be enrolled."""

    def evidence(self, more: int) -> bytes:
        """What it is, and ``more`` signing keys to be certified."""

    def activate(self, data: bytes) -> bytes:
        """The answer to a challenge."""

    def install(self, data: bytes) -> None:
        """Keep what the authority has issued."""


class LocalAuthority:
    """The files of a directory that ``open_or_make`` has looked at."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def public(self) -> VerifyKey:
        """The authority's public key."""
        return VerifyKey.load(self.directory / "authority.pub")

    @property
    def operator(self) -> SigningKey:
        """The operator's key."""
        return SigningKey.load(self.directory / OPERATOR_KEY)

    @property
    def enrolment(self) -> bytes:
        """The operator's enrolment."""
        return _read(self.directory / "operators" / f"{_NAME}.json")

    def approve(self, image: str, pcrs: Mapping[int, bytes]) -> bytes:
        """An approval of these PCR values: the one that was made before, or a new one."""
        known = [_read(path) for path in sorted((self.directory / "approvals").glob("*.json"))]
        for data in reversed(known):
            if dict(approval.verify(data, self.public).pcrs) == dict(pcrs):
                return data
        return _read(AuthorityDirectory.open(self.directory).approve(image, pcrs))

    def enrol(self, candidate: Candidate, vendor: Path, keys: int) -> None:
        """Enrol a platform of this machine, whose TPM the CA in the file ``vendor`` has certified; nothing is skipped.

        It is called after its TPM: directories of this machine are made anew under the same name.
        """
        register = Register(AuthorityDirectory.open(self.directory))
        said, vendors = candidate.evidence(keys), evidence.load_vendors(vendor)
        digest = evidence.verify(said, vendors, datetime.datetime.now(datetime.UTC)).ek_digest
        _, challenge = register.challenge(f"local-{digest.hex()[:12]}", said, vendors)
        _, _, issued = register.enrol(candidate.activate(challenge))
        candidate.install(issued)


def open_or_make(directory: Path) -> LocalAuthority:
    """The authority in ``directory``, made if there is none; ConfigError if it could be anybody else's.

    Several processes may come at once: each makes a directory of its own, and the first one to rename it wins.
    """
    if not os.path.lexists(directory):
        try:
            _make(directory)
        except OSError as error:
            if not os.path.lexists(directory):
                raise ConfigError(f"cannot make an authority in {directory}: {error.strerror}") from None
    _demand_private(directory)
    return LocalAuthority(directory)


def directory(beside: Path) -> Path | None:
    """The authority of this machine for the manager whose sockets are in ``beside``; None if there is none."""
    return next((each for each in (beside / DIRECTORY, beside.parent / DIRECTORY) if each.is_dir()), None)


def operator_key(beside: Path) -> Path | None:
    """The operator's key for the manager in directory ``beside``, if there is one that belongs to this user alone."""
    for directory in (beside / DIRECTORY, beside.parent / DIRECTORY):
        path = directory / OPERATOR_KEY
        try:
            _demand_private(directory)
            if path.stat().st_uid == os.geteuid():
                return path
        except (OSError, ConfigError):
            continue
    return None


def _make(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = directory.with_name(f".{directory.name}.{secrets.token_hex(8)}")
    scratch.mkdir(mode=0o700)
    try:
        key = SigningKey.create()
        AuthorityDirectory.init(scratch).enroll_operator(_NAME, key.public, Role.ADMIN, "of this machine")
        key.store(scratch / OPERATOR_KEY)
        _sync(scratch)
        os.rename(scratch, directory)
        _sync(directory.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _demand_private(directory: Path) -> None:
    try:
        found = directory.lstat()
    except OSError as error:
        raise ConfigError(f"cannot look at {directory}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{directory} must be a directory of this user with mode 0700: whoever can write there could enrol "
            "operators; remove it, or put the manager's directory into another parent folder"
        )


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
