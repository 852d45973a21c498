"""Benchmarks: ``python -m tests.bench [NAME]``. They compare paths within one run and assert nothing about time."""
