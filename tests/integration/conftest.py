"""Fixtures: managers in short temporary directories, ended by process id, with a look at what they leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.integration.harness import Manager, processes, until


class Make(Protocol):
    """Makes one more manager in a directory of its own; not started yet."""

    def __call__(
        self, table: dict[str, Any] | None = None, prefix: tuple[str, ...] = (), *, fresh: bool = False
    ) -> Manager:
        """See ``Manager``. ``fresh``: nobody has provisioned it; otherwise it is a copy of one that was."""


@contextmanager
def short_directory() -> Iterator[Path]:
    """A short path (a UNIX socket's has 107 bytes) that swtpm's own uids can traverse."""
    path = Path(tempfile.mkdtemp(prefix="vt"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        _end_leftovers(path)
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def managed(directory: Path, table: dict[str, Any] | None, prefix: tuple[str, ...]) -> Iterator[Manager]:
    """The manager is stopped in order at the end, and must leave no process and no socket."""
    manager = Manager(directory, table, prefix)
    yield manager
    if manager.running:
        manager.stop()
        until(lambda: not processes(str(directory)), what=f"nothing is left running: {processes(str(directory))}")
        assert sorted(directory.rglob("*.sock")) == []
    until(lambda: not processes(str(directory)), what=f"nothing is left running: {processes(str(directory))}")


def _end_leftovers(directory: Path) -> None:
    """After a failed test: end what names our directory, so that the next test starts clean."""
    for pid in processes(str(directory)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    subprocess.run(["umount", "-q", str(directory / "m/state")], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def provisioned() -> Iterator[Path]:
    """The directory of a manager (``m``) that was provisioned once for all: that takes a second."""
    with short_directory() as directory:
        (directory / "m").mkdir(mode=0o711)
        manager = Manager(directory / "m").start()
        manager.stop()
        yield directory


def _copy(provisioned: Path, directory: Path) -> None:
    """State disk, hardware TPM and authority, for a manager in ``directory``."""
    for part in ("state", "hwtpm"):
        shutil.copytree(provisioned / "m" / part, directory / part)
    shutil.copytree(provisioned / "authority", directory.parent / "authority")


@pytest.fixture
def make(provisioned: Path) -> Iterator[Make]:
    """A factory of managers."""
    with ExitStack() as stack:

        def one(table: dict[str, Any] | None = None, prefix: tuple[str, ...] = (), *, fresh: bool = False) -> Manager:
            directory = stack.enter_context(short_directory()) / "m"  # its authority stands beside it
            directory.mkdir(mode=0o711)
            manager = stack.enter_context(managed(directory, table, prefix))
            if not fresh and not prefix and not {"authority_dir", "swtpm"} & (table or {}).keys():
                manager.prepare = lambda: _copy(provisioned, directory)
            return manager

        yield one


@pytest.fixture
def manager(make: Make) -> Manager:
    """A running ``dev`` manager without vTPMs."""
    if os.geteuid() != 0:
        pytest.fail("run as root: each swtpm has a uid and a network namespace of its own")
    return make().start()


@pytest.fixture
def full() -> Iterator[Callable[[Manager], Path]]:
    """Fills a manager's state disk, which is a small one of its own from then on. What it gives is in the way."""
    used: list[Manager] = []

    def fill_up(manager: Manager) -> Path:
        manager.stop()
        kept = manager.directory / "kept"
        manager.state.rename(kept)
        manager.state.mkdir(mode=0o711)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=711", "vtpm-test", str(manager.state)], check=True)
        used.append(manager)
        shutil.copytree(kept, manager.state, dirs_exist_ok=True)
        manager.start()
        filler = manager.state / "filler"
        free = os.statvfs(manager.state)
        filler.write_bytes(bytes(free.f_bavail * free.f_frsize))
        return filler

    yield fill_up
    for manager in used:
        if manager.running:
            manager.stop()
        subprocess.run(["umount", str(manager.state)], check=True)
