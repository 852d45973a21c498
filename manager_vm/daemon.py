"""The daemon: open the store, start the tasks, wait, end them in reverse order. No logic of its own."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from manager_vm import boot, provision, recover, systemd
from manager_vm.config import Config
from manager_vm.errors import LocalProtocolError, VtpmManagerError
from manager_vm.keys import identity
from manager_vm.net import Cards
from manager_vm.protocol.lifecycle import State
from manager_vm.server.attestor import Attestor
from manager_vm.server.certify import Certifier
from manager_vm.server.desk import Desk
from manager_vm.server.following import Following
from manager_vm.server.guest_gate import Gates
from manager_vm.server.guest_tunnel import Tunnels
from manager_vm.server.links import Perform, open_link
from manager_vm.server.moving import Moving
from manager_vm.server.reception import Provisioning, Reception, Recovering
from manager_vm.server.relocate_in import Receiver
from manager_vm.server.relocate_out import Traveller
from manager_vm.server.relocating import Departed, Idle, Relocating, Serving
from manager_vm.server.snapshots import Snapshots
from manager_vm.server.verbs import HOST, Verbs, set_up_card
from manager_vm.server.wanted import Wanted
from manager_vm.server.watch import Watch
from manager_vm.server.wiring import Wiring
from manager_vm.vchan import address
from manager_vm.vchan.lanes import Lanes
from manager_vm.vtpm.registry import Registry
from manager_vm.wire.admin import Request, SignedRequest

log = logging.getLogger(__name__)

_LOOK = 0.5  # seconds between looks at the tasks
_GRACE = 20.0  # seconds for commands that execute when the manager stops; well below TimeoutStopSec


def run(config: Config, *, announce: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then park every vTPM. ``announce``: print READY when serving."""
    with _signals() as stop, ExitStack() as tasks:
        ground = boot.Ground(config)
        tasks.callback(ground.close)
        if not _provisioned(ground, stop):
            return
        store = boot.open_store(ground)
        if boot.has_left(store) and not _returned(ground, store, stop):
            return
        watched = _started(ground, store, tasks)
        _ready(announce)
        _wait(stop, watched)
        log.info("stopping: every vTPM is parked")
        systemd.notify("STOPPING=1")


def _started(ground: boot.Ground, store: boot.Store, tasks: ExitStack) -> tuple[_Task, ...]:
    """Start everything that serves, to be ended by ``tasks`` in reverse order: what must not end by itself."""
    config = ground.config
    opened = boot.open_manager(ground, store)
    registry, manifest = opened.registry, store.manifest
    _enrol(ground, store)
    tasks.callback(_log_errors, opened.journal.close)
    tasks.callback(_log_errors, registry.shut_down)
    held = tasks.enter_context(ExitStack())  # of a manager that has left: nothing is parked any more, so nothing waits
    watch = Watch(registry)
    tasks.callback(watch.close)
    attestor = Attestor(manifest, registry, store.voucher)
    tasks.callback(attestor.close)
    own_channels = config.run_dir / "channels" if config.own_host else None
    lanes, wanted = _lanes(config, tasks), Wanted()
    wiring = Wiring(registry, config.command_deadline, attestor, own_channels, lanes, wanted.ask)
    tasks.callback(wiring.close)
    if config.own_host:
        wiring.reopen()
        _name_running_boots(opened.registry)
    cards = Cards()
    receiver = Receiver(store.local, store.own, ground.event_log)
    tunnels = Tunnels(store.local, registry)
    gates = Gates(registry, wiring)
    moving = _moving(config, store, opened, wiring, cards, receiver, tunnels, gates)
    tasks.callback(moving.close)
    verbs = Verbs(manifest, registry, wiring, attestor, config, ground.warnings, lambda: moving.address, cards)
    serving = Serving(registry, wiring, verbs.restarted, store.voucher.log_is, held)
    relocating = Relocating(manifest, Traveller(store.local, store.own, config.state_dir, serving), receiver)
    following = _following(Following(store.local, registry, moving), wanted, tasks)
    asked = _host_side(verbs, following, tunnels, gates, relocating)
    host_link = open_link(config.host_link, _guarded(asked))
    tasks.callback(host_link.close)
    certifier = Certifier(manifest, registry, store.hardware, config.command_deadline)
    snapshots = Snapshots(manifest, registry, opened.disk)
    desk = Desk(manifest, store.images, opened.journal, verbs, store.enrolment, certifier, moving, snapshots)
    admin_link = open_link(config.admin, _guarded(desk.perform))
    tasks.callback(admin_link.close)
    tasks.callback(moving.interrupt)
    tasks.callback(wiring.hasten, _GRACE)  # the first thing at every end
    return watch, moving, relocating, host_link, admin_link, *([lanes] if lanes is not None else [])


def _following(following: Following, wanted: Wanted, tasks: ExitStack) -> Following:
    wanted.serve(following.concerns, following.wanted)
    tasks.callback(wanted.close)
    return following


def _host_side(
    verbs: Verbs, following: Following, tunnels: Tunnels, gates: Gates, relocating: Relocating
) -> Callable[[Request | SignedRequest], object]:
    """Who answers on the host link: each asks the next for what is not its own."""
    asked = following.host_link(lambda request: verbs.perform(HOST, request))
    return relocating.host_link(gates.host_link(tunnels.host_link(asked)))


def _lanes(config: Config, tasks: ExitStack) -> Lanes | None:
    if not config.shims:
        return None
    carrier = address.parse(config.shims)
    lanes = Lanes(lambda: address.serve(carrier), f"shims' carrier {config.shims}")
    tasks.callback(lanes.close)
    return lanes


def _provisioned(ground: boot.Ground, stop: int) -> bool:
    """Wait until this manager has a root key that this platform can open; False if it was stopped before."""
    config, tpm = ground.config, ground.tpm
    if provision.is_done(config.state_dir, tpm):
        waiting = recover.find(config.state_dir, tpm)
        if waiting is None:
            return True
        log.error("%s", waiting.why)
        return _received(config, Recovering(waiting.offer, waiting.why, waiting.perform, ground.warnings), stop)
    if config.authority_dir is not None:
        provision.perform(config.state_dir, tpm, provision.by_local_authority(tpm, config.authority_dir))
        return True
    log.warning("this manager has no authority yet: it serves 'status' and 'provision' only")
    provisioning = Provisioning(lambda order: provision.perform(config.state_dir, tpm, order), ground.warnings)
    return _received(config, provisioning, stop)


def _returned(ground: boot.Ground, store: boot.Store, stop: int) -> bool:
    """Wait until a manager that has left is taken back; False if it was stopped before."""
    config, contents = ground.config, store.manifest.contents
    idle = Idle(threading.Event())
    reception = Departed(contents, ground.warnings, idle.done)
    cards = Cards()

    def others(request: Request) -> object:
        """The other platform must be reached."""
        return set_up_card(cards, request.args) if request.verb == "network" else reception.perform(request)

    log.error("%s", reception.why)
    relocating = Relocating(store.manifest, Traveller(store.local, store.own, config.state_dir, idle), None)
    host = open_link(config.host_link, _guarded(relocating.host_link(others)))
    try:
        return _received(config, reception, stop, relocating, host)
    finally:
        host.close()


def _received(config: Config, reception: Reception, stop: int, *watched: _Task) -> bool:
    """Wait until the reception has what it waits for; False if the manager was stopped before."""
    link = open_link(config.admin, _guarded(reception.perform))
    try:
        _ready(announce=False)
        while not reception.done.is_set():
            if select.select([stop], [], [], _LOOK)[0]:
                return False
            if not all(each.alive for each in (link, *watched)):
                raise LocalProtocolError("a link has ended by itself, or this copy must; the log above says why")
    finally:
        link.close()
    return True


def _moving(
    config: Config,
    store: boot.Store,
    opened: boot.Opened,
    wiring: Wiring,
    cards: Cards,
    receiver: Receiver,
    tunnels: Tunnels,
    gates: Gates,
) -> Moving:
    def arrived(name: str) -> None:
        if config.own_host:  # as its own host side it wires what comes, and says which boot runs
            try:
                wiring.attach(name, wiring.default_channel(name))
                opened.registry.report_boot(name, opened.registry.record(name).boot)
            except VtpmManagerError as error:
                log.warning("vTPM %s has come and is not wired: %s", name, error)

    known = config, store.local, opened.registry, opened.transit
    return Moving(*known, wiring, arrived, cards, receiver.offered, tunnels, gates)


def _enrol(ground: boot.Ground, store: boot.Store) -> None:
    """By the authority of this machine, if it is ours; a stand-in that cannot be enrolled is good for all the rest."""
    directory, vendor = ground.config.authority_dir, ground.vendor_ca
    if directory is None or vendor is None or identity.is_enrolled(store.manifest.contents):
        return
    try:
        provision.enrol_by_local_authority(store.enrolment, directory, store.manifest.contents, vendor)
    except VtpmManagerError as error:
        log.warning("this platform is not enrolled: %s", error)


class _Task(Protocol):
    """What the daemon starts and must not outlive."""

    @property
    def alive(self) -> bool:
        """Whether it still does its work."""


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that becomes readable with SIGTERM and SIGINT, whichever thread of ours the kernel gives them to.

    The interpreter writes to it in the C handler itself: a handler in Python would run in the main thread only, and at
    a moment when that may hold the very lock that it waits with.
    """
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    try:
        yield readable
    finally:
        signal.set_wakeup_fd(-1)
        os.close(readable)
        os.close(writable)


def _wait(stop: int, tasks: tuple[_Task, ...]) -> None:
    """Until a signal; LocalProtocolError when a task has ended by itself: a supervisor starts the manager anew."""
    while not select.select([stop], [], [], _LOOK)[0]:
        if not all(task.alive for task in tasks):
            raise LocalProtocolError("a task of the manager has ended by itself; the log above says why")


def _name_running_boots(registry: Registry) -> None:
    """``dev`` is its own host side: its guests are processes of this host, which no restart of ours resets."""
    for vtpm in registry.all():
        record = registry.record(vtpm.name)
        if record.channel and record.state in (State.RUNNING, State.PARKED):
            try:
                registry.report_boot(vtpm.name, record.boot)
            except VtpmManagerError as error:
                log.error("%s", error)


def _guarded(perform: Perform) -> Perform:
    """A defect ends one request, never the link that all others come through."""

    def guarded(request: Request | SignedRequest) -> object:
        try:
            return perform(request)
        except VtpmManagerError:
            raise
        except Exception as error:
            log.exception("request %s", request.verb if isinstance(request, Request) else "(signed)")
            raise LocalProtocolError(f"a defect of the manager ended this request ({error!r}); see its log") from error

    return guarded


def _ready(announce: bool) -> None:
    systemd.notify("READY=1")
    log.info("READY")
    if announce:
        print("READY", flush=True)


def _log_errors(action: Callable[[], None]) -> None:
    """The last thing a daemon does must not hide why it ended."""
    try:
        action()
    except VtpmManagerError as error:
        log.error("%s", error)
