"""How a manager comes to know its authority, and later its operators: changes of the manifest, all of them here."""

from __future__ import annotations

import logging
from dataclasses import replace

from manager_vm.errors import ConfigError, StateError
from manager_vm.store.records import Contents
from manager_vm.trust import roster
from manager_vm.trust.signing import VerifyKey

log = logging.getLogger(__name__)


def provision(contents: Contents, authority: bytes, enrolments: list[bytes]) -> Contents:
    """The first authority and its operators (one admin at least). StateError if there is an authority already."""
    if contents.authority:
        raise StateError("this manager has an authority already; its operators are changed with 'operator add'")
    VerifyKey.from_der(authority)
    if not enrolments:
        raise ConfigError("provisioning needs the enrolment of an admin; without one nobody could ask for anything")
    return replace(contents, authority=authority, operators=roster.enrol(enrolments, authority, {}))


def announce(contents: Contents) -> None:
    """Say loudly whom this manager trusts from now on."""
    names = [f"{each.name} ({each.role})" for each in roster.operators(contents.authority, contents.operators)]
    key = VerifyKey.from_der(contents.authority)
    log.warning("PROVISIONED: trusting authority %s from now on; enrolled: %s", key.id, ", ".join(names))


def enrol(contents: Contents, statement: bytes) -> Contents:
    """With one more operator, or another role of one."""
    return _with(contents, roster.enrol([statement], _authority(contents), contents.operators))


def remove(contents: Contents, statement: bytes) -> Contents:
    """Without an operator, for ever."""
    return _with(contents, roster.remove(statement, _authority(contents), contents.operators))


def _with(contents: Contents, operators: dict[str, bytes]) -> Contents:
    return contents if operators == contents.operators else replace(contents, operators=operators)


def _authority(contents: Contents) -> bytes:
    if not contents.authority:
        raise ConfigError("this manager has no authority yet: provision first")
    return contents.authority
