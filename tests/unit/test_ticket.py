"""wire.ticket: it comes out of a VM's stream, so it may be anything."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.errors import RemoteProtocolError
from manager_vm.wire import ticket as tickets
from manager_vm.wire.ticket import Ticket

TICKET = Ticket(
    vtpm="0d2c1a4e-5b7f-4c1d-9a3e-1f2b3c4d5e6f",
    name="web",
    generation=3,
    park="ab" * 16,
    vm="11111111-2222-4333-8444-555555555555",
    platform="rack1",
    address="10.0.0.7:7411",
)


def packed(*fields: Any) -> bytes:
    return tickets.pack(TICKET)[:8] + bytes(msgpack.packb(fields))


def test_a_ticket_says_what_was_packed() -> None:
    assert tickets.parse(tickets.pack(TICKET)) == TICKET
    assert tickets.parse(tickets.pack(replace(TICKET, address=""))).address == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vtpm", "x"),
        ("vtpm", TICKET.vtpm.upper()),
        ("vm", ""),
        ("vm", 5),
        ("name", ""),
        ("name", "n" * 256),
        ("generation", 0),
        ("generation", True),
        ("generation", "3"),
        ("park", "ab" * 15),
        ("park", "AB" * 16),
        ("park", b"ab"),
        ("platform", None),
        ("address", 7),
        ("address", "a" * 256),
    ],
)
def test_a_ticket_with_a_field_that_no_manager_writes_is_none(field: str, value: object) -> None:
    fields = [value if name == field else each for name, each in zip(Ticket.__slots__, astuple(TICKET), strict=True)]
    with pytest.raises(RemoteProtocolError, match="damaged"):
        tickets.parse(packed(*fields))


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 2000, packed(), packed(*astuple(TICKET), 1), packed(*astuple(TICKET))[8:]]
)
def test_what_is_no_ticket_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="ticket"):
        tickets.parse(data)


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_magic_are_a_ticket_or_a_named_error(tail: bytes) -> None:
    try:
        tickets.parse(tickets.pack(TICKET)[:8] + tail)
    except RemoteProtocolError:
        return
    raise AssertionError("nobody has made this ticket")
