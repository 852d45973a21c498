"""Tenants' groups at a manager: changes of the manifest's contents, and what a request is about."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from manager_vm.errors import ConfigError, EvidenceError, StateError
from manager_vm.keys.ek_ca import EkCa
from manager_vm.store.records import Contents, Group
from manager_vm.trust import group, roster, rules
from manager_vm.trust.group import DEFAULT, Hierarchy
from manager_vm.trust.roster import Domain
from manager_vm.trust.rules import About
from manager_vm.trust.signing import VerifyKey

MAX_GROUPS = 200
PLATFORM = ""  # whose operators and vTPMs are in no tenant's group


def authority(contents: Contents, name: str) -> VerifyKey:
    """Who enrols the operators of group ``name``."""
    data = contents.group(name).statement
    platform = VerifyKey.from_der(contents.authority)
    return group.verify(data, platform).authority if data else platform


def domains(contents: Contents, key: str) -> list[Domain]:
    """Whose statements say something about this key: the platform's authority first."""
    mine = [Domain(PLATFORM, contents.authority, contents.operators)] if key in contents.operators else []
    tenants = {name: each for name, each in contents.groups.items() if key in each.operators}
    return mine + [Domain(name, authority(contents, name).der, each.operators) for name, each in tenants.items()]


def owner(contents: Contents, verb: str, args: dict[str, Any]) -> str | None:
    """The group that a request is about (``rules.choose``): None if it names a vTPM that does not exist."""
    about = rules.about(verb)
    name = DEFAULT
    if about is About.GROUP:
        name = args.get("group") or DEFAULT
        contents.group(name if isinstance(name, str) else "")
    elif about is About.VTPM:
        record = contents.named(str(args.get("name")))
        if record is None:
            return None
        name = record.group
    return PLATFORM if name == DEFAULT else name


def add(contents: Contents, statement: bytes, enrolments: list[bytes]) -> Contents:
    """With a new group, its own new CA and first operators; or with a newer statement about one that there is.

    A group never changes hands: whoever its vTPMs belong to would not be asked.
    """
    new = group.verify(statement, VerifyKey.from_der(contents.authority))
    known = contents.groups.get(new.name)
    if known is None:
        if len(contents.groups) >= MAX_GROUPS:
            raise ConfigError(f"a manager has at most {MAX_GROUPS} groups; remove one that has no vTPMs")
        ca = EkCa.create()
        known = Group(statement, ca.certificate, ca.private_bytes())
    elif known.statement != statement:
        _demand_newer(contents, new)
    operators = roster.enrol(enrolments, new.authority.der, known.operators, need_admin=False)
    return _with(contents, new.name, replace(known, statement=statement, operators=operators))


def _demand_newer(contents: Contents, new: group.Group) -> None:
    old = group.verify(contents.groups[new.name].statement, VerifyKey.from_der(contents.authority))
    if new.serial <= old.serial:
        raise EvidenceError(f"this statement about group {new.name!r} has serial {new.serial}, {old.serial} is known")
    if new.authority.id != old.authority.id:
        raise StateError(f"group {new.name!r} has another authority, and never changes hands; 'group remove' it first")
    if new.hierarchy is not old.hierarchy and count(contents)[new.name]:
        raise StateError(f"group {new.name!r} has vTPMs, and keeps its hierarchy {old.hierarchy.value!r} as long")


def remove(contents: Contents, name: str) -> Contents:
    """Without a group; StateError while it has vTPMs."""
    if name == DEFAULT:
        raise ConfigError("the default group is the manager's own, and stays")
    contents.group(name)
    if count(contents)[name]:
        raise StateError(f"group {name!r} has {count(contents)[name]} vTPMs; its operators must destroy them first")
    return replace(contents, groups={key: value for key, value in contents.groups.items() if key != name})


def enrol(contents: Contents, name: str, statement: bytes) -> Contents:
    """With one more operator of a tenant's group, or another role of one."""
    found = contents.group(name)
    operators = roster.enrol([statement], authority(contents, name).der, found.operators, need_admin=False)
    return _with(contents, name, replace(found, operators=operators))


def expel(contents: Contents, name: str, statement: bytes) -> Contents:
    """Without an operator of a tenant's group, for ever."""
    found = contents.group(name)
    operators = roster.remove(statement, authority(contents, name).der, found.operators, need_admin=False)
    return _with(contents, name, replace(found, operators=operators))


def count(contents: Contents) -> Counter[str]:
    """How many vTPMs each group has."""
    return Counter(record.group for record in contents.vtpms.values())


def table(contents: Contents) -> list[dict[str, Any]]:
    """All groups, the default one first: name, hierarchy, authority's key id, number of vTPMs and operators."""
    counted, rows = count(contents), []
    for name in [DEFAULT, *sorted(contents.groups)]:
        found = contents.group(name)
        who = authority(contents, name)
        operators = roster.operators(who.der, found.operators)
        row = {"name": name, "hierarchy": hierarchy(contents, name).value, "authority": who.id}
        rows.append({**row, "vtpms": counted[name], "operators": len(operators)})
    return rows


def hierarchy(contents: Contents, name: str) -> Hierarchy:
    """What vouches for the AKs of this group's vTPMs."""
    data = contents.group(name).statement
    return group.verify(data, VerifyKey.from_der(contents.authority)).hierarchy if data else Hierarchy.SK


def _with(contents: Contents, name: str, new: Group) -> Contents:
    if contents.groups.get(name) == new:
        return contents
    return replace(contents, groups={**contents.groups, name: new})
