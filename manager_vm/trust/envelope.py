"""A signed statement: JSON in a DSSE envelope (Dead Simple Signing Envelope 1.0, github.com/secure-systems-lab/dsse).

    {"payload": BASE64, "payloadType": "application/vnd.vtpm-manager.KIND+json", "signatures": [{"keyid", "sig"}]}

Signed is PAE = "DSSEv1" SP len(type) SP type SP len(payload) SP payload, so that a statement of one kind is never taken
for one of another, and the bytes that are parsed are those that were signed.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from typing import Any

from manager_vm.errors import EvidenceError
from manager_vm.trust.signing import SigningKey, VerifyKey

MAX_SIZE = 1 << 18  # bytes of an envelope


def sign(kind: str, body: dict[str, Any], key: SigningKey) -> bytes:
    """The envelope with ``body`` (JSON types), one signature."""
    payload = json.dumps(body, sort_keys=True).encode()
    signature = {"keyid": key.public.id, "sig": _encode(key.sign(_pae(kind, payload)))}
    envelope = {"payload": _encode(payload), "payloadType": _type(kind), "signatures": [signature]}
    return json.dumps(envelope, indent=1).encode() + b"\n"


def verify(kind: str, data: bytes, keys: Iterable[VerifyKey]) -> tuple[dict[str, Any], VerifyKey]:
    """(body, key that signed it); EvidenceError unless one of ``keys`` signed ``data`` as a statement of this kind."""
    payload, signatures = _open(kind, data)
    signers = {str(each.get("keyid")): each.get("sig") for each in signatures}
    for key in keys:
        if key.id in signers:
            key.verify(_decode(signers[key.id], kind), _pae(kind, payload), f"this {kind}")
            return _object(payload, kind), key
    raise EvidenceError(f"this {kind} is not signed by anybody who is trusted with it here")


def peek(kind: str, data: bytes) -> dict[str, Any]:
    """The body of a statement that nobody has verified: to be shown, never to be acted on."""
    return _object(_open(kind, data)[0], kind)


def _open(kind: str, data: bytes) -> tuple[bytes, list[dict[str, Any]]]:
    if len(data) > MAX_SIZE:
        raise EvidenceError(f"this {kind} is larger than {MAX_SIZE} bytes: it is none")
    envelope = _object(data, kind)
    found, signatures = envelope.get("payloadType"), envelope.get("signatures")
    if found != _type(kind):
        raise EvidenceError(f"this is no {kind} (its payloadType is {str(found)[:80]!r})")
    if not isinstance(signatures, list) or not all(isinstance(each, dict) for each in signatures):
        raise EvidenceError(f"this {kind} has no list of signatures: it is damaged")
    return _decode(envelope.get("payload"), kind), signatures


def _object(data: bytes, kind: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise EvidenceError(f"this is no {kind}: it is not a JSON object")
    return value


def _pae(kind: str, payload: bytes) -> bytes:
    name = _type(kind).encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def _type(kind: str) -> str:
    return f"application/vnd.vtpm-manager.{kind}+json"


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: object, kind: str) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "?", validate=True)
    except (ValueError, binascii.Error):
        raise EvidenceError(f"this {kind} is damaged: a field is not in base64") from None
