"""Operators' signed requests: one operator asks one manager for one thing, once, soon. Pure: no clock, no randomness.

Signed is PAE = "DSSEv1" SP len(type) SP type SP len(signed) SP signed, where ``signed`` are the very bytes that the
manager parses and executes (``wire.admin.Statement``): manager, nonce, verb, arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from manager_vm.errors import EvidenceError, RemoteProtocolError
from manager_vm.trust import rules
from manager_vm.trust.operator import Operator
from manager_vm.trust.signing import SigningKey
from manager_vm.wire import admin

NONCE_SIZE = 32  # bytes
LIFETIME = 60.0  # seconds from a challenge to the request that carries it
MAX_NONCES = 1024
Owner = Callable[[str, dict[str, Any]], str | None]  # (verb, arguments) -> the group that this is about (rules.choose)
_TYPE = b"application/vnd.vtpm-manager.request+msgpack"


class Nonces:
    """The challenges that a manager has given. ``now``: seconds of a clock that is never set back. Not thread-safe.

    The newest ``MAX_NONCES`` are remembered, used or not: who asks for that many at once invalidates others' requests,
    which then ask again.
    """

    def __init__(self) -> None:
        self._open: dict[bytes, float | None] = {}  # nonce -> when it expires, None once used; oldest first

    def give(self, nonce: bytes, now: float) -> None:
        """``nonce`` (random) may be used once within ``LIFETIME``."""
        while len(self._open) >= MAX_NONCES:
            del self._open[next(iter(self._open))]
        self._open[nonce] = now + LIFETIME

    def take(self, nonce: bytes, now: float) -> None:
        """Use it up; EvidenceError that says why it cannot be."""
        if nonce not in self._open:
            raise EvidenceError("this request answers no challenge of this manager since its start: ask again")
        expires, self._open[nonce] = self._open[nonce], None
        if expires is None:
            raise EvidenceError("this request was made before: it is a replay, and was not performed again")
        if now > expires:
            raise EvidenceError(f"this request is older than {LIFETIME:.0f} s: its challenge has expired; ask again")


@dataclass(frozen=True, slots=True)
class Authorised:
    """``operator`` may ask for ``verb`` with ``args``, and does so now. Made by ``verify`` only."""

    operator: Operator
    verb: str
    args: dict[str, Any]


def sign(id_: int, key: SigningKey, challenge: Any, verb: str, args: dict[str, Any]) -> admin.SignedRequest:
    """The request for ``verb`` that answers a manager's ``challenge`` ({nonce, manager})."""
    match challenge:
        case {"nonce": bytes(nonce), "manager": str(manager)} if len(nonce) == NONCE_SIZE:
            signed = admin.pack_statement(admin.Statement(manager, nonce, verb, args))
            return admin.SignedRequest(id_, key.public.id, key.sign(_pae(signed)), signed)
    raise RemoteProtocolError("the manager's challenge is none; do both sides have the same version?")


def verify(
    request: admin.SignedRequest,
    operators: Sequence[Operator],
    manager: str,
    nonces: Nonces,
    now: float,
    owner: Owner = lambda verb, args: "",
) -> Authorised:
    """What one of ``operators`` asks of ``manager``, its nonce used up; EvidenceError otherwise.

    ``operators``: whom the request's key is enrolled as, one at least. The order matters: nobody but the operator can
    use up a nonce, and nothing is parsed that nobody has signed.
    """
    operator = operators[0]
    operator.key.verify(request.signature, _pae(request.signed), f"this request in the name of {operator.name!r}")
    statement = admin.unpack_statement(request.signed)
    if statement.manager != manager:
        raise EvidenceError(
            f"this request was signed for manager {statement.manager[:16]!r}, and this is {manager[:16]!r}"
        )
    nonces.take(statement.nonce, now)
    chosen = rules.choose(statement.verb, owner(statement.verb, statement.args), operators)
    return Authorised(chosen, statement.verb, statement.args)


def _pae(signed: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(_TYPE), _TYPE, len(signed), signed)
