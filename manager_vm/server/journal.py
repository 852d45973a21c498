"""The audit log of a running manager: what operators ask for, what was refused, and what every commit does.

A changing request has an entry that is durable before it is performed, and one with its outcome behind it. The head
of the log goes into each commit. What no commit follows is anchored with the 256th entry, and at a clean end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from manager_vm import crypto
from manager_vm.errors import IntegrityError, StateError, StoreError, VtpmManagerError
from manager_vm.protocol.limit import Limit
from manager_vm.store import events
from manager_vm.store.audit import AuditLog
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import AuditHead, Contents
from manager_vm.trust.operator import Operator

log = logging.getLogger(__name__)

_BEHIND = 256  # entries that may wait for the next commit
_MAX_TEXT = 300
_REFUSED = (20, 60.0)  # refused requests that are noted: so many at once, then one each so many seconds


def open_log(directory: Path, anchored: AuditHead, warnings: list[str]) -> AuditLog:
    """The audit log; one that is not what was anchored is put aside, reported, and begun anew behind the anchor."""
    try:
        return AuditLog.open(directory, anchored)
    except (IntegrityError, StoreError) as error:
        log.error("AUDIT LOG BROKEN: %s", error)
        warnings.append(f"{error}; what is left is in {directory}/audit.broken.1, a new chain says so")
        return AuditLog.restart(directory, anchored, str(error))


class Journal:
    """Thread-safe. From its making on each commit of ``manifest`` has its events and the head of ``audit``."""

    def __init__(self, audit: AuditLog, manifest: Manifest) -> None:
        self.audit = audit
        self._manifest = manifest
        self._limit = Limit(*_REFUSED)
        self._lock = threading.Lock()  # of the limit
        manifest.before_commit = self._stamp

    def start(self, version: str, *, broken: bool) -> None:
        """The manager has started: with how many entries that no manifest anchors, and what a crash has cut off.

        ``broken``: with a chain that had to begin anew; that is anchored at once.
        """
        contents = self._manifest.contents
        found = {"unanchored": self.audit.unanchored, "cut": self.audit.cut, "serial": contents.serial}
        authority = crypto.digest(contents.authority).hex()
        if not contents.audit.count and not self.audit.unanchored and not broken:
            self.note("provisioned", authority=authority, operators=sorted(contents.operators))
        self.note("manager started", version=version, authority=authority, **found)
        if broken:
            self._anchor()

    def close(self) -> None:
        """A clean end: every entry is anchored."""
        self.note("manager ended")
        self._anchor()
        self._manifest.before_commit = None
        self.audit.close()

    def note(self, event: str, **fields: Any) -> None:
        """An event of the manager itself: what is wrong with the log must not stop it."""
        try:
            self.audit.append((event, fields))
        except StoreError as error:
            log.error("the audit log lacks %r: %s", event, error)

    @contextmanager
    def request(self, operator: Operator, verb: str, args: dict[str, Any]) -> Iterator[None]:
        """Perform a changing request in this block; StoreError if it cannot be noted, and then it is not performed."""
        who = {"operator": operator.name, "key": operator.key.id, "verb": verb}
        if operator.group:
            who["group"] = operator.group
        number = self.audit.append(("request", {**who, "args": _plain(args)})).count
        outcome = "ended by a defect; see the manager's log"
        try:
            yield
            outcome = "ok"
        except VtpmManagerError as error:
            outcome = _error(error)
            raise
        finally:
            self.note("outcome", request=number, **who, outcome=outcome)
            if self.audit.head.count - self._manifest.contents.audit.count >= _BEHIND:
                self._anchor()

    def refused(self, key: str, error: VtpmManagerError) -> None:
        """A signed request in the name of a known key was refused. A flood of them is noted in part, and counted."""
        with self._lock:
            noted = self._limit.allows(time.monotonic())
            omitted = self._limit.omitted() if noted else 0
        if noted:
            self.note("refused", key=key, outcome=_error(error), omitted=omitted)

    def _stamp(self, old: Contents, new: Contents) -> Contents:
        found = events.between(old, new)
        if found:
            try:
                self.audit.append(*found)
            except StoreError as error:
                log.error("the audit log lacks %s: %s", ", ".join(event for event, _ in found), error)
        return replace(new, audit=self.audit.head)

    def _anchor(self) -> None:
        with suppress(StoreError, StateError):  # the next commit does it; a manager that has left has none
            self._manifest.commit(lambda contents: replace(contents, audit=self.audit.head))


def _error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_TEXT]


def _plain(args: dict[str, Any]) -> dict[str, Any]:
    """Arguments as they may stand in the log: short, no secret, bytes by their digest."""
    return {key[:_MAX_TEXT]: _short(value) for key, value in list(args.items())[:16]}


def _short(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return value[:_MAX_TEXT]
        case bytes():
            return f"sha256:{crypto.digest(value).hex()}"
    return repr(value)[:_MAX_TEXT]
