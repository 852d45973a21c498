"""image.measure: what is said of the values that it predicts. tests/system/test_boot.py compares them with a boot."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from image import measure
from manager_vm.trust import pcrs

VALUES = {str(pcr): f"{pcr:02x}" * 32 for pcr in pcrs.BOUND_PCRS}


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image of which VALUES are expected."""
    monkeypatch.setattr(measure, "expected", lambda _: VALUES)
    (tmp_path / "uki.efi").write_bytes(b"kernel")
    return tmp_path


def test_the_report_has_what_an_approval_binds_the_pcr_after_the_cap_and_the_file_it_is_of(image: Path) -> None:
    assert json.loads(measure.report(image)) == {
        "bank": "sha256",
        "pcrs": VALUES,
        "after_cap": {"11": pcrs.capped(bytes([11]) * 32).hex()},
        "uki": hashlib.sha256(b"kernel").hexdigest(),
    }


def test_people_read_one_line_a_value(image: Path) -> None:
    lines = measure.as_text(measure.expected(image)).splitlines()
    assert lines[:-1] == [f"PCR {pcr.ljust(2)} (SHA-256) {value}" for pcr, value in VALUES.items()]
    assert lines[-1].startswith("PCR 11 ") and lines[-1].endswith(" once its manager serves")


def test_a_file_that_is_no_kernel_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "uki.efi").write_bytes(b"kernel")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["image.measure", str(tmp_path), "--json"])
        assert measure.main() == 9
    said = capsys.readouterr()
    assert said.out == "" and "too short to be a PE/COFF image" in said.err
