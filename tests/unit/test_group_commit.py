"""store/manifest: changes that wait for each other share one write; what one of them does wrong stays its own."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from manager_vm.crypto import Key
from manager_vm.errors import BusyError, StoreError
from manager_vm.store.manifest import Change, Manifest
from manager_vm.store.records import Contents
from tests.fakes import FileAnchor
from tests.unit.test_manifest import ROOT, adding, names


class BusyAnchor(FileAnchor):
    """Counts its writes. While ``others`` are set, a write starts them and waits until all their changes are queued."""

    writes = 0
    others: tuple[threading.Thread, ...] = ()
    manifest: Manifest
    breaks_after: Path | None = None

    def write(self, digest: bytes, secret: Key) -> None:
        self.writes += 1
        others, self.others = self.others, ()
        for thread in others:
            thread.start()
        give_up = time.monotonic() + 10
        while others and len(self.manifest._queue) < len(others):
            assert time.monotonic() < give_up
        super().write(digest, secret)
        if others and self.breaks_after is not None:
            self.breaks_after.mkdir()  # where the next write wants its file


class Committer(threading.Thread):
    """Commits one change in a thread of its own and keeps what came of it."""

    def __init__(self, manifest: Manifest, change: Change) -> None:
        super().__init__(daemon=True)
        self._manifest, self._change = manifest, change
        self.contents: Contents | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.contents = self._manifest.commit(self._change)
        except (BusyError, StoreError, KeyError) as error:
            self.error = error


def start(directory: Path, *changes: Change) -> tuple[Manifest, BusyAnchor, list[Committer]]:
    """A manifest, and changes that come while its next commit is being written."""
    anchor = BusyAnchor(directory / "anchor")
    manifest = Manifest.create(directory, ROOT, anchor, Contents(1, b"", b""))
    anchor.manifest = manifest
    committers = [Committer(manifest, change) for change in changes]
    anchor.others = tuple(committers)
    return manifest, anchor, committers


def finish(committers: list[Committer]) -> None:
    """Nobody may wait for ever."""
    for thread in committers:
        thread.join(10)
        assert not thread.is_alive()


def refusing(contents: Contents) -> Contents:
    """A change that finds a reason against itself."""
    raise BusyError("the name is taken")


def defective(contents: Contents) -> Contents:
    """A change with a defect."""
    raise KeyError("no such record")


def test_changes_that_come_during_a_commit_share_the_next_anchor_write(tmp_path: Path) -> None:
    manifest, anchor, committers = start(tmp_path, *map(adding, "bcd"))
    manifest.commit(adding("a"))
    finish(committers)
    assert anchor.writes == 3  # create, "a", and one for the three others
    assert names(manifest) == list("abcd")
    assert manifest.contents.serial == 3
    for name, committer in zip("bcd", committers, strict=True):
        assert committer.contents is not None
        assert name in committer.contents.vtpms
    assert names(Manifest.load(tmp_path, ROOT, anchor)) == list("abcd")


def test_a_change_that_refuses_does_not_stop_the_others_of_its_group(tmp_path: Path) -> None:
    manifest, _, committers = start(tmp_path, adding("b"), refusing, adding("c"))
    manifest.commit(adding("a"))
    finish(committers)
    assert [type(committer.error) for committer in committers] == [type(None), BusyError, type(None)]
    assert names(manifest) == list("abc")


def test_a_failed_write_fails_every_change_of_its_group(tmp_path: Path) -> None:
    manifest, anchor, committers = start(tmp_path, adding("b"), adding("c"))
    anchor.breaks_after = tmp_path / "anchor.tmp"
    manifest.commit(adding("a"))
    finish(committers)
    assert [type(committer.error) for committer in committers] == [StoreError, StoreError]
    assert names(manifest) == ["a"]
    (tmp_path / "anchor.tmp").rmdir()
    manifest.commit(adding("d"))
    assert names(Manifest.load(tmp_path, ROOT, anchor)) == ["a", "d"]


def test_a_defective_change_leaves_nobody_waiting_and_the_manifest_usable(tmp_path: Path) -> None:
    manifest, anchor, committers = start(tmp_path, adding("b"), defective, adding("c"))
    manifest.commit(adding("a"))
    finish(committers)
    kinds = {type(committer.error) for committer in committers}
    assert KeyError in kinds
    assert all(committer.error is not None or committer.contents is not None for committer in committers)
    done = [committer.contents is not None for committer in committers]
    manifest.commit(adding("d"))
    expected = ["a", *(["b"] if done[0] else []), *(["c"] if done[2] else []), "d"]
    assert names(manifest) == expected == names(Manifest.load(tmp_path, ROOT, anchor))


def test_a_change_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    manifest, anchor, _ = start(tmp_path)
    before = (tmp_path / "manifest").read_bytes()
    assert manifest.commit(lambda contents: contents) is manifest.contents
    with pytest.raises(BusyError):
        manifest.commit(refusing)
    assert anchor.writes == 1
    assert (tmp_path / "manifest").read_bytes() == before


def test_every_commit_counts_and_draws_a_new_erase_secret(tmp_path: Path) -> None:
    manifest, anchor, _ = start(tmp_path)
    seen = [anchor.read()]
    for serial, name in enumerate("abc", 2):
        assert manifest.commit(adding(name)).serial == serial
        seen.append(anchor.read())
    assert len({secret.reveal() for _, secret in seen}) == len({digest for digest, _ in seen}) == 4
