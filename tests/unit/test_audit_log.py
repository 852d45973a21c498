"""store.audit: what was appended is there after any crash, what somebody does to the files is found at the start."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from manager_vm.errors import IntegrityError, StoreError
from manager_vm.store import audit
from manager_vm.store.audit import AuditLog
from manager_vm.store.records import AuditHead
from manager_vm.wire import audit as chain
from tests.disks import Disk


def opened(directory: Path, anchored: AuditHead | None = None) -> AuditLog:
    """The log in this directory."""
    return AuditLog.open(directory, anchored or AuditHead(), lambda: 1.0)


def filled(directory: Path, count: int = 6) -> list[AuditHead]:
    """The heads after each of ``count`` entries."""
    log = opened(directory)
    heads = [log.append(("event", {"number": number})) for number in range(1, count + 1)]
    log.close()
    return heads


def lines(directory: Path) -> list[bytes]:
    return (directory / "audit.log").read_bytes().splitlines()


def write(directory: Path, *content: bytes, end: bytes = b"\n") -> None:
    (directory / "audit.log").write_bytes(b"\n".join(content) + end)


def events(log: AuditLog) -> list[str]:
    """All events in it."""
    return [json.loads(line)["event"] for line in log.read(0, 1 << 30)]


# -- keeping ---------------------------------------------------------------------------------------------------


def test_entries_are_numbered_chained_and_there_again(tmp_path: Path) -> None:
    heads = filled(tmp_path, 3)
    again = opened(tmp_path, heads[2])
    assert (again.head, again.unanchored, again.cut) == (heads[2], 0, 0)
    assert again.append(("more", {}), ("and more", {})).count == 5
    assert events(again) == ["event"] * 3 + ["more", "and more"]
    assert chain.verify(lines(tmp_path), heads[2].digest).unanchored == 2
    assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600


def test_what_is_asked_for_begins_behind_a_number_and_has_a_limit(tmp_path: Path) -> None:
    filled(tmp_path, 6)
    log = opened(tmp_path)
    assert [json.loads(line)["n"] for line in log.read(4, 1 << 20)] == [5, 6]
    assert [json.loads(line)["n"] for line in log.read(2, 1)] == [3]
    assert log.read(6, 1) == log.read(100, 1) == []


def test_entries_behind_the_anchored_one_are_taken_up_and_counted(tmp_path: Path) -> None:
    heads = filled(tmp_path)
    for index, head in enumerate(heads):
        assert opened(tmp_path, head).unanchored == 5 - index
    assert opened(tmp_path).unanchored == 6


# -- tampering -------------------------------------------------------------------------------------------------


def test_a_log_that_is_missing_or_shorter_than_what_is_anchored_is_refused_by_name(tmp_path: Path) -> None:
    heads = filled(tmp_path)
    whole = lines(tmp_path)
    for count in range(6):
        write(tmp_path, *whole[:count], end=b"\n" if count else b"")
        with pytest.raises(IntegrityError, match=rf"ends with entry {count}, and entry 6 is anchored: it was cut"):
            opened(tmp_path, heads[5])
    (tmp_path / "audit.log").unlink()
    with pytest.raises(IntegrityError, match="ends with entry 0, and entry 6 is anchored"):
        opened(tmp_path, heads[5])


def test_any_changed_byte_before_the_anchored_entry_is_found(tmp_path: Path) -> None:
    heads = filled(tmp_path, 3)
    good = (tmp_path / "audit.log").read_bytes()
    for position in range(len(good)):
        (tmp_path / "audit.log").write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(IntegrityError):
            opened(tmp_path, heads[2])


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (0, 2), (1, 2), (0, 0, 1, 2), (0, 1)])
def test_reordered_removed_and_repeated_lines_are_found(tmp_path: Path, order: tuple[int, ...]) -> None:
    heads = filled(tmp_path, 3)
    whole = lines(tmp_path)
    write(tmp_path, *(whole[index] for index in order))
    with pytest.raises(IntegrityError):
        opened(tmp_path, heads[2])


def test_another_chain_of_the_same_length_is_not_the_anchored_one(tmp_path: Path) -> None:
    heads = filled(tmp_path, 3)
    (tmp_path / "audit.log").unlink()
    log = opened(tmp_path)
    for _ in range(3):
        log.append(("forged", {}))
    with pytest.raises(IntegrityError, match="entry 3 of the audit log is not the anchored one"):
        opened(tmp_path, heads[2])


def test_a_broken_chain_is_put_aside_and_a_new_one_is_linked_to_the_anchored_entry(tmp_path: Path) -> None:
    heads = filled(tmp_path)
    (tmp_path / "audit.log").write_bytes(b"forged\n")
    log = AuditLog.restart(tmp_path, heads[5], "because", lambda: 1.0)
    first = json.loads(log.read(0, 1 << 20)[0])
    assert (first["n"], first["event"], first["reason"]) == (7, chain.BROKEN, "because")
    assert first["prev"] == heads[5].digest.hex()
    assert (tmp_path / "audit.broken.1/audit.log").read_bytes() == b"forged\n"
    again = opened(tmp_path, log.head)
    assert again.append(("on", {})).count == 8
    chain.verify(lines(tmp_path), log.head.digest)


def test_only_so_many_broken_chains_are_kept(tmp_path: Path) -> None:
    head = filled(tmp_path)[5]
    for number in range(5):
        (tmp_path / "audit.log").write_bytes(b"forged %d\n" % number)
        head = AuditLog.restart(tmp_path, head, "", lambda: 1.0).head
    kept = {path.name: (path / "audit.log").read_bytes() for path in tmp_path.glob("audit.broken.*")}
    assert kept == {f"audit.broken.{age}": b"forged %d\n" % (5 - age) for age in (1, 2, 3)}


# -- crashes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchored", range(7))
def test_a_line_that_a_crash_has_cut_off_is_removed(tmp_path: Path, anchored: int) -> None:
    heads = [AuditHead(), *filled(tmp_path, 6)]
    whole = (tmp_path / "audit.log").read_bytes()
    last = len(lines(tmp_path)[5]) + 1
    for cut in range(1, last):
        (tmp_path / "audit.log").write_bytes(whole[:-cut])
        if anchored == 6:
            with pytest.raises(IntegrityError):
                opened(tmp_path, heads[6])
            continue
        log = opened(tmp_path, heads[anchored])
        assert (log.head, log.unanchored, log.cut) == (heads[5], 5 - anchored, last - cut)
        assert log.append(("next", {})).count == 6
        assert events(opened(tmp_path, heads[anchored]))[-1] == "next"


def test_an_unanchored_tail_ends_where_it_makes_no_sense_any_more(tmp_path: Path) -> None:
    heads = filled(tmp_path, 6)
    whole = lines(tmp_path)
    write(tmp_path, *whole[:4], bytes(len(whole[4])), whole[5])
    log = opened(tmp_path, heads[2])
    assert (log.head.count, log.unanchored) == (4, 1)
    assert log.cut == len(whole[4]) + len(whole[5]) + 2


@pytest.mark.parametrize("how", ["crash", "error"])
@pytest.mark.parametrize("fatal", range(4))
def test_after_any_failure_of_the_disk_the_chain_is_whole_and_what_was_confirmed_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, fatal: int
) -> None:
    confirmed = filled(tmp_path, 3)[2]
    log = opened(tmp_path, confirmed)
    disk = Disk(tmp_path, fatal, how)
    with disk.inserted(monkeypatch):
        for number in range(2):
            try:
                confirmed = log.append((f"new {number}", {}))
            except StoreError:
                assert how == "error"
    if how == "error":
        assert log.append(("after", {})).count == len(lines(tmp_path))
        confirmed = log.head
    again = opened(tmp_path, confirmed)
    again.append(("on", {}))
    chain.verify(lines(tmp_path), confirmed.digest)


def test_a_full_disk_refuses_the_entry_and_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = filled(tmp_path, 2)[1]
    log = opened(tmp_path, head)
    before = (tmp_path / "audit.log").read_bytes()
    real = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(28, "no space")
        return real(fd, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        for _ in range(3):
            with pytest.raises(StoreError, match="full"):
                log.append(("lost", {}))
    assert (tmp_path / "audit.log").read_bytes() == before
    assert log.append(("kept", {})).count == 3
    assert events(opened(tmp_path, head)) == ["event", "event", "kept"]


# -- rotation --------------------------------------------------------------------------------------------------


def rotated(directory: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> AuditLog:
    """A log of small files with at least ``count`` entries."""
    monkeypatch.setattr(audit, "MAX_SIZE", 1000)
    log = opened(directory)
    while log.head.count < count:
        log.append(("event", {"text": "x" * 50}))
    return log


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def oldest_first(directory: Path) -> list[bytes]:
    older = sorted(directory.glob("audit.log.*"), reverse=True)
    return [line for path in (*older, directory / "audit.log") for line in path.read_bytes().splitlines()]


def test_the_chain_goes_on_over_a_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = rotated(tmp_path, monkeypatch, 15)
    assert "audit.log.1" in names(tmp_path)
    assert chain.verify(oldest_first(tmp_path), log.head.digest).first == 1
    assert len(log.read(0, 1 << 20)) == log.head.count
    assert [json.loads(line)["n"] for line in log.read(7, 1 << 20)] == list(range(8, log.head.count + 1))


def test_the_log_does_not_grow_for_ever_and_says_what_it_has_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = rotated(tmp_path, monkeypatch, 200)
    assert names(tmp_path) == ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4 * 1300
    report = chain.verify(oldest_first(tmp_path), log.head.digest)
    assert report.first > 100 and report.unanchored == 0
    again = opened(tmp_path, log.head)
    assert again.append(("on", {})).count == log.head.count + 1


def test_an_old_file_that_somebody_removes_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (15, 30, 200):
        directory = tmp_path / str(count)
        directory.mkdir()
        head = rotated(directory, monkeypatch, count).head
        for path in directory.glob("audit.log.*"):
            data = path.read_bytes()
            path.unlink()
            with pytest.raises(IntegrityError):
                opened(directory, head)
            path.write_bytes(data)
        opened(directory, head)


@pytest.mark.parametrize("fatal", range(12))
@pytest.mark.parametrize("how", ["crash", "error"])
def test_a_failure_during_a_rotation_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, fatal: int
) -> None:
    log = rotated(tmp_path, monkeypatch, 200)
    confirmed = log.head
    disk = Disk(tmp_path, -1, how)
    while (tmp_path / "audit.log").stat().st_size < 800:
        confirmed = log.append(("event", {"text": "x" * 50}))
    disk = Disk(tmp_path, fatal, how)
    with disk.inserted(monkeypatch):
        for _ in range(2):
            try:
                confirmed = log.append(("event", {"text": "x" * 400}))
            except StoreError:
                assert how == "error"
    if how == "error":
        confirmed = log.append(("after", {}))
    again = opened(tmp_path, confirmed)
    again.append(("on", {}))
    chain.verify(oldest_first(tmp_path), confirmed.digest)
