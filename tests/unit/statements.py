"""What tests of signed statements share: every way to change one byte, and JSON that is anything at all."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from manager_vm.trust import envelope
from manager_vm.trust.signing import SigningKey

AUTHORITY, STRANGER = SigningKey.create(), SigningKey.create()

# JSON as json.loads makes it, with what is hard to bear: huge numbers, lone surrogates, NaN, wrong kinds
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800") | st.just("9" * 5000)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


def flipped(data: bytes) -> Iterator[bytes]:
    """``data`` with one byte changed: each byte in turn, each of its bits."""
    for index, byte in enumerate(data):
        for bit in range(8):
            yield data[:index] + bytes([byte ^ 1 << bit]) + data[index + 1 :]


def forgeries(statement: bytes) -> Iterator[tuple[str, bytes]]:
    """(part, statement) with one bit flipped of what its payload, signature, type or key id is."""
    whole = json.loads(statement)
    (signature,) = whole["signatures"]
    for part in flipped(base64.b64decode(whole["payload"])):
        yield "payload", json.dumps({**whole, "payload": base64.b64encode(part).decode()}).encode()
    for part in flipped(base64.b64decode(signature["sig"])):
        changed = {**signature, "sig": base64.b64encode(part).decode()}
        yield "sig", json.dumps({**whole, "signatures": [changed]}).encode()
    for part in flipped(signature["keyid"].encode()):
        changed = {**signature, "keyid": part.decode("latin-1")}
        yield "keyid", json.dumps({**whole, "signatures": [changed]}).encode()
    for part in flipped(whole["payloadType"].encode()):
        yield "payloadType", json.dumps({**whole, "payloadType": part.decode("latin-1")}).encode()


def body_of(kind: str, statement: bytes) -> dict[str, Any]:
    """What the statement says."""
    return envelope.peek(kind, statement)


def damaged(body: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """``body`` with a field (also one in a field) that is missing or is anything at all."""
    replaced = st.sampled_from(sorted(body)).flatmap(lambda key: JSON.map(lambda value: {**body, key: value}))
    missing = st.sampled_from(sorted(body)).map(lambda key: {k: v for k, v in body.items() if k != key})
    return replaced | missing | st.dictionaries(st.text(), JSON, max_size=3)
