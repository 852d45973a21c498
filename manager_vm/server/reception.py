"""The admin link of a manager that nobody has provisioned yet: it says so, and takes its first authority."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from manager_vm.errors import ConfigError
from manager_vm.server.verbs import VERSION
from manager_vm.trust import rules
from manager_vm.wire.admin import Request, SignedRequest

SERVED = ("status", "provision")


@dataclass(frozen=True, slots=True)
class Order:
    """``authority``: SubjectPublicKeyInfo (DER). ``operators``, ``approvals``: its statements, one of each at least."""

    authority: bytes
    operators: list[bytes]
    approvals: list[bytes]


class Reception:
    """``provision`` is called once at a time; ``done`` is set when it has succeeded."""

    def __init__(self, provision: Callable[[Order], None], warnings: list[str]) -> None:
        self.done = threading.Event()
        self._provision = provision
        self._warnings = warnings
        self._started = time.time()
        self._turn = threading.Lock()

    def perform(self, message: Request | SignedRequest) -> Any:
        """The result of a request."""
        if isinstance(message, SignedRequest) or message.verb not in SERVED:
            verb = "anything that is signed" if isinstance(message, SignedRequest) else message.verb
            rules.demand_provisioned(verb, provisioned=False)
        elif message.verb == "provision":
            return self._take(message.args)
        return {
            "version": VERSION,
            "manager": "",
            "authority": "",
            "started": self._started,
            "vtpms": {},
            "memory_kib": 0,
            "warnings": [*self._warnings, "this manager is not provisioned; it holds no vTPM and makes none"],
        }

    def _take(self, args: dict[str, Any]) -> None:
        authority, operators, approvals = (args.get(name) for name in ("authority", "operators", "approvals"))
        if not isinstance(authority, bytes) or not _are_statements(operators) or not _are_statements(approvals):
            raise ConfigError(
                "provision needs the authority's public key (DER), the enrolment of an admin, and the approval of this "
                "image; see 'vtpmctl provision --help'"
            )
        with self._turn:
            self._provision(Order(authority, list(operators or ()), list(approvals or ())))
            self.done.set()


def _are_statements(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, bytes) for each in value)
