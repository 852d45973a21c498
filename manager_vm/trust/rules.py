"""Which role may ask a manager's admin link for what: a table. A test compares it with the verbs that are served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust.operator import Role


@dataclass(frozen=True, slots=True)
class Rule:
    """``roles``: whose signed requests are served. ``signed``: whether others are refused. ``changes``: audited."""

    roles: frozenset[Role]
    signed: bool = True
    changes: bool = True


_ANYBODY = Rule(frozenset(Role), signed=False, changes=False)  # tells nothing secret
_OPERATORS = Rule(frozenset({Role.ADMIN, Role.OPERATOR}))
_ADMINS = Rule(frozenset({Role.ADMIN}))

RULES: dict[str, Rule] = {
    "status": _ANYBODY,
    "list": _ANYBODY,
    "show": _ANYBODY,
    "info": _ANYBODY,
    "ek_cert": _ANYBODY,
    "challenge": _ANYBODY,
    "provision": Rule(frozenset(), signed=False),  # by whoever comes first, once
    "recover_offer": Rule(frozenset(), signed=False, changes=False),  # both: the authority's order decides
    "recover": Rule(frozenset(), signed=False),
    "recovery": _ANYBODY,
    "recovery_set": _ADMINS,
    "recovery_off": _ADMINS,
    "create": _OPERATORS,
    "start": _OPERATORS,
    "stop": _OPERATORS,
    "destroy": _OPERATORS,
    "release": _ADMINS,
    "operator_add": _ADMINS,
    "operator_remove": _ADMINS,
    "operators": Rule(frozenset(Role), changes=False),
    "platform_show": Rule(frozenset(Role), changes=False),
    "platform_evidence": _ADMINS,
    "platform_activate": _ADMINS,
    "platform_install": _ADMINS,
    "approve": _ADMINS,
    "revoke": _ADMINS,
    "approvals": _ANYBODY,
    "audit": Rule(frozenset({Role.ADMIN, Role.AUDITOR}), changes=False),
}


def is_signed(verb: str) -> bool:
    """Whether the admin link serves this verb to operators only."""
    return verb in RULES and RULES[verb].signed


def changes(verb: str) -> bool:
    """Whether a request for this verb belongs into the audit log."""
    return verb not in RULES or RULES[verb].changes


def demand_unsigned(verb: str, *, provisioned: bool) -> None:
    """Whether ``verb`` is served to somebody who has signed nothing: ConfigError or EvidenceError if not."""
    if not is_signed(verb):
        return
    demand_provisioned(verb, provisioned=provisioned)
    raise EvidenceError(
        f"{verb!r} must be signed by an enrolled operator; name the key with --key FILE or VTPM_OPERATOR_KEY"
    )


def demand_provisioned(verb: str, *, provisioned: bool) -> None:
    """ConfigError before the manager knows an authority: then nobody can be asked who may change anything."""
    if not provisioned:
        refuse_before_provisioning(verb)


def refuse_before_provisioning(verb: str) -> NoReturn:
    """ConfigError."""
    raise ConfigError(f"this manager has no authority yet, so nobody may ask it to {verb!r}: provision first")


def demand_role(verb: str, role: Role) -> None:
    """EvidenceError where ``role`` does not reach as far as ``verb``."""
    roles = RULES[verb].roles if verb in RULES else _ADMINS.roles
    if role not in roles:
        allowed = " or ".join(sorted(roles)) or "nobody any more"
        raise EvidenceError(f"the role {role} may not ask for {verb!r}: it takes {allowed}")
