"""The verbs of the admin link and of the host link: argument checks, one call, a plain dict back.

Tables at the end: which verb is served on which link. Operators' requests never wire a guest or report a
reset; the host link never creates or destroys.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from manager_vm import net
from manager_vm.config import Config
from manager_vm.errors import ConfigError, RemoteProtocolError, UnknownVtpmError, VtpmManagerError
from manager_vm.net import Cards
from manager_vm.server import recovery, relocate_rules
from manager_vm.server.attestor import Attestor
from manager_vm.server.wiring import Wiring
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import VtpmRecord
from manager_vm.trust.group import DEFAULT
from manager_vm.trust.signing import VerifyKey
from manager_vm.vtpm import binding, boots, properties
from manager_vm.vtpm.registry import Registry
from manager_vm.vtpm.steps import Loss
from manager_vm.wire.admin import Request, SignedRequest
from manager_vm.wire.channel import Reason

VERSION = "0.1.0"

Verb = Callable[["Verbs", dict[str, Any]], Any]


class Verbs:
    """What both tables work on. ``warnings``: what the operator should know of this machine."""

    def __init__(
        self,
        manifest: Manifest,
        registry: Registry,
        wiring: Wiring,
        attestor: Attestor,
        config: Config,
        warnings: list[str],
        migration: Callable[[], str],
        cards: Cards,
    ) -> None:
        self._manifest = manifest
        self._registry = registry
        self._wiring = wiring
        self._attestor = attestor
        self._config = config
        self._warnings = warnings
        self._migration = migration
        self._cards = cards
        self.restarted()

    def restarted(self) -> None:
        """``status`` says so: whoever wires guests does it again."""
        self._started = time.time()

    def perform(self, table: dict[str, Verb], request: Request | SignedRequest) -> Any:
        """The result of a request that may be made; a VtpmManagerError says why there is none."""
        if isinstance(request, SignedRequest):
            raise RemoteProtocolError("the host link takes no signed requests: they go over the admin link")
        verb = table.get(request.verb)
        if verb is None:
            raise RemoteProtocolError(
                f"this link does not serve {request.verb!r}; it serves {', '.join(sorted(table))}"
            )
        return verb(self, request.args)

    def status(self, args: dict[str, Any]) -> dict[str, Any]:
        """Version, start time (s since 1970), how many vTPMs in which state, memory in KiB, warnings.

        ``manager``: the id that signed requests name. ``authority``: id of the key that enrols operators, or "".
        ``recovered``: the recoveries of this manager. ``migration``: where others reach it for moves, "" = nowhere.
        """
        contents = self._manifest.contents
        states = Counter(str(vtpm.state) for vtpm in self._registry.all())
        return {
            "version": VERSION,
            "manager": contents.manager,
            "authority": VerifyKey.from_der(contents.authority).id if contents.authority else "",
            "started": self._started,
            "vtpms": dict(states),
            "memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "warnings": self._warnings,
            "recovered": [recovery.marked(each) for each in contents.recovered],
            "migration": self._migration(),
            "relocation": relocate_rules.told(contents),
        }

    def list(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """Every vTPM, in short."""
        found = []
        for vtpm in self._registry.all():
            with suppress(UnknownVtpmError):  # destroyed meanwhile
                found.append(self._brief(self._registry.record(vtpm.name)))
        return found

    def show(self, args: dict[str, Any]) -> dict[str, Any]:
        """One vTPM, with its EK names (hex) and process."""
        return self._full(self._registry.record(_name(args)))

    def create(self, args: dict[str, Any]) -> dict[str, Any]:
        """A new vTPM, in a group; ``vm``: for this VM alone."""
        return self._full(self._registry.create(_name(args), _group(args) or DEFAULT, _vm(args)))

    def bind(self, args: dict[str, Any]) -> dict[str, Any]:
        """A vTPM belongs to this ``vm`` from now on, "" or "none": to any."""
        vm, vtpm = _vm(args), self._registry.get(_name(args), _group(args))
        with vtpm.changing(Reason.QUIESCED, self._config.command_deadline):
            self._manifest.commit(lambda contents: binding.bound(contents, vtpm.uuid, vm))
        return self._full(self._registry.record(vtpm.name))

    def start(self, args: dict[str, Any]) -> dict[str, Any]:
        """Resume a parked vTPM, or power it on. A manager that is its own host side names the new boot itself."""
        name, power_on = _name(args), _get(args, "power_on", bool, False)
        record = self._registry.start(name, power_on=power_on, group=_group(args))
        if power_on and record.channel and self._config.own_host:
            record = self._registry.report_boot(name, record.boot)
        return self._full(record)

    def stop(self, args: dict[str, Any]) -> dict[str, Any]:
        """Park a vTPM."""
        return self._full(self._registry.stop(_name(args), _group(args)))

    def destroy(self, args: dict[str, Any]) -> None:
        """Remove a vTPM for ever."""
        self._registry.destroy(_name(args), _group(args))

    def release(self, args: dict[str, Any]) -> dict[str, Any]:
        """Lead a vTPM out of quarantine; ``discard``: "run" or "state" is accepted as lost."""
        try:
            loss = Loss(_get(args, "discard", str, ""))
        except ValueError:
            raise ConfigError("only 'run' or 'state' can be discarded") from None
        return self._full(self._registry.release(_name(args), loss, _group(args)))

    def ek_cert(self, args: dict[str, Any]) -> dict[str, Any]:
        """The EK certificates by key kind, and that of the CA of the vTPM's group (DER)."""
        record = self._registry.record(_name(args))
        ca = self._manifest.contents.issuer(record)
        return {"certificates": record.certificates, "ca": ca}

    def info(self, args: dict[str, Any]) -> dict[str, Any]:
        """What the running vTPM says of itself (TPM2_GetCapability)."""
        vtpm = self._registry.get(_name(args))
        with vtpm.changing(Reason.QUIESCED, self._config.command_deadline):
            return properties.read(vtpm)

    def quote(self, args: dict[str, Any]) -> bytes:
        """Evidence (EVIDENCE.md) that this vTPM is on this platform, for ``nonce``."""
        return self._attestor.platform(_name(args), _get(args, "nonce", bytes, b""), _group(args))

    def attach(self, args: dict[str, Any]) -> dict[str, Any]:
        """Wire a vTPM to a channel and name the running boot (none given: power on what is off, else the newest).

        ``vm``: UUID of the VM at the channel's other end.
        """
        name, boot = _name(args), _get(args, "boot", int, None)
        channel = _get(args, "channel", str, None) or self._wiring.default_channel(name)
        if boot is not None:
            boots.demand_number(boot)
            boots.demand_newest(self._registry.record(name), boot)  # before anything is opened or committed for it
        new = self._wiring.attach(name, channel, _vm(args))
        record = self._registry.record(name)
        try:
            self._registry.report_boot(name, record.boot or 1 if boot is None else boot)
        except VtpmManagerError:
            if new:
                self._wiring.detach(name)
            raise
        return self._full(self._registry.record(name))

    def detach(self, args: dict[str, Any]) -> None:
        """Take a vTPM off its channel."""
        self._wiring.detach(_name(args))

    def boot(self, args: dict[str, Any]) -> dict[str, Any]:
        """A VM was reset or powered on: its boot number."""
        number = _get(args, "number", int, None)
        if number is None:
            raise ConfigError("boot needs the number of the VM's boot")
        return self._brief(self._registry.report_boot(_name(args), number))

    def network(self, args: dict[str, Any]) -> dict[str, Any]:
        """A network card of the VM has exactly these addresses, and this gateway."""
        if self._config.own_host:
            raise ConfigError("this manager is a process of its host and has that host's network")
        return {**set_up_card(self._cards, args), "migration": self._migration()}

    def _brief(self, record: VtpmRecord) -> dict[str, Any]:
        vtpm = self._registry.get(record.name)
        return {
            "name": record.name,
            "uuid": record.uuid,
            "group": record.group,
            "state": str(vtpm.state),
            "channel": record.channel,
            "boot": record.boot,
            "generation": record.generation,
            "vm": record.vm,
            "ticket": bool(record.ticket),
            "live": vtpm.live,
            "reason": record.reason,
        }

    def _full(self, record: VtpmRecord) -> dict[str, Any]:
        vtpm = self._registry.get(record.name)
        run = vtpm.run
        return self._brief(record) | {
            "open": self._wiring.open_on(record.name),
            "boot_named": vtpm.boot_named,
            "last_seq": vtpm.channel.last_seq,
            "uid": record.uid,
            "pid": run.pid if run is not None else None,
            "released": record.released,
            "keep": record.keep,
            "reverted": record.reverted,
            "recovered": [recovery.marked(each) for each in record.recovered],
            "ek_names": {kind: name.hex() for kind, name in record.ek_names.items()},
        }


def set_up_card(cards: Cards, args: dict[str, Any]) -> dict[str, Any]:
    """What ``network`` does to the card that it names: the addresses of all cards."""
    mac, addresses = _get(args, "mac", str, ""), _get(args, "addresses", list, [])
    if not all(isinstance(each, str) for each in addresses):
        raise ConfigError("addresses are texts, as in 10.0.0.7/24")
    cards.set_up(net.parse(mac, addresses, _get(args, "gateway", str, "")))
    return {"addresses": cards.addresses}


def _name(args: dict[str, Any]) -> str:
    name = _get(args, "name", str, None)
    if not name:
        raise ConfigError("name a vTPM")
    return str(name)


def _vm(args: dict[str, Any]) -> str:
    return binding.parse(_get(args, "vm", str, ""))


def _group(args: dict[str, Any]) -> str | None:
    """The group that the request is about; for a signed one the desk has looked who may say so."""
    group: str | None = _get(args, "group", str, None)
    return group


def _get(args: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = args.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"argument {key!r} must be of type {kind.__name__}")
    return value


ADMIN: dict[str, Verb] = {
    "status": Verbs.status,
    "list": Verbs.list,
    "show": Verbs.show,
    "create": Verbs.create,
    "bind": Verbs.bind,
    "start": Verbs.start,
    "stop": Verbs.stop,
    "destroy": Verbs.destroy,
    "release": Verbs.release,
    "info": Verbs.info,
    "ek_cert": Verbs.ek_cert,
    "quote": Verbs.quote,
}

HOST: dict[str, Verb] = {
    "status": Verbs.status,
    "list": Verbs.list,
    "attach": Verbs.attach,
    "detach": Verbs.detach,
    "boot": Verbs.boot,
    "network": Verbs.network,
}
