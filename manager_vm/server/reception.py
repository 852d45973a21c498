"""The admin link of a manager that cannot serve yet: it says why, and takes what it waits for.

That is its first authority (``Provisioning``), or its recovery on another hardware TPM (``Recovering``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from manager_vm.errors import ConfigError, UnsealError
from manager_vm.server.verbs import VERSION
from manager_vm.trust import rules
from manager_vm.wire.admin import Request, SignedRequest

SERVED = ("status", "provision", "recover_offer", "recover")


@dataclass(frozen=True, slots=True)
class Order:
    """``authority``: SubjectPublicKeyInfo (DER). ``operators``, ``approvals``: its statements, one of each at least.

    ``recovery``: its statement about the recovery recipient, b"" = none.
    """

    authority: bytes
    operators: list[bytes]
    approvals: list[bytes]
    recovery: bytes = b""


@dataclass(frozen=True, slots=True)
class Offer:
    """What can be recovered here. ``manager``: its id. ``old``, ``new``: Names of the SRKs of the TPMs, then and now.

    ``serial``: of the newest manifest. ``stanza``: the keys, wrapped to the recipient whom ``statement`` names.
    ``key``: SubjectPublicKeyInfo (DER) of the key that this start of the manager takes the store key with.
    """

    manager: str
    old: bytes
    new: bytes
    serial: int
    statement: bytes
    stanza: bytes
    key: bytes


Recover = Callable[[bytes, Sequence[bytes], bytes], None]  # order, approvals, what was handed over


class Reception:
    """``done`` is set when what it waits for has come. Thread-safe; one request at a time changes anything."""

    def __init__(self, why: str, warnings: Sequence[str], told: Mapping[str, Any]) -> None:
        self.done = threading.Event()
        self._status = {
            "version": VERSION,
            "manager": "",
            "authority": "",
            "started": time.time(),
            "vtpms": {},
            "memory_kib": 0,
            "warnings": [*warnings, why],
            **told,
        }
        self._turn = threading.Lock()

    def perform(self, message: Request | SignedRequest) -> Any:
        """The result of a request."""
        if isinstance(message, Request):
            if message.verb == "status":
                return self._status
            if message.verb in self.verbs:
                with self._turn:
                    return self.verbs[message.verb](message.args)
        self.refuse("anything that is signed" if isinstance(message, SignedRequest) else message.verb)

    @property
    def verbs(self) -> Mapping[str, Callable[[dict[str, Any]], Any]]:
        """What it serves besides status."""
        raise NotImplementedError

    def refuse(self, verb: str) -> NoReturn:
        """Say why nothing else is served."""
        raise NotImplementedError


class Provisioning(Reception):
    """Of a manager that has no authority yet. ``provision`` is called once at a time."""

    def __init__(self, provision: Callable[[Order], None], warnings: Sequence[str]) -> None:
        super().__init__("this manager is not provisioned; it holds no vTPM and makes none", warnings, {})
        self._provision = provision

    @property
    def verbs(self) -> Mapping[str, Callable[[dict[str, Any]], Any]]:
        """The first authority."""
        return {"provision": self._take}

    def refuse(self, verb: str) -> NoReturn:
        """ConfigError: provision first."""
        rules.refuse_before_provisioning(verb)

    def _take(self, args: dict[str, Any]) -> None:
        authority, operators, approvals = (args.get(name) for name in ("authority", "operators", "approvals"))
        recovery = args.get("recovery", b"")
        if not isinstance(authority, bytes) or not _are_statements(operators) or not _are_statements(approvals):
            raise ConfigError(
                "provision needs the authority's public key (DER), the enrolment of an admin, and the approval of this "
                "image; see 'vtpmctl provision --help'"
            )
        if not isinstance(recovery, bytes):
            raise ConfigError("recovery is no statement of the authority")
        self._provision(Order(authority, list(operators or ()), list(approvals or ()), recovery))
        self.done.set()


class Recovering(Reception):
    """Of a manager whose root key is sealed to another hardware TPM, and wrapped to a recovery recipient."""

    def __init__(self, offer: Offer, why: str, recover: Recover, warnings: Sequence[str]) -> None:
        told = {"manager": offer.manager, "from": offer.old.hex(), "to": offer.new.hex(), "serial": offer.serial}
        super().__init__(why, warnings, {"manager": offer.manager, "recovery": told})
        self._offer = offer
        self._why = why
        self._recover = recover

    @property
    def verbs(self) -> Mapping[str, Callable[[dict[str, Any]], Any]]:
        """What the recovery key's holder needs, and what he brings."""
        return {"recover_offer": self._show, "recover": self._take}

    def refuse(self, verb: str) -> NoReturn:
        """UnsealError: nothing but a recovery leads on."""
        raise UnsealError(f"{verb!r} is not served, only 'status' and 'recover': {self._why}")

    def _show(self, args: dict[str, Any]) -> dict[str, Any]:
        offer = self._offer
        names = {"manager": offer.manager, "from": offer.old, "to": offer.new, "serial": offer.serial}
        return {**names, "statement": offer.statement, "stanza": offer.stanza, "key": offer.key}

    def _take(self, args: dict[str, Any]) -> None:
        order, approvals, handover = args.get("order"), args.get("approvals") or [], args.get("handover")
        if (
            not isinstance(order, bytes)
            or not isinstance(handover, bytes)
            or not (approvals == [] or _are_statements(approvals))
        ):
            raise ConfigError("recover needs the authority's order and the store key; see 'vtpmctl recover --help'")
        self._recover(order, list(approvals), handover)
        self.done.set()


def _are_statements(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, bytes) for each in value)
