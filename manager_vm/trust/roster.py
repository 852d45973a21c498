"""Who is enrolled at a manager: the authority's newest statement about each key. Pure functions of those statements.

A name has one enrolment, that with the highest serial. A removal stays, so a removed key never comes back. There is
always an admin of the platform left: without one nobody could enrol anybody. A group needs none: a platform's admin
may hand in what the group's authority has signed, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import envelope, operator
from manager_vm.trust.operator import Operator, Role
from manager_vm.trust.signing import VerifyKey

MAX_STATEMENTS = 1000
_NOT_ENROLLED = "key {key} is not enrolled at this manager; an admin adds it with 'operator add'"
Statements = Mapping[str, bytes]  # key id -> the newest statement about that key: enrolment or removal


@dataclass(frozen=True, slots=True)
class Domain:
    """Whom one authority has enrolled. ``group``: what it is the authority of, "" = the platform."""

    group: str
    authority: bytes
    statements: Statements


def find_all(key: str, domains: Iterable[Domain]) -> list[Operator]:
    """Whom this key is enrolled as, by the platform and by groups; EvidenceError if by nobody (any more)."""
    found, refusal = [], EvidenceError(_NOT_ENROLLED.format(key=key[:16]))
    for domain in domains:
        try:
            found.append(replace(find(key, domain.authority, domain.statements), group=domain.group))
        except EvidenceError as error:
            refusal = error
    if not found:
        raise refusal
    return found


def find(key: str, authority: bytes, statements: Statements) -> Operator:
    """The operator with this key; EvidenceError if there is none (any more)."""
    data = statements.get(key)
    if data is None:
        raise EvidenceError(_NOT_ENROLLED.format(key=key[:16]))
    if is_removal(data):
        raise EvidenceError(f"the operator with key {key[:16]} was removed; a new enrolment needs a new key")
    return operator.verify(data, VerifyKey.from_der(authority))


def operators(authority: bytes, statements: Statements) -> list[Operator]:
    """Everybody who is enrolled, by name."""
    key = VerifyKey.from_der(authority)
    found = [operator.verify(data, key) for data in statements.values() if not is_removal(data)]
    return sorted(found, key=lambda each: each.name)


def enrol(
    enrolments: Iterable[bytes], authority: bytes, statements: Statements, *, need_admin: bool = True
) -> dict[str, bytes]:
    """The statements with these; EvidenceError if one is older than what is known, or not the authority's."""
    new = dict(statements)
    for data in enrolments:
        new = _with(data, authority, new)
    return _checked(new, authority, need_admin)


def remove(data: bytes, authority: bytes, statements: Statements, *, need_admin: bool = True) -> dict[str, bytes]:
    """The statements with this removal, which holds for ever."""
    key = operator.verify_removal(data, VerifyKey.from_der(authority))
    known = statements.get(key)
    if known is not None and is_removal(known):
        return dict(statements)
    return _checked({**statements, key: data}, authority, need_admin)


def is_removal(data: bytes) -> bool:
    """Whether a statement is a removal."""
    try:
        envelope.peek(operator.OPERATOR_REMOVAL, data)
    except EvidenceError:
        return False
    return True


def _with(data: bytes, authority: bytes, statements: dict[str, bytes]) -> dict[str, bytes]:
    new = operator.verify(data, VerifyKey.from_der(authority))
    known = statements.get(new.key.id)
    if known == data:
        return statements
    if known is not None and is_removal(known):
        find(new.key.id, authority, statements)  # says that it was removed
    others = operators(authority, statements)
    for old in others:
        if old.name == new.name and old.serial >= new.serial:
            raise EvidenceError(
                f"this enrolment of {new.name!r} has serial {new.serial}, one with {old.serial} is known: it is older"
            )
        if old.key.id == new.key.id and old.name != new.name:
            raise EvidenceError(f"the key of this enrolment is enrolled as {old.name!r} already; a person has one key")
    superseded = {old.key.id for old in others if old.name == new.name}
    return {key: value for key, value in statements.items() if key not in superseded} | {new.key.id: data}


def _checked(statements: dict[str, bytes], authority: bytes, need_admin: bool) -> dict[str, bytes]:
    if len(statements) > MAX_STATEMENTS:
        raise ConfigError(f"a manager keeps at most {MAX_STATEMENTS} statements about operators")
    if need_admin and not any(each.role is Role.ADMIN for each in operators(authority, statements)):
        raise ConfigError("no admin would be left, and nobody could ever enrol one; add another admin first")
    return statements
