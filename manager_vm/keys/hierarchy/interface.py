"""What a hierarchy is, and what it may ask of the platform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from manager_vm.keys.hwtpm.attest import Signed
from manager_vm.trust.group import Hierarchy as Kind
from manager_vm.trust.tpm_structures import Public
from manager_vm.trust.vak import Credential


@dataclass(frozen=True, slots=True)
class Subject:
    """A vAK and its vTPM. ``ak``: read from the vTPM by the manager itself, and found to be an AK.

    ``ek_names``, ``certificates``: as recorded at manufacture, by key kind. ``ca``: the certificate above them.
    """

    uuid: str
    ak: Public
    ek_names: Mapping[str, bytes]
    certificates: Mapping[str, bytes]
    ca: bytes


class Hardware(Protocol):
    """What the hardware TPM of the platform does for hierarchies, and what the authority has said of it."""

    def sign(self, uuid: str, digest: bytes) -> bytes:
        """ECDSA over a SHA-256 digest by the SK of this vTPM: r || s, 64 bytes."""

    def chain(self, uuid: str) -> Sequence[bytes]:
        """Certificates of that SK, which the vTPM gets now if it has none, and of the authority, DER."""

    def quote(self, qualifying: bytes) -> Signed:
        """A quote by the platform's AK that carries ``qualifying``."""

    def statement(self) -> bytes:
        """The authority's statement about this platform and its AK."""


@dataclass(frozen=True, slots=True)
class Move:
    """What has to be made anew when a vTPM has moved, for each of its AKs.

    ``keys``: keys of the vTPM that are no good any more. ``sks``: SKs taken from the destination's pool. ``hardware``:
    operations of the destination's hardware TPM with a key. ``contacts``: how often a CA, or whoever relies on the AK,
    has to be asked.
    """

    keys: int = 0
    sks: int = 0
    hardware: int = 0
    contacts: int = 0


class Hierarchy(Protocol):
    """``move``: what a move costs, as claimed; a benchmark compares it with what is measured."""

    @property
    def kind(self) -> Kind:
        """Its name."""

    @property
    def move(self) -> Move:
        """What a move costs."""

    def issue(self, subject: Subject, hardware: Hardware, response: bytes = b"") -> Credential:
        """The credential of this vAK on this platform. ``response``: what an outside CA has sent, where one is asked.

        ConfigError, StateError or TrustError says why there is none.
        """

    def renew(self, old: Credential, subject: Subject, hardware: Hardware) -> Credential:
        """After a move: the credential on the platform that the vTPM is on now."""
