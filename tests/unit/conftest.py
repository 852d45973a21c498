"""Property tests: no time limit per example (a busy machine is no defect), no files left behind."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None, database=None)
settings.load_profile("unit")
