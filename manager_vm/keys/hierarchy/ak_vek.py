"""Hierarchy ``ak-vek`` (Berger et al. 2006, a): the platform's AK vouches for the vEK; the vEK answers for the vAKs.

As with a real TPM, whoever relies on a vAK (a privacy CA, a verifier) asks the vTPM to open a credential that is made
for vEK and vAK. After a move the evidence over the vEK is of the wrong platform, and so is what was built on it.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from manager_vm.errors import IntegrityError
from manager_vm.keys.hierarchy.interface import Hardware, Move, Subject
from manager_vm.trust import templates, tpm_structures, vak
from manager_vm.trust.group import Hierarchy as Kind
from manager_vm.trust.vak import Credential

EK_KIND = "ecc-p256"  # which of the vTPM's EKs


class OverVek:
    """After a move: one quote, and each vAK is asked about again."""

    kind = Kind.AK_VEK
    move = Move(hardware=1, contacts=1)

    def issue(self, subject: Subject, hardware: Hardware, response: bytes = b"") -> Credential:
        """One quote over the vEK."""
        ek = vek(subject)
        made = hardware.quote(vak.qualifying(self.kind, tpm_structures.parse_public(ek).name))
        return Credential(
            self.kind, subject.ak.area, hardware.statement(), ek=ek, attested=made.attested, signature=made.signature
        )

    def renew(self, old: Credential, subject: Subject, hardware: Hardware) -> Credential:
        """The same by the AK of the other platform."""
        return self.issue(subject, hardware)


def vek(subject: Subject) -> bytes:
    """TPMT_PUBLIC of the vEK: its template with the key of its certificate; IntegrityError if that is not its Name."""
    key = x509.load_der_x509_certificate(subject.certificates[EK_KIND]).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    area = templates.with_key(EK_KIND, key)
    if tpm_structures.parse_public(area).name != subject.ek_names[EK_KIND]:
        raise IntegrityError("the EK certificate on record is not that of the EK on record")
    return area
