"""Hierarchy ``ek`` (Stumpf et al. 2008): the hardware EK signs for vTPMs. Refused; here so that it is refused by name.

An EK is a restricted decryption key: TPM2_Sign, TPM2_Certify and TPM2_Quote refuse it (TPM 2.0 Part 1, 23 and 25), and
an EK of another template that could sign would name the platform in whatever it signs, for ever.
"""

from __future__ import annotations

from typing import NoReturn

from manager_vm.keys.hierarchy.interface import Hardware, Move, Subject
from manager_vm.trust import group
from manager_vm.trust.group import Hierarchy as Kind
from manager_vm.trust.vak import Credential


class ByEk:
    """Issues nothing."""

    kind = Kind.EK
    move = Move()

    def issue(self, subject: Subject, hardware: Hardware, response: bytes = b"") -> Credential:
        """ConfigError that names the rule."""
        _refuse()

    def renew(self, old: Credential, subject: Subject, hardware: Hardware) -> Credential:
        """ConfigError that names the rule."""
        _refuse()


def _refuse() -> NoReturn:
    group.demand_allowed(Kind.EK)
    raise AssertionError("demand_allowed refuses it")
