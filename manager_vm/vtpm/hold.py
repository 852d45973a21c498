"""All vTPMs held at once: nothing executes and nothing changes while the manager itself moves."""

from __future__ import annotations

from contextlib import ExitStack

from manager_vm.vtpm.registry import Registry
from manager_vm.wire.channel import Reason


def all_of(registry: Registry, patience: float) -> ExitStack:
    """Hold every vTPM until the result is closed; BusyError if one executes a command for over ``patience`` seconds."""
    with ExitStack() as held:
        for vtpm in registry.all():
            held.enter_context(vtpm.changing(Reason.QUIESCED, patience))
        return held.pop_all()
