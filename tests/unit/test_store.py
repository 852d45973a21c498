"""store/records, store/atomic, store/blobs: what stands on the state disk besides the manifest's own rules."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager_vm import crypto
from manager_vm.crypto import Key
from manager_vm.errors import IntegrityError, StoreError
from manager_vm.protocol.channel_server import SessionState
from manager_vm.protocol.lifecycle import State
from manager_vm.store import atomic, blobs, packing
from manager_vm.store.blobs import ParkedState
from manager_vm.store.records import AuditHead, Contents, VtpmKeys, VtpmRecord
from tests.disks import Disk

keys = st.binary(min_size=32, max_size=32).map(Key)
certificates = st.dictionaries(st.text(max_size=9), st.binary(max_size=50), max_size=3)
vtpm_records = st.builds(
    VtpmRecord,
    uuid=st.uuids().map(str),
    name=st.text(min_size=1, max_size=20),
    state=st.sampled_from(State),
    uid=st.integers(0, 2**32 - 1),
    blob=st.text(max_size=40),
    blob_digest=st.binary(min_size=32, max_size=32),
    ek_names=certificates,
    certificates=certificates,
    run=st.text(max_size=40),
    boot=st.integers(0, 2**63 - 1),
    generation=st.integers(1, 2**63 - 1),
    resume=st.booleans(),
    channel=st.text(max_size=40),
    reason=st.text(max_size=40),
)
RECORD = VtpmRecord("uuid-1", "web", State.OFF, 1000, "file.blob", bytes(32), {}, {})
SECRET = bytes(range(100, 132))


@st.composite
def all_contents(draw: st.DrawFn) -> Contents:
    """Contents with a key for each record."""
    contents = Contents(
        draw(st.integers(1, 2**63)),
        draw(st.binary(max_size=50)),
        draw(st.binary(max_size=50)),
        authority=draw(st.binary(max_size=50)),
        operators=draw(st.dictionaries(st.text(max_size=9), st.binary(max_size=50), max_size=3)),
        audit=AuditHead(draw(st.integers(0, 2**63)), draw(st.binary(min_size=32, max_size=32))),
    )
    for record in draw(st.lists(vtpm_records, max_size=3)):
        contents = contents.with_vtpm(record, VtpmKeys(draw(keys), draw(st.none() | keys)))
    return contents


def revealed(contents: Contents) -> object:
    """Keys have no equality; their bytes do."""
    return {uuid: (each.blob.reveal(), each.run.reveal() if each.run else None) for uuid, each in contents.keys.items()}


# -- records --------------------------------------------------------------------------------------------------


@given(all_contents())
def test_contents_survive_their_two_parts(contents: Contents) -> None:
    again = packing.unpack(packing.pack_open(contents), packing.pack_secret(contents))
    assert replace(again, keys={}) == replace(contents, keys={})
    assert revealed(again) == revealed(contents)


def test_a_manifest_without_its_trust_is_of_another_format() -> None:
    opened = {"serial": 3, "ca": b"certificate", "vtpms": []}
    with pytest.raises(IntegrityError, match="of another format"):
        packing.unpack(msgpack.packb(opened), packing.pack_secret(Contents(3, b"", b"")))


def test_no_key_is_in_the_open_part_or_in_repr() -> None:
    contents = Contents(1, b"certificate", SECRET).with_vtpm(RECORD, VtpmKeys(Key(SECRET), Key(SECRET)))
    assert SECRET not in packing.pack_open(contents)
    for text in (repr(contents), str(contents), repr(contents.keys), f"{Key(SECRET)!s}"):
        assert repr(SECRET)[2:-1] not in text
        assert SECRET.hex() not in text


def test_contents_are_changed_only_in_copies() -> None:
    empty = Contents(1, b"", b"")
    one = empty.with_vtpm(RECORD, VtpmKeys(Key(SECRET)))
    moved = one.with_vtpm(replace(RECORD, state=State.RUNNING))
    gone = moved.without_vtpm("uuid-1")
    assert (empty.vtpms, gone.vtpms, empty.keys, gone.keys) == ({}, {}, {}, {})
    assert one.named("web") == RECORD
    assert moved.vtpms["uuid-1"].state is State.RUNNING
    assert moved.keys == one.keys
    assert gone.named("web") is None


GOOD_OPEN = packing.pack_open(Contents(1, b"", b"").with_vtpm(RECORD))
GOOD_SECRET = packing.pack_secret(Contents(1, b"", b"").with_vtpm(RECORD, VtpmKeys(Key(SECRET))))


@pytest.mark.parametrize(
    ("open_part", "secret_part"),
    [
        (GOOD_OPEN[:-1], GOOD_SECRET),
        (GOOD_OPEN, GOOD_SECRET + b"\0"),
        (b"", GOOD_SECRET),
        (msgpack.packb([]), GOOD_SECRET),
        (msgpack.packb({"serial": 1, "ca": b""}), GOOD_SECRET),
        (msgpack.packb({"serial": 1, "ca": b"", "vtpms": [{"uuid": "1"}]}), GOOD_SECRET),
        (GOOD_OPEN.replace(b"\xa3off", b"\xa3odd"), GOOD_SECRET),
        (GOOD_OPEN.replace(b"\xa4boot", b"\xa4boat"), GOOD_SECRET),
        (GOOD_OPEN, msgpack.packb({"ca": b"", "vtpms": []})),
        (GOOD_OPEN, msgpack.packb({"ca": b"", "vtpms": {"uuid-1": [bytes(32)]}})),
        (GOOD_OPEN, msgpack.packb({"ca": b"", "vtpms": {"uuid-1": [bytes(31), None]}})),
    ],
)
def test_authentic_parts_of_another_format_are_an_integrity_error(open_part: bytes, secret_part: bytes) -> None:
    packing.unpack(GOOD_OPEN, GOOD_SECRET)
    with pytest.raises(IntegrityError):
        packing.unpack(open_part, secret_part)


# -- atomic files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["crash", "power", "error"])
def test_a_file_is_the_old_or_the_new_one_whatever_happens_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    seen = []
    for fatal in range(5):
        path = tmp_path / "file"
        atomic.write_file(path, b"old" * 100)
        disk = Disk(tmp_path, fatal, how)
        with disk.inserted(monkeypatch):
            if how == "error":
                with pytest.raises(StoreError, match="I/O error"):
                    atomic.write_file(path, b"new" * 100)
            else:
                atomic.write_file(path, b"new" * 100)
        seen.append(path.read_bytes()[:3])
    turn = 5 if how == "power" else 4  # create write fsync rename sync
    assert seen == [b"old"] * turn + [b"new"] * (5 - turn)


def test_a_written_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    atomic.write_file(tmp_path / "file", b"data")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file.tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        atomic.write_file(tmp_path / "file", b"data")
    assert not (tmp_path / "elsewhere").exists()


def test_a_half_written_file_is_removed_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="disk is full; enlarge it"):
        atomic.write_file(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


def test_reading_knows_missing_from_too_large(tmp_path: Path) -> None:
    assert atomic.read_file(tmp_path / "missing", 10) is None
    (tmp_path / "file").write_bytes(bytes(10))
    assert atomic.read_file(tmp_path / "file", 10) == bytes(10)
    with pytest.raises(StoreError, match="larger than 9 bytes"):
        atomic.read_file(tmp_path / "file", 9)
    with pytest.raises(StoreError, match=f"cannot read {tmp_path}"):
        atomic.read_file(tmp_path, 10)


def test_one_manager_at_a_time_has_the_directory(tmp_path: Path) -> None:
    fd = atomic.lock_directory(tmp_path)
    with pytest.raises(StoreError, match="another manager"):
        atomic.lock_directory(tmp_path)
    os.close(fd)
    os.close(atomic.lock_directory(tmp_path))


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    atomic.demand_space(tmp_path, 1)
    with pytest.raises(StoreError, match="MiB are free"):
        atomic.demand_space(tmp_path, 1 << 62)


def test_directories_are_private_and_go_with_all_that_is_in_them(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    for _ in range(2):
        atomic.make_directory(directory, os.getuid())
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    (directory / "file").write_bytes(b"")
    for _ in range(2):
        atomic.remove_tree(directory)
    assert not directory.exists()
    with pytest.raises(StoreError, match="cannot create"):
        atomic.make_directory(tmp_path / "no" / "where")


# -- state blobs ----------------------------------------------------------------------------------------------

STATE = ParkedState(b"permanent state", b"volatile state", b"", SessionState(b"s" * 16, 7, 0, b"command", b"reply"))


@given(st.binary(), st.binary(), st.binary(), st.none() | st.binary(), st.integers(0, 2**63 - 1))
def test_a_parked_state_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, one: bytes, two: bytes, three: bytes, reply: bytes | None, seq: int
) -> None:
    directory = tmp_path_factory.getbasetemp()
    state = ParkedState(one, two, three, SessionState(b"s" * 16, seq, 3, b"command", reply))
    stored = blobs.store(directory, "uuid-1", state)
    assert blobs.load(directory, "uuid-1", stored) == state
    (directory / stored.file).unlink()


def test_a_state_blob_is_not_readable_on_the_disk_or_in_a_log(tmp_path: Path) -> None:
    stored = blobs.store(tmp_path, "uuid-1", STATE)
    data = (tmp_path / stored.file).read_bytes()
    for secret in (b"permanent state", b"volatile state", b"command", b"reply"):
        assert secret not in data
        assert secret.decode() not in repr(STATE).replace("ParkedState", "") + repr(stored) + repr(STATE.session)


def test_two_blobs_of_one_state_share_neither_key_nor_name(tmp_path: Path) -> None:
    first, second = (blobs.store(tmp_path, "uuid-1", STATE) for _ in range(2))
    assert first.file != second.file
    assert first.key.reveal() != second.key.reveal()


def test_any_changed_byte_of_a_blob_is_an_integrity_error(tmp_path: Path) -> None:
    stored = blobs.store(tmp_path, "uuid-1", STATE)
    path = tmp_path / stored.file
    good = path.read_bytes()
    for bad in [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))] + [good[:-1], b""]:
        path.write_bytes(bad)
        with pytest.raises(IntegrityError, match="not the one recorded"):
            blobs.load(tmp_path, "uuid-1", stored)
        with pytest.raises(IntegrityError):
            blobs.load(tmp_path, "uuid-1", replace(stored, digest=crypto.digest(bad)))


def test_a_missing_older_or_foreign_blob_is_an_integrity_error(tmp_path: Path) -> None:
    older, newer = blobs.store(tmp_path, "uuid-1", STATE), blobs.store(tmp_path, "uuid-1", STATE)
    with pytest.raises(IntegrityError, match="authentication"):
        blobs.load(tmp_path, "uuid-2", newer)
    with pytest.raises(IntegrityError, match="authentication"):
        blobs.load(tmp_path, "uuid-1", replace(newer, key=older.key))
    os.rename(tmp_path / older.file, tmp_path / newer.file)
    with pytest.raises(IntegrityError, match="older, or was changed"):
        blobs.load(tmp_path, "uuid-1", newer)
    with pytest.raises(IntegrityError, match="authentication"):
        blobs.load(tmp_path, "uuid-1", replace(older, file=newer.file))
    with pytest.raises(IntegrityError, match="is missing"):
        blobs.load(tmp_path, "uuid-1", older)
