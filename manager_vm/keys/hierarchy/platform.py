"""What hierarchies ask of this manager's platform: its AK, its SKs, what the authority has said of it."""

from __future__ import annotations

from collections.abc import Sequence

from manager_vm.errors import EvidenceError
from manager_vm.keys import identity
from manager_vm.keys.hwtpm import attest
from manager_vm.keys.hwtpm.attest import Signed
from manager_vm.keys.hwtpm.auths import Authorizations
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.keys.identity import Signer
from manager_vm.store.manifest import Manifest
from manager_vm.trust import pcrs


class PlatformHardware:
    """Thread-safe. EvidenceError from all methods before the authority has enrolled the platform."""

    def __init__(self, connection: Connection, auths: Authorizations, manifest: Manifest) -> None:
        self._connection = connection
        self._auths = auths
        self._manifest = manifest
        self._signer = Signer(connection, auths, manifest)

    def sign(self, uuid: str, digest: bytes) -> bytes:
        """By the SK of this vTPM."""
        return self._signer.sign(uuid, digest)

    def chain(self, uuid: str) -> Sequence[bytes]:
        """Of the SK, which is assigned now if there is none yet."""
        contents = self._manifest.contents
        if identity.assigned(contents, uuid) is None:
            contents = self._manifest.commit(lambda contents: identity.assign(contents, uuid))
        return identity.chain(contents, uuid)

    def quote(self, qualifying: bytes) -> Signed:
        """By the AK, over the PCRs that say what has booted."""
        self.statement()
        return attest.quote(self._connection, self._auths, pcrs.BOUND_PCRS, qualifying)

    def statement(self) -> bytes:
        """The authority's, verified."""
        contents = self._manifest.contents
        identity.verified(contents)
        if contents.identity is None:
            raise EvidenceError("this manager's platform is not enrolled")
        return contents.identity.statement
