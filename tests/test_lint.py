"""Linters and house rules run as tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("manager_vm", "guest_frontend", "image", "tests")
MODULE_LIMIT, FUNCTION_LIMIT = 300, 40


def run(*argv: str) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def product_modules() -> list[Path]:
    return [path for package in SOURCES[:3] for path in sorted((ROOT / package).rglob("*.py"))]


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache", *SOURCES)


def test_ruff_format_has_nothing_to_change() -> None:
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", *SOURCES)


def test_mypy_strict_finds_nothing() -> None:
    run(sys.executable, "-m", "mypy", *SOURCES)


def test_the_repository_holds_no_symbolic_links() -> None:
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line for line in listed.splitlines() if line.startswith("120000")] == []


def test_shellcheck_finds_nothing() -> None:
    scripts = [
        p
        for p in tracked()
        if p.read_bytes()[:64].split(b"\n")[0] in (b"#!/bin/sh", b"#!/usr/bin/env bash", b"#!/bin/bash")
    ]
    assert ROOT / "build.sh" in scripts
    run("shellcheck", *map(str, scripts))


@pytest.mark.parametrize("path", product_modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_and_its_functions_are_short_and_documented(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert source.count("\n") <= MODULE_LIMIT
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= FUNCTION_LIMIT, node.name


def test_no_file_names_a_registry_or_a_path_of_a_machine() -> None:
    hosts = [".".join(parts) for parts in (("deb", "debian", "org"), ("pypi", "org"), ("npmjs", "org"))]
    forbidden = re.compile("|".join(map(re.escape, [*hosts, "/" + "work/", "/" + "root/."])))
    found = [str(path) for path in tracked() if forbidden.search(path.read_text(errors="ignore"))]
    assert found == []
