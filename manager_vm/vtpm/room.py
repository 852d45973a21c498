"""Room on the state disk: what is begun must not fail half way because the disk is full."""

from __future__ import annotations

from pathlib import Path

from manager_vm.store import atomic

_MINIMUM = 4 << 20  # bytes below which nothing new is created
_EACH = 64 << 10  # and for each vTPM: blob, run, records
_COMMIT_EACH = 8 << 10  # of a manifest for each vTPM, old and new copy


def for_new(directory: Path, vtpms: int) -> None:
    """StoreError where one more vTPM beside so many would leave too little."""
    atomic.demand_space(directory, _MINIMUM + (vtpms + 1) * _EACH)


def for_commit(directory: Path, vtpms: int) -> None:
    """StoreError where a commit about so many vTPMs might not fit: nothing that is stored would count."""
    atomic.demand_space(directory, vtpms * _COMMIT_EACH)
