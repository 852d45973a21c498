"""trust/event_log: a TCG event log is read whole or refused, and replayed as a TPM extends."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.errors import EvidenceError
from manager_vm.trust import event_log
from tests import event_logs
from tests.event_logs import BOOT, NO_ACTION

LOG = event_logs.log(BOOT)


@pytest.mark.parametrize("banks", [("sha256",), ("sha1", "sha256"), ("sha384", "sha256", "sha1", "sha512")])
def test_a_log_leads_to_the_values_that_the_tpm_has(banks: tuple[str, ...]) -> None:
    events = event_log.parse(event_logs.log(BOOT, banks))
    assert event_log.replay(events, range(16)) == event_logs.values(BOOT)


def test_what_extends_nothing_is_left_out() -> None:
    events = event_log.parse(LOG)
    assert len(events) == len(BOOT) - 1 and all(each.type != NO_ACTION for each in events)
    assert (events[1].kind, events[1].data[:11]) == ("EV_EFI_ACTION", b"Calling EFI")


def test_a_log_with_nothing_but_its_first_event_is_empty() -> None:
    assert event_log.parse(event_logs.header(vendor=b"vendor")) == []


@pytest.mark.parametrize("size", range(len(LOG)))
def test_a_log_that_is_cut_off_is_refused_but_between_two_events(size: int) -> None:
    ends = [len(event_logs.log(BOOT[:count])) for count in range(len(BOOT))]
    if size in ends:
        assert len(event_log.parse(LOG[:size])) < len(BOOT)
        return
    with pytest.raises(EvidenceError):
        event_log.parse(LOG[:size])


def _with_header(**parts: bytes) -> bytes:
    fields = {"signature": b"Spec ID Event03\0", "count": struct.pack("<I", 1), "size": struct.pack("<HH", 11, 32)}
    fields |= parts
    inner = fields["signature"] + bytes(8) + fields["count"] + fields["size"] + b"\0" + fields.get("behind", b"")
    return struct.pack("<II20sI", 0, NO_ACTION, bytes(20), len(inner)) + inner


@pytest.mark.parametrize(
    "log",
    [
        b"",
        _with_header(signature=b"Spec ID Event00\0"),
        _with_header(count=struct.pack("<I", 0), size=b""),
        _with_header(count=struct.pack("<I", 9)),
        _with_header(count=struct.pack("<I", 0xFFFFFFFF)),
        _with_header(size=struct.pack("<HH", 11, 20)),
        _with_header(size=struct.pack("<HH", 4, 20)),
        _with_header(behind=b"x"),
        event_logs.header() + event_logs.event(24, 1, b"", b""),
        event_logs.header() + event_logs.event(1, 1, b"", b"", ("sha256",)),
        event_logs.header() + event_logs.event(1, 1, b"", b"", ("sha256", "sha256")),
        event_logs.header() + event_logs.event(1, 1, b"", b"", ("sha384", "sha256")),
        event_logs.header() + event_logs.event(1, 1, b"", b"")[:-4] + b"\xff\xff\xff\xff",
        event_logs.header() + event_logs.event(1, 1, b"", b"", ("sha1", "sha256")) * 5000,
        event_logs.header() + event_logs.event(1, 1, b"", bytes(event_log.MAX_SIZE)),
    ],
    ids=lambda log: str(len(log)),
)
def test_what_is_no_log_is_refused(log: bytes) -> None:
    with pytest.raises(EvidenceError):
        event_log.parse(log)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_log_or_refused(data: bytes) -> None:
    for log in (data, event_logs.header() + data):
        with contextlib.suppress(EvidenceError):
            event_log.replay(event_log.parse(log), range(16))


@given(st.integers(0, len(LOG) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_no_more_than_it_says(at: int, mask: int) -> None:
    changed = LOG[:at] + bytes([LOG[at] ^ mask]) + LOG[at + 1 :]
    with contextlib.suppress(EvidenceError):
        assert len(event_log.parse(changed)) <= len(BOOT)
