"""Markers of the whole suite, and how two processes share it: one has all VMs, the other everything else first."""

from __future__ import annotations

from pathlib import Path

import pytest

_SYSTEM = Path(__file__).parent / "system"


def pytest_configure(config: pytest.Config) -> None:
    """``-m 'not full'`` is the core suite."""
    config.addinivalue_line("markers", "full: runs with './build.sh test full' only: large, slow, or one of many alike")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``-n 2 --dist loadgroup`` the VMs take their turns in one process: each alone needs most of a core."""
    for item in items:
        if _SYSTEM in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("vms"))
