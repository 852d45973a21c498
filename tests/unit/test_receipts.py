"""store.receipts: kept, bounded, and damage named."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from manager_vm.errors import StoreError
from manager_vm.store import receipts
from manager_vm.store.receipts import Receipts


def test_what_is_kept_is_read_until_it_is_dropped(tmp_path: Path) -> None:
    found = Receipts(tmp_path / "r")
    found.keep("a" * 32, b"agreed" * 1000)
    assert Receipts(tmp_path / "r").read("a" * 32) == b"agreed" * 1000
    found.drop("a" * 32)
    found.drop("a" * 32)
    assert found.read("a" * 32) is None


def test_moves_side_by_side_keep_theirs_and_the_oldest_beyond_the_bound_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "KEPT", 5)
    found = Receipts(tmp_path / "r")
    with ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda number: found.keep(f"{number:032x}", b"x"), range(200)))
    assert len(list((tmp_path / "r").iterdir())) == 5
    for number in range(200, 205):
        found.keep(f"{number:032x}", b"x")
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [f"{number:032x}" for number in range(200, 205)]


def test_receipts_of_moves_that_nobody_knows_are_removed(tmp_path: Path) -> None:
    found = Receipts(tmp_path / "r")
    for name in ("a" * 32, "b" * 32):
        found.keep(name, b"x")
    (tmp_path / "r" / ("c" * 32 + ".tmp")).write_bytes(b"half")
    found.tidy(["b" * 32])
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["b" * 32]


@pytest.mark.parametrize(
    "data",
    [b"", b"no zlib", zlib.compress(b"x" * 100)[:-3], zlib.compress(bytes(receipts.MAX_SIZE + 1))],
    ids=["empty", "other", "cut", "bomb"],
)
def test_a_damaged_receipt_is_named(tmp_path: Path, data: bytes) -> None:
    found = Receipts(tmp_path / "r")
    (tmp_path / "r" / ("a" * 32)).write_bytes(data)
    with pytest.raises(StoreError, match="damaged on the disk"):
        found.read("a" * 32)
