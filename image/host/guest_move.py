"""The source host of a guest that moves together with its vTPM (R6), in named phases; ``guest_landing`` is the other.

The guest's memory goes while it runs. Then it stands still, its vTPM moves from manager to manager, the rest of the
memory follows, and the other host attaches the vTPM for the VM that has come. Post-condition of ``run``: the guest runs
there with its vTPM, nothing of either is here; or (an error) it runs here with its vTPM as before; or, and the error
says so, it stands still here: nowhere does it run without its vTPM, and never in two places.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from image.host.guest import Guest
from image.host.guest_landing import NOTICE
from image.host.host import Host
from image.host.links import Beside
from image.host.requests import Other
from image.host.streams import Streams
from image.host.transfer import HEARD, Outgoing
from image.host.wires import Carrier
from manager_vm.crypto import Key
from manager_vm.errors import HostError, VtpmManagerError
from manager_vm.protocol.tunnel import Suite

log = logging.getLogger(__name__)

_AGREE = 120.0  # seconds: both TPMs quote
_MOVE = 180.0  # seconds for the vTPM
_SETTLE = 60.0  # seconds for a move whose outcome is not known to be known
_LOOK = 0.2
_POLL = 0.02
_STAYED = ("aborted", "restored", "declared dead")  # states of a move at its source


@dataclass(slots=True)
class Report:
    """What a move took, in seconds. ``phases``: when each began.

    ``pause``: the guest could not use its TPM, and stood still for most of it.
    """

    pause: float = 0.0
    total: float = 0.0
    bytes_sent: int = 0
    phases: dict[str, float] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """For people and programs."""
        return asdict(self)


class GuestMove:
    """One move of guest ``name`` of ``host``, by ``order`` for its vTPM.

    ``receiver``: where the other manager listens, ``to``: the other host's tunnel. ``back``: makes an order for the way
    back, None where nobody is at hand who could.
    """

    def __init__(
        self,
        host: Host,
        name: str,
        receiver: str,
        to: tuple[str, int],
        order: bytes,
        *,
        back: Callable[[], bytes] | None = None,
        suite: Suite = Suite.AES,
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._host = host
        self._name = name
        self._receiver = receiver
        self._to = to
        self._order = order
        self._back = back
        self._suite = suite
        self._progress = progress
        self._tasks = ExitStack()
        self._control: Other | None = None
        self._sending = False
        self._stopped = 0.0
        self._vtpm: tuple[str, int]  # uuid, and the generation that it has there
        self._began = time.monotonic()
        self.report = Report()

    def run(self) -> Report:
        """Move; post-condition above."""
        with self._tasks:
            guest = self._movable()
            out = Outgoing(guest.vm)
            try:
                streams = self._prepare(guest)
                self._send_memory(out, streams)
                self._move_vtpm(guest, out)
            except VtpmManagerError as error:
                self._stay(guest, out, error)
                raise
            try:
                self._hand_over(guest, out)
            except VtpmManagerError as error:
                raise HostError(f"{error}; {self._fetch_back(guest, out)}") from error
            self.report.pause = time.monotonic() - self._stopped
            self._settle()
            self.report.bytes_sent = streams.sent
        self.report.total = time.monotonic() - self._began
        return self.report

    # -- phases -----------------------------------------------------------------------------------------------

    def _movable(self) -> Guest:
        """HostError with the reason for a guest that cannot move. Nothing was changed."""
        guest = self._host.guests.get(self._name)
        if guest is None or guest.wire is None:
            raise HostError(f"this host has no guest {self._name!r}")
        if guest.wire.carrier is not Carrier.VIRTIO_SERIAL:
            raise HostError(
                f"guest {self._name} has its channel over {guest.wire.carrier}: QEMU cannot move that device, and "
                "without it the guest's kernel would lose its TPM; wire it over virtio-serial"
            )
        if guest.held or not guest.vm.qmp.execute("query-status")["running"]:
            raise HostError(f"guest {self._name} does not run, or is held at its reset: try again when it does")
        found = [each for each in self._host.links.host("list") if each["name"] == self._name]
        if not found:
            raise HostError(f"the vTPM of guest {self._name} is not at this manager")
        self._vtpm = found[0]["uuid"], found[0]["generation"] + 1
        return guest

    def _prepare(self, guest: Guest) -> Streams:
        """A tunnel under a key of the two managers, a VM that waits there. After a failure: all as before."""
        self._phase("agree")
        links, directory = self._host.links, guest.vm.spec.directory
        agreed = links.host("guest_tunnel", timeout=_AGREE, name=self._name, order=self._order, to=self._receiver)
        self._phase("connect")
        streams = Streams(directory, self._to, Key(agreed["tunnel"]), self._suite, 0)
        self._tasks.enter_context(streams)
        self._control = streams.control()
        self._phase("prepare")
        self._ask("prepare", name=self._name, vm=guest.uuid)
        return streams

    def _send_memory(self, out: Outgoing, streams: Streams) -> None:
        """All once, while the guest runs. After a failure: it runs on here."""
        self._phase("memory")
        self._sending = True
        out.start(f"unix:{streams.entrance('ram')}")
        out.await_sent()

    def _move_vtpm(self, guest: Guest, out: Outgoing) -> None:
        """Both managers make ready, the guest is stopped, its vTPM moves. After a failure the vTPM is here.

        Where nobody knows: _UnknownError.
        """
        self._phase("vtpm")
        links = self._host.links
        moving = Beside(
            lambda: links.admin(
                "migrate", timeout=_MOVE, name=self._name, order=self._order, to=self._receiver, with_guest=True
            )
        )
        failure: VtpmManagerError | None = None
        try:
            self._stop(guest, out, moving)
        except VtpmManagerError as error:
            failure = error
            with suppress(VtpmManagerError):
                links.host("guest_stopped", name=self._name, stands=False)
        moving.join()
        if moving.error is not None and not self._has_left(moving.error):
            raise failure or moving.error

    def _stop(self, guest: Guest, out: Outgoing, moving: Beside) -> None:
        """When the vTPM can go: its channel is held, the guest stopped, and its manager told."""
        links = self._host.links
        while not links.host("guest_ready", name=self._name)["ready"]:
            if moving.over:
                return
            time.sleep(_POLL)
        self._phase("stop")
        links.host("guest_hold", name=self._name)
        time.sleep(HEARD)
        self._stopped = time.monotonic()
        out.stop()
        if guest.held:
            raise HostError(f"guest {self._name} is being reset: try again")
        links.host("guest_stopped", name=self._name)

    def _hand_over(self, guest: Guest, out: Outgoing) -> None:
        """The vTPM is there. After a failure: so it is still, and the guest stands still here."""
        self._phase("switch over")
        out.finish()
        self._phase("arrive")
        self._ask("arrive", boot=guest.boots.number)

    def _settle(self) -> None:
        """The guest is there, whatever becomes of what is left here."""
        self._phase("settle")
        try:
            self._host.remove_guest(self._name)
        except VtpmManagerError as error:
            log.error("guest %s is at the other host; what is left of it here: %s", self._name, error)

    # -- when it fails ------------------------------------------------------------------------------------------

    def _has_left(self, error: VtpmManagerError) -> bool:
        """Whether the vTPM moved although its request failed: waits until its move is over. _Unknown after a while."""
        deadline = time.monotonic() + _SETTLE
        while True:
            with suppress(VtpmManagerError):
                moves = self._host.links.admin("migrations")
                states = [each["state"] for each in moves if (each["vtpm"], each["generation"]) == self._vtpm]
                state = states[-1] if states else "aborted"
                if state == "done" or state in _STAYED:
                    return bool(state == "done")
            if time.monotonic() > deadline:
                raise _UnknownError(
                    f"{error}; guest {self._name} stands still here: 'migrations' shows where its vTPM comes to be. "
                    f"If here again, or after 'migrate' back: {_REMEDY}"
                )
            time.sleep(_LOOK)

    def _stay(self, guest: Guest, out: Outgoing, error: VtpmManagerError) -> None:
        """The vTPM is here: so is the guest."""
        if isinstance(error, _UnknownError):
            log.error("%s", error)
            return
        self._abort()
        if self._sending:
            out.cancel(resume=not guest.held)  # one that is held goes on by its acknowledged reset only
        log.warning("guest %s stays here: %s", self._name, error)

    def _fetch_back(self, guest: Guest, out: Outgoing) -> str:
        """The vTPM is at the other manager, its guest did not begin to run there: what became of them, in words."""
        if self._back is None:
            self._abort()
            return f"the guest stands still here, its vTPM is at the other manager: 'migrate' it back, then {_REMEDY}"
        try:
            here = self._host.links.admin("status")["migration"]
            self._ask("give_back", order=self._back(), to=here)
            go_on(self._host, guest, out)
        except VtpmManagerError as again:
            return f"and it is not known to be back ({again}): the guest stands still here; {_REMEDY} when it is"
        return "the guest runs here again, with its vTPM"

    def _abort(self) -> None:
        with suppress(VtpmManagerError):  # it gives up by itself when the tunnel ends
            self._ask("abort")

    def _ask(self, verb: str, **args: Any) -> None:
        if self._control is None:
            raise HostError("the other host was not reached")
        self._control.ask(verb, **args)

    def _phase(self, name: str) -> None:
        self.report.phases[name] = time.monotonic() - self._began
        self._progress(name)


class _UnknownError(HostError):
    """Where the vTPM is cannot be known now."""


_REMEDY = "'vtpmctl resume-guest'"


def go_on(host: Host, guest: Guest, out: Outgoing | None = None) -> None:
    """A guest that stands still after a move that failed, and whose vTPM is here (again), runs on with it.

    An error where the vTPM is not here, or is another VM's: the guest stands still then.
    """
    if guest.held:
        raise HostError(f"guest {guest.name} is held at its reset, and goes on when the manager has acknowledged that")
    host.links.host("attach", name=guest.name, channel=guest.channel, boot=guest.boots.number, vm=guest.vm.uuid)
    (out or Outgoing(guest.vm)).cancel()
    time.sleep(NOTICE)
    if guest.wire is not None:
        guest.wire.join(guest.vm)
