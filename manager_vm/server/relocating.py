"""The host link's verbs about a move of the whole manager, and a manager that has left and waits (RELOCATION.md, 5)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

from manager_vm.errors import ConfigError, RemoteProtocolError, StateError
from manager_vm.protocol.lifecycle import State
from manager_vm.protocol.relocation import Leaving
from manager_vm.server import relocate_rules as rules
from manager_vm.server.reception import Reception
from manager_vm.server.relocate_in import Receiver
from manager_vm.server.relocate_out import Traveller
from manager_vm.server.wiring import Wiring
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import Contents
from manager_vm.trust.relocation import Said
from manager_vm.trust.signing import VerifyKey
from manager_vm.vtpm import hold
from manager_vm.vtpm.registry import Registry
from manager_vm.wire.admin import Request, SignedRequest

Result = dict[str, Any]
_PATIENCE = 30.0  # seconds for what executes
_READING = ("status", "list", "network")


class Relocating:
    """Both sides. Thread-safe: one request at a time. ``receiver``: None for a manager that only waits for a word."""

    def __init__(self, manifest: Manifest, traveller: Traveller, receiver: Receiver | None) -> None:
        self._manifest = manifest
        self._traveller = traveller
        self._receiver = receiver
        self._turn = threading.Lock()

    @property
    def alive(self) -> bool:
        """False once another copy of this manager is the one: this process must end."""
        return not self._traveller.wiped

    def host_link(self, others: Callable[[Request], Any]) -> Callable[[Request | SignedRequest], Any]:
        """Who answers on the host link: these verbs, and ``others`` all other requests."""

        def perform(request: Request | SignedRequest) -> Any:
            if isinstance(request, SignedRequest):
                raise RemoteProtocolError("the host link takes no signed requests: they go over the admin link")
            if request.verb not in VERBS:
                rules.demand_serving(self._manifest.contents, request.verb, changes=request.verb not in _READING)
                return others(request)
            with self._turn:
                return VERBS[request.verb](self, request.args)

        return perform

    def status(self, args: Result) -> Result:
        """Where this manager is in a move of its own, or of another one to here."""
        return rules.told(self._manifest.contents, settled=self._traveller.settled)

    def agree(self, args: Result) -> Result:
        """Agree with the receiver at ``to`` by ``order``. ``tunnel``: the key of the streams between both hosts."""
        ordered, to = args.get("order"), args.get("to")
        if not isinstance(ordered, bytes) or not isinstance(to, str):
            raise ConfigError("name an order of the authority, and the receiver's address")
        move, key = self._traveller.begin(ordered, to)
        return {**self.status({}), "move": move, "tunnel": key.reveal()}

    def tunnel(self, args: Result) -> Result:
        """At the receiver: the same key for its host, once."""
        return {"tunnel": self._at_receiver().tunnel(str(args.get("move"))).reveal()}

    def freeze(self, args: Result) -> Result:
        """The point of no return. ``park``: end all processes of vTPMs in order, for a new start from the disk."""
        self._traveller.freeze(park=args.get("park") is True)
        return self.status({})

    def hand_over(self, args: Result) -> Result:
        """Have the receiver claim for this manager's disk, and give this platform up."""
        said = self._traveller.hand_over()
        self._traveller.settle(said)
        return self.status({})

    def claim(self, args: Result) -> Result:
        """Woken up in memory: be the manager here. Nothing that can wait: guests do."""
        self._traveller.claim()
        return self.status({})

    def claimed(self, args: Result) -> Result:
        """The word for the source, also again."""
        return _word(self._traveller.claimed())

    def settle(self, args: Result) -> Result:
        """At the source: the destination's word CLAIMED."""
        attested, signature = args.get("attested"), args.get("signature")
        if not isinstance(attested, bytes) or not isinstance(signature, bytes):
            raise ConfigError("name the destination's word: 'attested' and 'signature'")
        self._traveller.settle(Said(attested, signature))
        return self.status({})

    def abort(self, args: Result) -> Result:
        """Stay, or come back: at the source. At a receiver: give its place up."""
        departure, expected = self._traveller.departure, self._manifest.contents.expected
        if departure is None and expected is not None:
            self._at_receiver().release()
        elif departure is not None and departure.state is Leaving.LEFT:
            self._traveller.take_back()
        else:
            self._traveller.give_up()
        return self.status({})

    def _at_receiver(self) -> Receiver:
        if self._receiver is None:
            raise StateError("this manager is no receiver")
        return self._receiver


VERBS: Mapping[str, Callable[[Relocating, Result], Any]] = {
    "relocation": Relocating.status,
    "relocate": Relocating.agree,
    "relocate_tunnel": Relocating.tunnel,
    "relocate_freeze": Relocating.freeze,
    "relocate_hand_over": Relocating.hand_over,
    "relocate_claim": Relocating.claim,
    "relocate_claimed": Relocating.claimed,
    "relocate_settle": Relocating.settle,
    "relocate_abort": Relocating.abort,
}


class Departed(Reception):
    """Of a manager that has started where it came from: it waits for a word of the destination."""

    def __init__(self, contents: Contents, warnings: Sequence[str], done: threading.Event) -> None:
        peer = contents.departure.peer if contents.departure else ""
        self.why = f"this manager has left for platform {peer}; it waits for that platform's word"
        authority = VerifyKey.from_der(contents.authority).id
        told = {"manager": contents.manager, "authority": authority, "relocation": rules.told(contents)}
        super().__init__(self.why, warnings, told)
        self.done = done

    @property
    def verbs(self) -> Mapping[str, Callable[[dict[str, Any]], Any]]:
        """None: what leads on comes over the host link."""
        return {}

    def refuse(self, verb: str) -> NoReturn:
        """StateError."""
        raise StateError(f"{verb!r} is not served: {self.why}")


@dataclass(frozen=True, slots=True)
class Serving:
    """What ``Traveller`` stops and starts in a manager that serves. ``restarted``: guests must be wired again.

    ``log_is``: takes the event log of another platform. ``held``: what keeps the vTPMs still; closed at the end.
    """

    registry: Registry
    wiring: Wiring
    restarted: Callable[[], None]
    log_is: Callable[[bytes], None]
    held: ExitStack

    def stop(self, *, park: bool) -> None:
        """Channels stay open where processes stay: both go on at the destination as they are."""
        if park:
            self.wiring.close()
            self.registry.park_all()
            if running := [each.name for each in self.registry.all() if each.state is State.RUNNING]:
                raise StateError(f"vTPM {running[0]!r} could not be parked; the manager's log says why")
        self.held.enter_context(hold.all_of(self.registry, _PATIENCE))
        self.wiring.hold()

    def go_on(self, log: bytes | None = None) -> None:
        """All vTPMs, with the channels that they have; where they have none any more the host side wires them."""
        self.held.close()
        self.registry.resume()
        self.wiring.reopen()
        self.wiring.release()
        if log is not None:
            self.log_is(log)
        self.restarted()


@dataclass(slots=True)
class Idle:
    """What ``Traveller`` stops and starts, for a manager that has nothing running: ``done`` when it may serve."""

    done: threading.Event

    def stop(self, *, park: bool) -> None:
        """Nothing runs."""

    def go_on(self, log: bytes | None = None) -> None:
        """It was taken back."""
        self.done.set()


def _word(said: Said) -> Result:
    return {"attested": said.attested, "signature": said.signature}
