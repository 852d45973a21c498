"""A vTPM that moves together with its guest waits, just before it is quiesced, until the guest stands still.

So all that is slow (quotes, a process there) happens while the guest runs. Its channel is held before it stops: then no
command is lost on its way (CHANNEL.md, HOLD). The host link's verbs here are its host's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from manager_vm.errors import ConfigError, MigrationError, StateError
from manager_vm.server.wiring import Wiring
from manager_vm.vtpm.registry import Registry
from manager_vm.wire.admin import Request
from manager_vm.wire.channel import Reason
from manager_vm.wire.migration import Cause

_PATIENCE = 30.0  # seconds for the guest to stop: the destination waits a minute for the state
_COMMAND = 10.0  # seconds for the command that executes


class _Gate:
    """Of one move."""

    def __init__(self) -> None:
        self.reached = False
        self.told = threading.Event()
        self.stands = False

    def wait(self) -> None:
        """MigrationError (timeout, peer-lost) unless the host says that the guest stands still."""
        self.reached = True
        if not self.told.wait(_PATIENCE):
            raise MigrationError("the host does not say that the guest stands still", Cause.TIMEOUT.word)
        if not self.stands:
            raise MigrationError("the host has given up the move of the guest", Cause.PEER_LOST.word)


class Gates:
    """Thread-safe."""

    def __init__(self, registry: Registry, wiring: Wiring) -> None:
        self._registry = registry
        self._wiring = wiring
        self._gates: dict[str, _Gate] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[Callable[[], None]]:
        """What a move of this vTPM calls when it is ready. Afterwards its channel, where it has one, is not held."""
        gate = self._gates[name] = _Gate()
        try:
            yield gate.wait
        finally:
            self._gates.pop(name, None)
            self._wiring.release(name)

    def interrupt(self) -> None:
        """The manager stops: no move waits any more."""
        for gate in list(self._gates.values()):
            gate.told.set()

    def host_link(self, others: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Who answers on the host link: these verbs, and ``others`` all other requests."""
        verbs = {"guest_ready": self._ready, "guest_hold": self._hold, "guest_stopped": self._stopped}

        def perform(request: Request) -> Any:
            own = verbs.get(request.verb)
            return others(request) if own is None else own(request.args)

        return perform

    def _ready(self, args: dict[str, Any]) -> dict[str, Any]:
        """Whether a move of vTPM ``name`` waits for its guest to stand still."""
        gate = self._gates.get(_name(args))
        return {"ready": gate is not None and gate.reached}

    def _hold(self, args: dict[str, Any]) -> None:
        """No command of the guest is executed from now on, and its front end writes none."""
        name = _name(args)
        self._gate(name)
        self._wiring.hold(name)
        with self._registry.get(name).changing(Reason.HOLD, _COMMAND):
            pass  # the command that was executing is over

    def _stopped(self, args: dict[str, Any]) -> None:
        """The guest stands still; ``stands`` False: it does not, and the move is to be given up."""
        gate = self._gate(_name(args))
        gate.stands = args.get("stands") is not False
        gate.told.set()

    def _gate(self, name: str) -> _Gate:
        gate = self._gates.get(name)
        if gate is None or not gate.reached:
            raise StateError(f"no move of vTPM {name[:80]!r} waits for its guest")
        return gate


def _name(args: dict[str, Any]) -> str:
    name = args.get("name")
    if not isinstance(name, str):
        raise ConfigError("name a vTPM")
    return name
