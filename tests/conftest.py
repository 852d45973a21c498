"""Markers of the whole suite."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """``-m 'not full'`` is the core suite."""
    config.addinivalue_line("markers", "full: runs with './build.sh test full' only: large, slow, or one of many alike")
