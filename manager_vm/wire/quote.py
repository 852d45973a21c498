"""Bodies of QUOTE_REQUEST and QUOTE_REPLY (CHANNEL.md section 7): a guest asks its manager to vouch for a quote.

A question has a token that the front end chooses; asking again under the same token is harmless. The evidence is larger
than a frame, so the front end fetches it in parts, each when it wants it: nothing is sent that has no room.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from manager_vm.errors import RemoteProtocolError

NONCE_SIZES = range(16, 65)  # bytes; more than a TPM takes as qualifying data is no use
MAX_EVIDENCE = 1 << 18  # bytes
MAX_PART = 4088  # bytes of evidence in one frame
MAX_TEXT = 512  # bytes of UTF-8

_BEGIN = struct.Struct("<IHHH")  # AK handle, sizes of nonce, quote, signature
_FETCH = struct.Struct("<I")  # offset
_PART = struct.Struct("<II")  # total, offset


class Refusal(IntEnum):
    """Why there is no evidence. Those from BUSY on may pass."""

    NO_KEY = 1
    NOT_AN_AK = 2
    NOT_ITS_QUOTE = 3
    NONCE = 4
    NO_EK = 5
    NOT_ENROLLED = 6
    HARDWARE = 7
    BUSY = 8
    LATER = 9
    NOT_SERVING = 10
    UNKNOWN = 11


@dataclass(frozen=True, slots=True)
class QuoteBegin:
    """Front end -> manager: vouch for this quote. ``quote``: TPMS_ATTEST, ``signature``: TPMT_SIGNATURE."""

    token: int
    handle: int
    nonce: bytes
    quote: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class QuoteFetch:
    """Front end -> manager: more of that evidence, from byte ``offset`` on."""

    token: int
    offset: int


@dataclass(frozen=True, slots=True)
class QuotePart:
    """Manager -> front end: bytes of the evidence, which has ``total``."""

    token: int
    total: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class QuoteRefused:
    """Manager -> front end: there is no evidence under this token."""

    token: int
    reason: Refusal
    text: str = ""


Request = QuoteBegin | QuoteFetch
Reply = QuotePart | QuoteRefused


def part(token: int, evidence: bytes, offset: int) -> QuotePart:
    """The part of the evidence that begins there."""
    return QuotePart(token, len(evidence), offset, evidence[offset : offset + MAX_PART])


def to_body(message: Request | Reply) -> tuple[int, bytes]:
    """(arg, body) of the message's frame."""
    match message:
        case QuoteBegin(_, handle, nonce, quote, signature):
            return 0, _BEGIN.pack(handle, len(nonce), len(quote), len(signature)) + nonce + quote + signature
        case QuoteFetch(_, offset):
            return 1, _FETCH.pack(offset)
        case QuotePart(_, total, offset, data):
            return 0, _PART.pack(total, offset) + data
        case QuoteRefused(_, reason, text):
            return reason, text.encode()[:MAX_TEXT]


def request(token: int, arg: int, body: bytes) -> Request:
    """The message of a QUOTE_REQUEST; RemoteProtocolError if it is none."""
    if arg not in _REQUESTS:
        raise RemoteProtocolError(f"unknown kind {arg} of a quote request")
    return _REQUESTS[arg](token, body)


def reply(token: int, arg: int, body: bytes) -> Reply:
    """The message of a QUOTE_REPLY; RemoteProtocolError if it is none."""
    if arg == 0:
        return _part(token, body)
    try:
        return QuoteRefused(token, Refusal(arg), body[:MAX_TEXT].decode(errors="replace"))
    except ValueError:
        raise RemoteProtocolError(f"unknown reason {arg} for which there is no evidence") from None


def _begin(token: int, body: bytes) -> QuoteBegin:
    if len(body) < _BEGIN.size:
        raise _length(body)
    handle, *sizes = _BEGIN.unpack_from(body)
    if len(body) != _BEGIN.size + sum(sizes):
        raise _length(body)
    nonce_end = _BEGIN.size + sizes[0]
    quote_end = nonce_end + sizes[1]
    return QuoteBegin(token, handle, body[_BEGIN.size : nonce_end], body[nonce_end:quote_end], body[quote_end:])


def _fetch(token: int, body: bytes) -> QuoteFetch:
    if len(body) != _FETCH.size:
        raise _length(body)
    return QuoteFetch(token, *_FETCH.unpack(body))


def _part(token: int, body: bytes) -> QuotePart:
    if len(body) <= _PART.size:
        raise _length(body)
    total, offset = _PART.unpack_from(body)
    found = QuotePart(token, total, offset, body[_PART.size :])
    if total > MAX_EVIDENCE or offset + len(found.data) > total or len(found.data) > MAX_PART:
        raise RemoteProtocolError(f"a part of {len(found.data)} bytes of evidence at {offset} of {total} is none")
    return found


_REQUESTS: dict[int, Callable[[int, bytes], Request]] = {0: _begin, 1: _fetch}


def _length(body: bytes) -> RemoteProtocolError:
    return RemoteProtocolError(f"a quote's message has {len(body)} bytes, which its fields do not fill")
