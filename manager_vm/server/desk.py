"""The admin link's desk: reading is for anybody, everything else for operators, by signed requests.

The rules are data in ``trust/rules``; here are the clock, the random numbers and the newest manifest that they need.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from manager_vm.errors import ConfigError, RemoteProtocolError, StateError, TrustError
from manager_vm.keys.approvals import Images
from manager_vm.keys.enrolment import Enrolment
from manager_vm.server import groups, provision, recovery, relocate_rules, standing
from manager_vm.server.certify import Certifier
from manager_vm.server.journal import Journal
from manager_vm.server.moving import Moving
from manager_vm.server.snapshots import Snapshots
from manager_vm.server.verbs import ADMIN, Verbs
from manager_vm.store.manifest import Manifest
from manager_vm.trust import request, roster, rules
from manager_vm.trust.group import DEFAULT
from manager_vm.trust.request import Authorised, Nonces
from manager_vm.trust.rules import About
from manager_vm.wire.admin import Request, SignedRequest

log = logging.getLogger(__name__)

_MAX_LINES = 400_000  # bytes of the audit log in one reply


class Desk:
    """Thread-safe."""

    def __init__(
        self,
        manifest: Manifest,
        images: Images,
        journal: Journal,
        verbs: Verbs,
        enrolment: Enrolment,
        certifier: Certifier,
        moving: Moving,
        snapshots: Snapshots,
    ) -> None:
        self._manifest = manifest
        self._images = images
        self._journal = journal
        self._verbs = verbs
        self._enrolment = enrolment
        self._certifier = certifier
        self._moving = moving
        self._snapshots = snapshots
        self._nonces = Nonces()
        self._lock = threading.Lock()  # of the nonces

    def perform(self, message: Request | SignedRequest) -> Any:
        """The result of a request of the admin link."""
        if isinstance(message, SignedRequest):
            return self._signed(message)
        rules.demand_unsigned(message.verb, provisioned=bool(self._manifest.contents.authority))
        return self._perform(message)

    def _signed(self, message: SignedRequest) -> Any:
        contents = self._manifest.contents
        rules.demand_provisioned("anything that is signed", provisioned=bool(contents.authority))
        try:
            found = self._authorise(message)
        except (TrustError, RemoteProtocolError) as error:
            log.warning("a signed request was refused: %s", error)
            if groups.domains(contents, message.key):  # of strangers there may be any number
                self._journal.refused(message.key, error)
            raise
        performed = Request(message.id, found.verb, found.args)
        if not rules.changes(found.verb):
            return self._perform(performed)
        log.info("operator %s: %s %s", found.operator.name, found.verb, found.args.get("name", ""))
        with self._journal.request(found.operator, found.verb, found.args):
            return self._perform(performed)

    def _authorise(self, message: SignedRequest) -> Authorised:
        contents = self._manifest.contents
        operators = roster.find_all(message.key, groups.domains(contents, message.key))
        with self._lock:
            found = request.verify(
                message,
                operators,
                contents.manager,
                self._nonces,
                time.monotonic(),
                lambda verb, args: groups.owner(contents, verb, args),
            )
        return _about(found, groups.owner(contents, found.verb, found.args))

    def _perform(self, message: Request) -> Any:
        relocate_rules.demand_serving(self._manifest.contents, message.verb, changes=rules.changes(message.verb))
        own = OWN.get(message.verb)
        return own(self, message.args) if own is not None else self._verbs.perform(ADMIN, message)

    # -- the desk's own verbs -------------------------------------------------------------------------------

    def challenge(self, args: dict[str, Any]) -> dict[str, Any]:
        """What the next signed request must name: this manager, and a nonce that serves once, soon."""
        nonce = os.urandom(request.NONCE_SIZE)
        with self._lock:
            self._nonces.give(nonce, time.monotonic())
        return {"nonce": nonce, "manager": self._manifest.contents.manager}

    def operator_add(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """Enrol an operator by a statement of the authority, or of a group's."""
        statement, group = _statement(args), _group(args)
        if group == DEFAULT:
            self._manifest.commit(lambda contents: provision.enrol(contents, statement))
        else:
            self._manifest.commit(lambda contents: groups.enrol(contents, group, statement))
        return self.operators(args)

    def operator_remove(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """Remove an operator by a statement of the authority, or of a group's."""
        statement, group = _statement(args), _group(args)
        if group == DEFAULT:
            self._manifest.commit(lambda contents: provision.remove(contents, statement))
        else:
            self._manifest.commit(lambda contents: groups.expel(contents, group, statement))
        return self.operators(args)

    def operators(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """Who is enrolled by the authority, or by a group's, by name."""
        contents, group = self._manifest.contents, _group(args)
        found = roster.operators(groups.authority(contents, group).der, contents.group(group).operators)
        return [{"name": x.name, "role": str(x.role), "serial": x.serial, "key": x.key.id} for x in found]

    def groups(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """All groups."""
        contents = self._manifest.contents
        rules.demand_provisioned("groups", provisioned=bool(contents.authority))
        return groups.table(contents)

    def group_add(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """Take a tenant's group by the authority's statement, and its first operators by its own authority's."""
        statement, enrolments = _statement(args), args.get("operators") or []
        if not isinstance(enrolments, list) or not all(isinstance(each, bytes) for each in enrolments):
            raise ConfigError("name the enrolments of the group's operators")
        return groups.table(self._manifest.commit(lambda contents: groups.add(contents, statement, enrolments)))

    def group_remove(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """Give up a group that has no vTPMs."""
        name = args.get("name")
        if not isinstance(name, str):
            raise ConfigError("name a group")
        return groups.table(self._manifest.commit(lambda contents: groups.remove(contents, name)))

    def standing_add(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """Take a standing order of a group's authority, or a newer one of the same VM."""
        statement = _statement(args)
        return standing.table(self._manifest.commit(lambda contents: standing.add(contents, statement)))

    def standings(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """Which VMs may take their vTPMs along, and where."""
        return standing.table(self._manifest.contents)

    def approve(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """Take the authority's approval of an image."""
        self._images.approve(_statement(args))
        return self._images.listed()

    def revoke(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """Set the authority's revocation in the TPM. ``force``: also where no approval would be left."""
        self._images.revoke(_statement(args), force=args.get("force") is True)
        return self._images.listed()

    def approvals(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """Which images may unseal here, and which not any more."""
        return self._images.listed()

    def platform_show(self, args: dict[str, Any]) -> dict[str, Any]:
        """Who this platform is, and how many signing keys it has."""
        return self._enrolment.show()

    def platform_evidence(self, args: dict[str, Any]) -> bytes:
        """For the authority: whose TPM and which AK; makes ``more`` signing keys (default: what the pool lacks)."""
        more = args.get("more")
        if more is not None and (not isinstance(more, int) or isinstance(more, bool)):
            raise ConfigError("name how many signing keys to make by a number")
        return self._enrolment.evidence(more)

    def platform_activate(self, args: dict[str, Any]) -> bytes:
        """The answer to a challenge of the authority."""
        return self._enrolment.activate(_statement(args))

    def platform_install(self, args: dict[str, Any]) -> dict[str, Any]:
        """Keep what the authority has issued for this platform."""
        self._enrolment.install(_statement(args))
        return self._enrolment.show()

    def certify(self, args: dict[str, Any]) -> dict[str, Any]:
        """What vouches for an AK of a vTPM."""
        return self._certifier.certify(args)

    def recovery(self, args: dict[str, Any]) -> dict[str, Any]:
        """To whom keys are wrapped, what was recovered."""
        return recovery.told(self._manifest.contents)

    def recovery_set(self, args: dict[str, Any]) -> dict[str, Any]:
        """Wrap keys to whom the authority's statement names."""
        statement = _statement(args)
        self._manifest.commit(lambda contents: recovery.set_recipient(contents, statement))
        return self.recovery({})

    def recovery_off(self, args: dict[str, Any]) -> dict[str, Any]:
        """Wrap keys to nobody any more."""
        self._manifest.commit(recovery.switch_off)
        return self.recovery({})

    def recover(self, args: dict[str, Any]) -> None:
        """Only for a manager that cannot unseal: StateError."""
        raise StateError("this manager has its root key from its own hardware TPM: there is nothing to recover")

    def audit(self, args: dict[str, Any]) -> dict[str, Any]:
        """Lines of the audit log behind number ``after`` (negative: from the end); how far it goes and is anchored."""
        after, audit = args.get("after", 0), self._journal.audit
        if not isinstance(after, int) or isinstance(after, bool):
            raise ConfigError("name the entry after which to begin by its number")
        anchored, head = self._manifest.contents.audit, audit.head
        lines = audit.read(max(head.count + after, 0) if after < 0 else after, _MAX_LINES)
        return {"lines": lines, "count": head.count, "anchored": anchored.count, "digest": anchored.digest}


def _about(found: Authorised, owner: str | None) -> Authorised:
    """With the group that was authorised, so that nothing is done to a vTPM of another group that took the name."""
    if rules.about(found.verb) is About.PLATFORM:
        return found
    group = "" if owner is None else owner or DEFAULT
    return Authorised(found.operator, found.verb, {**found.args, "group": group})


def _group(args: dict[str, Any]) -> str:
    return str(args.get("group") or DEFAULT)


def _statement(args: dict[str, Any]) -> bytes:
    statement = args.get("statement")
    if not isinstance(statement, bytes):
        raise ConfigError("name a statement of the authority")
    return statement


OWN: dict[str, Callable[[Desk, dict[str, Any]], Any]] = {
    "challenge": Desk.challenge,
    "operator_add": Desk.operator_add,
    "operator_remove": Desk.operator_remove,
    "operators": Desk.operators,
    "groups": Desk.groups,
    "group_add": Desk.group_add,
    "standing_add": Desk.standing_add,
    "standings": Desk.standings,
    "group_remove": Desk.group_remove,
    "approve": Desk.approve,
    "revoke": Desk.revoke,
    "approvals": Desk.approvals,
    "audit": Desk.audit,
    "certify": Desk.certify,
    "migrate": lambda desk, args: desk._moving.migrate(args),
    "migrations": lambda desk, args: desk._moving.listed(args),
    "receipt": lambda desk, args: desk._moving.receipt(args),
    "abort": lambda desk, args: desk._moving.abort(args),
    "declare_dead": lambda desk, args: desk._moving.declare_dead(args),
    "snapshots": lambda desk, args: desk._snapshots.listed(args),
    "snapshots_keep": lambda desk, args: desk._snapshots.keep(args),
    "snapshot_drop": lambda desk, args: desk._snapshots.drop(args),
    "revert": lambda desk, args: desk._snapshots.revert(args),
    "recovery": Desk.recovery,
    "recovery_set": Desk.recovery_set,
    "recovery_off": Desk.recovery_off,
    "recover_offer": Desk.recover,
    "recover": Desk.recover,
    "platform_show": Desk.platform_show,
    "platform_evidence": Desk.platform_evidence,
    "platform_activate": Desk.platform_activate,
    "platform_install": Desk.platform_install,
}
