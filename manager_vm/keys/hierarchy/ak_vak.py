"""Hierarchy ``ak-vak`` (Berger et al. 2006, b): the platform's AK vouches for a vAK by a quote that carries its Name.

Who verifies sees which platform it is, so all vTPMs of one host are linked. After a move the evidence is of the wrong
platform, and is made anew.
"""

from __future__ import annotations

from manager_vm.keys.hierarchy.interface import Hardware, Move, Subject
from manager_vm.trust import vak
from manager_vm.trust.group import Hierarchy as Kind
from manager_vm.trust.vak import Credential


class OverVak:
    """After a move: one quote for each vAK."""

    kind = Kind.AK_VAK
    move = Move(hardware=1)

    def issue(self, subject: Subject, hardware: Hardware, response: bytes = b"") -> Credential:
        """One quote."""
        made = hardware.quote(vak.qualifying(self.kind, subject.ak.name))
        return Credential(
            self.kind, subject.ak.area, hardware.statement(), attested=made.attested, signature=made.signature
        )

    def renew(self, old: Credential, subject: Subject, hardware: Hardware) -> Credential:
        """The same by the AK of the other platform."""
        return self.issue(subject, hardware)
