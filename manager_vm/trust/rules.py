"""Which role may ask a manager's admin link for what: a table. A test compares it with the verbs that are served.

What belongs to a tenant's group is for operators whom that group's authority has enrolled. The platform's own are kept
out, but where the table says otherwise: an admin may stop a group's vTPM, since whoever has the host can stop it
anyway, and may hand in what the group's authority has signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NoReturn

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust.operator import Operator, Role


class About(Enum):
    """What a request is about, and so whose operators may make it."""

    PLATFORM = auto()  # the manager
    GROUP = auto()  # the group that the argument "group" names
    VTPM = auto()  # the group of the vTPM that the argument "name" names


@dataclass(frozen=True, slots=True)
class Rule:
    """``roles``: whose signed requests are served. ``signed``: whether others are refused. ``changes``: audited.

    ``platform``: who of the platform's operators is served too where ``about`` is a tenant's group.
    """

    roles: frozenset[Role]
    signed: bool = True
    changes: bool = True
    about: About = About.PLATFORM
    platform: frozenset[Role] = frozenset()


_ANYBODY = Rule(frozenset(Role), signed=False, changes=False)  # tells nothing secret
_ADMIN = frozenset({Role.ADMIN})
_WORKERS = frozenset({Role.ADMIN, Role.OPERATOR})
_OPERATORS = Rule(_WORKERS, about=About.VTPM)
_ADMINS = Rule(_ADMIN)
_ENROLLING = Rule(_ADMIN, about=About.GROUP, platform=_ADMIN)

RULES: dict[str, Rule] = {
    "status": _ANYBODY,
    "list": _ANYBODY,
    "show": _ANYBODY,
    "info": _ANYBODY,
    "ek_cert": _ANYBODY,
    "quote": Rule(
        frozenset(Role), changes=False, about=About.VTPM
    ),  # it costs the hardware TPM's time, and says what is on this host
    "challenge": _ANYBODY,
    "provision": Rule(frozenset(), signed=False),  # by whoever comes first, once
    "recover_offer": Rule(frozenset(), signed=False, changes=False),  # both: the authority's order decides
    "recover": Rule(frozenset(), signed=False),
    "recovery": _ANYBODY,
    "recovery_set": _ADMINS,
    "recovery_off": _ADMINS,
    "create": Rule(_WORKERS, about=About.GROUP),
    "bind": _OPERATORS,
    "start": _OPERATORS,
    "stop": Rule(_WORKERS, about=About.VTPM, platform=_ADMIN),
    "destroy": _OPERATORS,
    "certify": _OPERATORS,
    "migrate": Rule(_WORKERS, about=About.VTPM, platform=_ADMIN),  # the order, by the group's authority, decides
    "migrations": Rule(frozenset(Role), changes=False),
    "receipt": Rule(frozenset(Role), changes=False),
    "abort": Rule(_WORKERS, about=About.VTPM, platform=_ADMIN),
    "declare_dead": _ADMINS,
    "standing_add": Rule(_WORKERS),  # the order, by the group's authority, decides
    "standings": Rule(frozenset(Role), changes=False),
    "release": Rule(_ADMIN, about=About.VTPM),
    "snapshots": Rule(frozenset(Role), changes=False, about=About.VTPM),
    "snapshots_keep": Rule(_ADMIN, about=About.VTPM),
    "snapshot_drop": _OPERATORS,
    "revert": Rule(_ADMIN, about=About.VTPM),
    "groups": _ANYBODY,
    "group_add": _ADMINS,
    "group_remove": _ADMINS,
    "operator_add": _ENROLLING,
    "operator_remove": _ENROLLING,
    "operators": Rule(frozenset(Role), changes=False, about=About.GROUP, platform=frozenset(Role)),
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


def about(verb: str) -> About:
    """What a request for this verb is about."""
    return RULES[verb].about if verb in RULES else About.PLATFORM


def choose(verb: str, owner: str | None, operators: Sequence[Operator]) -> Operator:
    """Who of ``operators`` (one key, whom it is enrolled as) may ask for this; EvidenceError if none of them.

    ``owner``: the group that it is about, "" = the platform, None = it is about nothing that exists.
    """
    rule = RULES.get(verb, _ADMINS)
    owner = operators[0].group if owner is None else owner
    own = [each for each in operators if each.group == owner]
    platform = [each for each in operators if owner and not each.group and each.role in rule.platform]
    for each in [*own, *platform]:
        if each in platform or each.role in rule.roles:
            return each
    if own:
        demand_role(verb, own[0].role)
    if not owner:
        first = operators[0]
        raise EvidenceError(f"{first.name!r} is an operator of group {first.group!r}: {verb!r} is not about that group")
    also = ", or an admin of the platform" if rule.platform == _ADMIN else ""
    raise EvidenceError(f"{verb!r} is about group {owner!r}: it takes an operator whom its authority enrolled{also}")


def demand_role(verb: str, role: Role) -> None:
    """EvidenceError where ``role`` does not reach as far as ``verb``."""
    roles = RULES[verb].roles if verb in RULES else _ADMINS.roles
    if role not in roles:
        allowed = " or ".join(sorted(roles)) or "nobody any more"
        raise EvidenceError(f"the role {role} may not ask for {verb!r}: it takes {allowed}")
