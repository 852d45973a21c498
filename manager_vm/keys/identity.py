"""SKs and the vTPMs that they are for: one for each vTPM on this host, never one for two (hierarchy ``sk``).

An SK signs the credential of its vTPM; its certificate says nothing of the host. With its vTPM it leaves the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from manager_vm.errors import EvidenceError, StateError
from manager_vm.keys.hwtpm import attest
from manager_vm.keys.hwtpm.auths import Authorizations
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.keys.hwtpm.sealing import SealedKey
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import Contents, Identity, SigningKey
from manager_vm.trust import platform
from manager_vm.trust.platform import Platform
from manager_vm.trust.signing import VerifyKey

_MORE = "make more with 'vtpmctl platform evidence --more N', and have the authority enroll that"


def verified(contents: Contents) -> Platform:
    """What the authority says of this manager's platform; EvidenceError before it has enrolled it."""
    if contents.identity is None or not is_enrolled(contents):
        raise EvidenceError("this manager's platform is not enrolled; begin with 'vtpmctl platform evidence'")
    return platform.verify(contents.identity.statement, VerifyKey.from_der(contents.authority))


def is_enrolled(contents: Contents) -> bool:
    """Whether the authority has enrolled this manager's platform."""
    return contents.identity is not None and bool(contents.identity.statement)


def keys(contents: Contents) -> tuple[SigningKey, ...]:
    """All SKs, certified or not."""
    return contents.identity.keys if contents.identity is not None else ()


def free(contents: Contents) -> int:
    """How many vTPMs can still get an SK."""
    return sum(_is_free(key) for key in keys(contents))


def pending(contents: Contents) -> list[SigningKey]:
    """SKs that the authority has not certified yet."""
    return [key for key in keys(contents) if not key.certificate]


def assigned(contents: Contents, uuid: str) -> SigningKey | None:
    """The SK of this vTPM."""
    return next((key for key in keys(contents) if key.vtpm == uuid), None)


def assign(contents: Contents, uuid: str) -> Contents:
    """The same, in which this vTPM has an SK: its own, or one that no vTPM ever had. StateError if none is left."""
    verified(contents)
    if uuid not in contents.vtpms:
        raise StateError("the vTPM was destroyed meanwhile")
    if assigned(contents, uuid) is not None:
        return contents
    chosen = next((key for key in keys(contents) if _is_free(key)), None)
    if chosen is None:
        raise StateError(f"no signing key is left for another vTPM: {_MORE}")
    return _with_keys(contents, lambda key: replace(key, vtpm=uuid) if key is chosen else key)


def release(contents: Contents, uuid: str) -> Contents:
    """The same without this vTPM's SK, which nobody ever uses again."""
    if assigned(contents, uuid) is None:
        return contents
    return _with_keys(contents, lambda key: None if key.vtpm == uuid else key)


def chain(contents: Contents, uuid: str) -> list[bytes]:
    """Certificates (DER) under which others verify what ``Signer.sign`` makes: the SK's, the authority's."""
    found = assigned(contents, uuid)
    if found is None or contents.identity is None:
        raise StateError("this vTPM has no signing key yet")
    return [found.certificate, contents.identity.authority]


class Signer:
    """Signs with the SKs, inside the hardware TPM. Thread-safe."""

    def __init__(self, connection: Connection, auths: Authorizations, manifest: Manifest) -> None:
        self._connection = connection
        self._auths = auths
        self._manifest = manifest

    def sign(self, uuid: str, digest: bytes) -> bytes:
        """ECDSA over a SHA-256 digest by the SK of this vTPM, assigned now if it has none: r || s, 64 bytes."""
        if assigned(self._manifest.contents, uuid) is None:
            self._manifest.commit(lambda contents: assign(contents, uuid))
        key = assigned(self._manifest.contents, uuid)
        if key is None:
            raise StateError("the vTPM was destroyed meanwhile")
        return attest.sign(self._connection, self._auths, SealedKey(key.public, key.private), digest)


def _is_free(key: SigningKey) -> bool:
    return bool(key.certificate) and not key.vtpm


def _with_keys(contents: Contents, change: Callable[[SigningKey], SigningKey | None]) -> Contents:
    found: Identity | None = contents.identity
    assert found is not None  # it has the keys that are changed
    changed = tuple(new for key in found.keys if (new := change(key)) is not None)
    return replace(contents, identity=replace(found, keys=changed))
