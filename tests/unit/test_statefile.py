"""vtpm/statefile: every replacement of swtpm's state file is noticed, however fast they follow each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from manager_vm.vtpm.statefile import NAME, StateFile


def replace(directory: Path, content: bytes) -> None:
    """As swtpm writes: a temporary file, renamed."""
    (directory / "TMP2-00.permall").write_bytes(content)
    os.rename(directory / "TMP2-00.permall", directory / NAME)


def test_no_file_and_an_untouched_file_are_no_change(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    assert not file.changed()
    replace(tmp_path, b"1")
    assert file.changed()
    file.sync()
    assert not file.changed()
    file.close()


def test_a_file_that_is_missing_or_none_cannot_be_synced(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    with pytest.raises(FileNotFoundError):
        file.sync()
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(OSError):
        file.sync()
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).symlink_to("/etc/hostname")
    with pytest.raises(OSError):
        file.sync()
    file.close()


@pytest.mark.parametrize("times", [1, 2, 3])
def test_replacements_within_one_tick_of_the_clock_are_noticed(tmp_path: Path, times: int) -> None:
    file = StateFile(tmp_path)
    for round_ in range(200):
        for _ in range(times):
            replace(tmp_path, b"x")
        assert file.changed(), round_
        file.sync()
    file.close()


def test_the_file_seen_last_is_the_one_that_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StateFile(tmp_path)
    replace(tmp_path, b"1")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    file.sync()
    assert synced == [(tmp_path / NAME).stat().st_ino, tmp_path.stat().st_ino]


def test_closing_frees_the_descriptor_and_may_be_repeated(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    file = StateFile(tmp_path)
    replace(tmp_path, b"1")
    file.sync()
    file.close()
    file.close()
    assert len(os.listdir("/proc/self/fd")) == before
