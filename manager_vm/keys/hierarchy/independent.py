"""Hierarchy ``independent`` (Berger et al. 2006, d; Sadeghi et al. 2008): an outside CA vouches for vAKs, no platform.

The request says which vAK, with the vEK and its certificates; an AK is restricted and cannot sign a PKCS #10 request.
The CA makes sure that both are in one vTPM (TPM2_MakeCredential), and answers with a certificate. No platform is named
in it, so it stays good after a move, and says nothing of where the vTPM is.
"""

from __future__ import annotations

import json

from manager_vm.errors import StateError
from manager_vm.keys.hierarchy.ak_vek import EK_KIND, vek
from manager_vm.keys.hierarchy.interface import Hardware, Move, Subject
from manager_vm.trust import vak
from manager_vm.trust.group import Hierarchy as Kind
from manager_vm.trust.vak import Credential


class Outside:
    """After a move: nothing."""

    kind = Kind.INDEPENDENT
    move = Move()

    def issue(self, subject: Subject, hardware: Hardware, response: bytes = b"") -> Credential:
        """From the CA's certificates (PEM, the vAK's first); StateError before there are any."""
        if not response:
            raise StateError("an outside CA vouches for this vTPM's AKs: send it the request, then bring its response")
        return Credential(self.kind, subject.ak.area, chain=vak.certificates(response, subject.ak.area))

    def renew(self, old: Credential, subject: Subject, hardware: Hardware) -> Credential:
        """The old one is still good."""
        return old


def request(subject: Subject) -> bytes:
    """What to send to the CA: JSON, DER and TPMT_PUBLIC in hex digits."""
    body = {
        "ak": subject.ak.area.hex(),
        "ek": vek(subject).hex(),
        "ek_certificate": subject.certificates[EK_KIND].hex(),
        "ek_ca": subject.ca.hex(),
    }
    return json.dumps(body, indent=1).encode() + b"\n"
