"""The authority's register of groups: groups/NAME.json, the newest statement about each tenant's group."""

from __future__ import annotations

from pathlib import Path

from manager_vm.errors import ConfigError
from manager_vm.trust import group
from manager_vm.trust.authority import GROUPS, AuthorityDirectory, config_errors, replace
from manager_vm.trust.group import Group, Hierarchy
from manager_vm.trust.signing import VerifyKey


def enroll(authority: AuthorityDirectory, name: str, owner: VerifyKey, hierarchy: Hierarchy) -> Path:
    """Sign that managers may hold vTPMs of group ``name``, whose operators ``owner`` enrols; the file."""
    with authority.locked():
        known = groups(authority)
        if name in known and known[name].authority.id != owner.id:
            raise ConfigError(f"group {name!r} has another authority, and never changes hands; use another name")
        serial = max((each.serial for each in known.values()), default=0) + 1
        statement = group.found(name, owner, hierarchy, authority.key, serial=serial)
        path = authority.path / GROUPS / f"{name}.json"
        replace(path, statement)
    return path


def groups(authority: AuthorityDirectory) -> dict[str, Group]:
    """All groups of tenants."""
    folder = authority.path / GROUPS
    with config_errors(f"read {folder}"):
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    return {path.name.removesuffix(".json"): authority.said(path, group.verify) for path in paths}
