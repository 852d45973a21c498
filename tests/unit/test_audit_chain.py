"""wire.audit: whatever is done to the lines of an audit log, the chain or its anchored head shows it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.errors import IntegrityError
from manager_vm.wire import audit
from tests.unit.statements import flipped


def chain(*events: str, first: int = 1, prev: bytes = audit.NONE) -> list[bytes]:
    """Lines with these events."""
    lines: list[bytes] = []
    for n, event in enumerate(events, first):
        lines.append(audit.encode(n, prev, 1000.5, event, {"vtpm": f"v{n}"}))
        prev = audit.digest(lines[-1])
    return lines


LINES = chain(*"abcdef")
HEAD = audit.digest(LINES[3])


def test_an_entry_survives_its_line() -> None:
    entry = audit.parse(audit.encode(7, HEAD, 12.25, "boot", {"boot": 3, "vtpm": "ü\n\r\u2028"}))
    assert (entry.n, entry.prev, entry.time, entry.event) == (7, HEAD, 12.25, "boot")
    assert entry.fields == {"boot": 3, "vtpm": "ü\n\r\u2028"}
    assert b"\n" not in audit.encode(1, HEAD, 0, "a\nb", {"x\n": "\n"})


def test_a_whole_chain_says_how_long_it_is_and_what_is_not_anchored() -> None:
    assert audit.verify(LINES) == audit.Report(1, 6, audit.digest(LINES[5]), None)
    assert audit.verify(LINES, HEAD).unanchored == 2
    assert audit.verify(LINES, audit.digest(LINES[5])).unanchored == 0
    assert audit.verify(LINES, audit.NONE).unanchored == 6
    assert audit.verify([]) == audit.Report(0, 0, audit.NONE, None)
    assert audit.verify([], audit.NONE).unanchored == 0


def test_a_change_of_any_bit_before_the_head_is_found() -> None:
    for index in range(4):
        for changed in flipped(LINES[index]):
            with pytest.raises(IntegrityError):
                audit.verify([*LINES[:index], changed, *LINES[index + 1 :]], HEAD)


@given(st.permutations(range(6)))
def test_reordered_lines_are_found(order: list[int]) -> None:
    if order == sorted(order):
        return
    with pytest.raises(IntegrityError):
        audit.verify([LINES[index] for index in order])


@given(st.sets(st.integers(0, 5), min_size=1))
def test_removed_lines_are_found_but_for_the_unanchored_end(gone: set[int]) -> None:
    left = [line for index, line in enumerate(LINES) if index not in gone]
    if gone in ({5}, {4, 5}):
        assert audit.verify(left, HEAD).unanchored == 2 - len(gone)
        return
    with pytest.raises(IntegrityError):
        audit.verify(left, HEAD)


@pytest.mark.parametrize("index", range(6))
def test_a_line_that_stands_twice_is_found(index: int) -> None:
    with pytest.raises(IntegrityError, match="does not follow"):
        audit.verify([*LINES[: index + 1], *LINES[index:]])


def test_another_chain_does_not_have_the_head() -> None:
    with pytest.raises(IntegrityError, match="is not in this audit log"):
        audit.verify(chain(*"xyzuvw"), HEAD)
    with pytest.raises(IntegrityError, match="is not in this audit log"):
        audit.verify([], HEAD)


def test_the_beginning_may_be_missing_only_as_far_as_an_entry_says() -> None:
    lines = chain("a", "b", "c")
    lines.append(audit.encode(4, audit.digest(lines[-1]), 0, audit.DROPPED, {"first": 3}))
    for start in (0, 1, 2):
        assert audit.verify(lines[start:]).first == start + 1
    with pytest.raises(IntegrityError, match="those before it were removed"):
        audit.verify(lines[3:])
    with pytest.raises(IntegrityError, match="those before it were removed"):
        audit.verify(LINES[2:])


def test_a_chain_that_began_anew_says_so_in_its_first_line() -> None:
    assert audit.verify(chain(audit.BROKEN, "a", first=9, prev=HEAD)).first == 9
    with pytest.raises(IntegrityError, match="those before it were removed"):
        audit.verify(chain("a", audit.BROKEN, first=9, prev=HEAD))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        LINES[0][:-1],
        LINES[0].replace(b'"n":1', b'"n":"1"'),
        LINES[0].replace(b'"n":1', b'"n":0'),
        LINES[0].replace(b'"n":1', b'"n":1e400'),
        LINES[0].replace(b'"event":"a"', b'"event":1'),
        LINES[0].replace(b'"prev":"00', b'"prev":"'),
        LINES[0].replace(b'"prev":"00', b'"prev":"zz'),
        b"[" * 100_000,
        b'{"n":' + b"9" * 10_000 + b"}",
        LINES[0] + b" " * audit.MAX_LINE,
    ],
)
def test_what_is_no_entry_is_refused(line: bytes) -> None:
    with pytest.raises(IntegrityError, match="a line that is no entry"):
        audit.parse(line)


def test_an_entry_that_says_that_much_was_dropped_costs_nothing_to_read() -> None:
    line = audit.encode(1, audit.NONE, 0, audit.DROPPED, {"first": 10**18})
    assert audit.verify([line]).count == 1
