"""Hierarchy ``sk``: the vTPM's SK, a key of the hardware TPM that the authority has certified ahead, signs its AKs.

Third parties see vAK <- SK <- authority. Each vTPM has an SK of its own on each host, so nothing that they see is the
same for two vTPMs of a host but what is the same for all vTPMs of the authority.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from manager_vm.keys.hierarchy.interface import Hardware, Move, Subject
from manager_vm.trust import envelope, vak
from manager_vm.trust.group import Hierarchy as Kind
from manager_vm.trust.vak import Credential


class BySk:
    """After a move: another SK, already certified, and one signature."""

    kind = Kind.SK
    move = Move(sks=1, hardware=1)

    def issue(self, subject: Subject, hardware: Hardware, response: bytes = b"") -> Credential:
        """One signature."""
        chain = hardware.chain(subject.uuid)

        def sign(message: bytes) -> bytes:
            return hardware.sign(subject.uuid, hashlib.sha256(message).digest())

        statement = envelope.sign_with(vak.VAK, vak.statement(subject.ak.area), _key_id(chain[0]), sign)
        return Credential(self.kind, subject.ak.area, statement, tuple(chain))

    def renew(self, old: Credential, subject: Subject, hardware: Hardware) -> Credential:
        """The same, by the SK that the vTPM has got there."""
        return self.issue(subject, hardware)


def _key_id(certificate: bytes) -> str:
    key = x509.load_der_x509_certificate(certificate).public_key()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
