"""Boot numbers: which ones may be reported of a vTPM's VM, and those that an operator makes (ARCHITECTURE.md, "Reset
semantics"). Pure functions of a record."""

from __future__ import annotations

from manager_vm.errors import ConfigError, StateError
from manager_vm.protocol.lifecycle import State
from manager_vm.store.records import VtpmRecord

_LIMIT = 1 << 62
_OPERATORS = 32  # bits: an operator's boots are this far apart


def demand_number(boot: int) -> None:
    """ConfigError for what is no boot number."""
    if not 0 < boot < _LIMIT:
        raise ConfigError(f"{boot} is no boot number; they begin at 1 and grow by one with each reset")


def demand_newest(record: VtpmRecord, boot: int) -> None:
    """StateError for the number of a boot that is over."""
    if boot < record.boot:
        raise StateError(f"boot {boot} of vTPM {record.name!r} is over: boot {record.boot} was applied already")


def demand_running(record: VtpmRecord, boot: int) -> None:
    """StateError unless ``boot`` is the newest boot applied, and has power."""
    demand_newest(record, boot)
    if record.state is State.OFF:
        raise StateError(f"vTPM {record.name!r} was switched off during boot {boot}; report a new boot of its VM")


def operators(boot: int) -> int:
    """The boot that an operator makes after ``boot``.

    Far above any number that the host's counter comes to by itself: an equal number must mean the same boot, or
    what a guest of the boot before has left in its channel would be executed in the next.
    """
    return ((boot >> _OPERATORS) + 1) << _OPERATORS
