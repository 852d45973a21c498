"""store/manifest: any crash leaves exactly one true manifest; nothing older and nothing changed is ever opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from manager_vm import crypto
from manager_vm.crypto import Key
from manager_vm.errors import IntegrityError, RollbackError, StoreError
from manager_vm.protocol.lifecycle import State
from manager_vm.store.manifest import Change, Manifest
from manager_vm.store.records import Contents, VtpmKeys, VtpmRecord
from tests.disks import Disk
from tests.fakes import FileAnchor

ROOT = Key(bytes(range(32)))
HOW = ("crash", "power")


def record(name: str) -> VtpmRecord:
    """A record; its uuid is its name."""
    return VtpmRecord(name, name, State.OFF, 1000, f"{name}.blob", bytes(32), {}, {})


def adding(name: str) -> Change:
    """The change that adds a vTPM."""
    return lambda contents: contents.with_vtpm(record(name), VtpmKeys(Key.random()))


def names(manifest: Manifest) -> list[str]:
    """Of all vTPMs."""
    return sorted(manifest.contents.vtpms)


def make(directory: Path) -> Manifest:
    """A new state disk."""
    return Manifest.create(directory, ROOT, FileAnchor(directory / "anchor"), Contents(1, b"certificate", b"ca key"))


def load(directory: Path) -> Manifest:
    """What a manager that starts now finds."""
    return Manifest.load(directory, ROOT, FileAnchor(directory / "anchor"))


def true_copies(directory: Path) -> list[str]:
    """The names of the files whose digest stands in the anchor."""
    digest = (directory / "anchor").read_bytes()[:32]
    return [path.name for path in directory.glob("manifest*") if crypto.digest(path.read_bytes()) == digest]


def steps_of_a_commit(directory: Path) -> int:
    """How often a commit changes something on the disk."""
    disk = Disk(directory)
    manifest = make(directory)
    with pytest.MonkeyPatch.context() as patch, disk.inserted(patch):
        manifest.commit(adding("counted"))
    return disk.steps


@pytest.fixture
def steps(tmp_path: Path) -> int:
    """The same, in a directory of its own."""
    (tmp_path / "count").mkdir()
    return steps_of_a_commit(tmp_path / "count")


# -- crashes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_a_crash_at_any_step_of_a_commit_leaves_exactly_one_true_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, how: str
) -> None:
    assert steps == 11  # create write fsync sync | create write fsync rename sync | rename sync
    outcomes = []
    for fatal in range(steps):
        directory = tmp_path / str(fatal)
        directory.mkdir()
        manifest = make(directory)
        manifest.commit(adding("old"))
        with Disk(directory, fatal, how).inserted(monkeypatch):
            manifest.commit(adding("new"))
        assert len(true_copies(directory)) == 1
        again = load(directory)
        outcomes.append(names(again))
        assert true_copies(directory) == ["manifest"]
        assert not (directory / "manifest.pending").exists()
        again.commit(adding("later"))
        assert names(load(directory)) == sorted([*outcomes[-1], "later"])
    before, after = ["old"], ["new", "old"]
    turn = outcomes.index(after)
    assert turn == {"crash": 8, "power": 9}[how]  # the rename or, without power, the sync of the anchor
    assert outcomes == [before] * turn + [after] * (steps - turn)


class NvAnchor:
    """Keeps its value elsewhere, as a hardware TPM does: it is there at once, whatever this disk has synced."""

    value = bytes(32), ROOT

    def read(self) -> tuple[bytes, Key]:
        return self.value

    def write(self, digest: bytes, secret: Key) -> None:
        self.value = digest, secret


@pytest.mark.parametrize("how", HOW)
def test_the_same_holds_for_an_anchor_that_is_not_on_this_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    for fatal in range(6):  # create write fsync sync | rename sync
        directory = tmp_path / str(fatal)
        directory.mkdir()
        manifest = Manifest.create(directory, ROOT, anchor := NvAnchor(), Contents(1, b"", b""))
        with Disk(directory, fatal, how).inserted(monkeypatch):
            manifest.commit(adding("new"))
        assert names(Manifest.load(directory, ROOT, anchor)) == ([] if fatal < 4 else ["new"])


@pytest.mark.parametrize("how", HOW)
def test_a_crash_while_a_start_finishes_the_last_commit_leaves_it_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    for fatal in range(2):
        directory = tmp_path / str(fatal)
        directory.mkdir()
        manifest = make(directory)
        with Disk(directory, 9).inserted(monkeypatch):
            manifest.commit(adding("new"))
        assert true_copies(directory) == ["manifest.pending"]
        with Disk(directory, fatal, how).inserted(monkeypatch):
            load(directory)
        assert names(load(directory)) == ["new"]


def test_a_crash_while_the_first_manifest_is_made_never_leaves_a_false_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    for fatal in range(steps):
        directory = tmp_path / str(fatal)
        directory.mkdir()
        with Disk(directory, fatal, "power").inserted(monkeypatch):
            make(directory)
        if (directory / "anchor").exists():
            assert load(directory).contents.serial == 1
        else:
            with pytest.raises(RollbackError):
                load(directory)


# -- failures that are no crash -------------------------------------------------------------------------------


def test_a_disk_error_at_any_step_leaves_memory_and_disk_in_agreement_and_the_next_commit_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    failed = []
    for fatal in range(steps):
        directory = tmp_path / str(fatal)
        directory.mkdir()
        manifest = make(directory)
        with Disk(directory, fatal, "error").inserted(monkeypatch):
            try:
                manifest.commit(adding("new"))
            except StoreError:
                failed.append(fatal)
        expected = [] if fatal in failed else ["new"]
        assert names(manifest) == expected
        manifest.commit(adding("next"))
        assert names(manifest) == sorted([*expected, "next"]) == names(load(directory))
    assert failed == list(range(8))  # from the anchor's rename on, the anchor says that it happened


class UnreadableAnchor(FileAnchor):
    """Its next write happens, or not, and reports an error; until ``works`` nobody can read it."""

    works, takes = True, True

    def write(self, digest: bytes, secret: Key) -> None:
        if self.works or self.takes:
            super().write(digest, secret)
        if not self.works:
            raise StoreError("no answer from the anchor")

    def read(self) -> tuple[bytes, Key]:
        if not self.works:
            raise StoreError("no answer from the anchor")
        return super().read()


class Ended(BaseException):
    """The process has ended itself."""


@pytest.mark.parametrize("takes", [True, False])
def test_when_nobody_knows_what_the_anchor_holds_the_process_ends_and_the_next_start_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: bool
) -> None:
    def end(why: str) -> NoReturn:
        raise Ended(why)

    monkeypatch.setattr("manager_vm.store.manifest._end_process", end)
    anchor = UnreadableAnchor(tmp_path / "anchor")
    manifest = Manifest.create(tmp_path, ROOT, anchor, Contents(1, b"", b""))
    anchor.works, anchor.takes = False, takes
    with pytest.raises(Ended, match="only a new start can tell"):
        manifest.commit(adding("unknown"))
    assert true_copies(tmp_path) == (["manifest.pending"] if takes else ["manifest"])
    assert names(load(tmp_path)) == (["unknown"] if takes else [])


def test_what_is_read_back_from_the_anchor_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make(tmp_path)
    synced: list[int] = []
    fsync = os.fsync

    def noting(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noting)
    FileAnchor(tmp_path / "anchor").read()
    assert tmp_path.stat().st_ino in synced
    assert manifest.contents.serial == 1


# -- rollback and tampering -----------------------------------------------------------------------------------


def test_an_older_manifest_is_a_rollback(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    older = (tmp_path / "manifest").read_bytes()
    manifest.commit(adding("new"))
    (tmp_path / "manifest").write_bytes(older)
    with pytest.raises(RollbackError, match="older, or was changed"):
        load(tmp_path)


def test_an_older_manifest_as_pending_does_not_hide_the_true_one(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    older = (tmp_path / "manifest").read_bytes()
    manifest.commit(adding("new"))
    (tmp_path / "manifest.pending").write_bytes(older)
    assert names(load(tmp_path)) == ["new"]
    assert not (tmp_path / "manifest.pending").exists()


def test_a_missing_manifest_is_a_rollback(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "manifest").unlink()
    with pytest.raises(RollbackError, match="no manifest"):
        load(tmp_path)


@pytest.mark.parametrize("size", [None, 0, 63, 65])
def test_a_missing_or_damaged_anchor_is_a_rollback_and_never_made_anew(tmp_path: Path, size: int | None) -> None:
    make(tmp_path)
    anchor = tmp_path / "anchor"
    anchor.unlink()
    if size is not None:
        anchor.write_bytes(bytes(size))
    with pytest.raises((RollbackError, StoreError)) as caught:
        load(tmp_path)
    assert size == 65 or caught.type is RollbackError
    assert (anchor.read_bytes() if size is not None else anchor.exists()) == (
        bytes(size) if size is not None else False
    )


def test_any_changed_byte_is_a_rollback(tmp_path: Path) -> None:
    make(tmp_path).commit(adding("new"))
    good = (tmp_path / "manifest").read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        (tmp_path / "manifest").write_bytes(bytes(bad))
        with pytest.raises(RollbackError):
            load(tmp_path)


def test_any_changed_byte_that_the_anchor_would_vouch_for_fails_its_authentication(tmp_path: Path) -> None:
    make(tmp_path).commit(adding("new"))
    good = (tmp_path / "manifest").read_bytes()
    anchor = FileAnchor(tmp_path / "anchor")
    secret = anchor.read()[1]
    for bad in [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))] + [
        good[:-1],
        good[:11],
        b"",
    ]:
        (tmp_path / "manifest").write_bytes(bad)
        anchor.write(crypto.digest(bad), secret)
        with pytest.raises(IntegrityError):
            load(tmp_path)


def test_another_root_key_or_erase_secret_does_not_open_the_key_table(tmp_path: Path) -> None:
    make(tmp_path)
    anchor = FileAnchor(tmp_path / "anchor")
    digest, _ = anchor.read()
    with pytest.raises(IntegrityError, match="key table"):
        Manifest.load(tmp_path, Key(bytes(32)), anchor)
    anchor.write(digest, Key.random())
    with pytest.raises(IntegrityError, match="key table"):
        load(tmp_path)


def test_after_a_commit_the_key_table_of_an_older_copy_cannot_be_opened_any_more(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    older = (tmp_path / "manifest").read_bytes()
    manifest.commit(adding("new"))
    (tmp_path / "manifest").write_bytes(older)
    anchor = FileAnchor(tmp_path / "anchor")
    anchor.write(crypto.digest(older), anchor.read()[1])
    with pytest.raises(IntegrityError, match="key table"):
        load(tmp_path)
