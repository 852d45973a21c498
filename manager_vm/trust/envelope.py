"""A signed statement: JSON in a DSSE envelope (Dead Simple Signing Envelope 1.0, github.com/secure-systems-lab/dsse).

    {"payload": BASE64, "payloadType": "application/vnd.vtpm-manager.KIND+json", "signatures": [{"keyid", "sig"}]}

Signed is PAE = "DSSEv1" SP len(type) SP type SP len(payload) SP payload, so that a statement of one kind is never taken
for one of another, and the bytes that are parsed are those that were signed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from manager_vm.errors import EvidenceError
from manager_vm.trust.signing import SigningKey, VerifyKey

MAX_SIZE = 1 << 18  # bytes of an envelope
_MAX_DEPTH = 8  # levels of arrays and objects
_TYPE = re.compile(r"application/vnd\.vtpm-manager\.([a-z-]{1,40})\+json")


def sign(kind: str, body: dict[str, Any], key: SigningKey) -> bytes:
    """The envelope with ``body`` (JSON types), one signature."""
    return sign_with(kind, body, key.public.id, key.sign)


def sign_with(kind: str, body: dict[str, Any], key_id: str, make: Callable[[bytes], bytes]) -> bytes:
    """The same by a key that is elsewhere: ``make`` gives r || s over SHA-256 of the bytes that it gets."""
    payload = json.dumps(body, sort_keys=True).encode()
    signature = {"keyid": key_id, "sig": _encode(make(_pae(kind, payload)))}
    envelope = {"payload": _encode(payload), "payloadType": _type(kind), "signatures": [signature]}
    return json.dumps(envelope, indent=1).encode() + b"\n"


def verify(kind: str, data: bytes, keys: Iterable[VerifyKey]) -> tuple[dict[str, Any], VerifyKey]:
    """(body, key that signed it); EvidenceError unless one of ``keys`` signed ``data`` as a statement of this kind."""
    payload, signatures = _open(kind, data)
    claimed = {str(each.get("keyid")): each.get("sig") for each in signatures}
    for key in keys:
        if key.id in claimed:
            key.verify(_decode(claimed[key.id], kind), _pae(kind, payload), f"this {kind}")
            return json_object(payload, kind), key
    raise EvidenceError(f"this {kind} is not signed by anybody who is trusted with it here")


def peek(kind: str, data: bytes) -> dict[str, Any]:
    """The body of a statement that nobody has verified: to be shown, never to be acted on."""
    return json_object(_open(kind, data)[0], kind)


def digest(kind: str, data: bytes) -> bytes:
    """SHA-256 of the payload: it names a statement, whatever its signatures look like."""
    return hashlib.sha256(_open(kind, data)[0]).digest()


def kind_of(data: bytes) -> str:
    """What a statement claims to be; EvidenceError if it claims nothing that is ours."""
    found = _TYPE.fullmatch(str(json_object(data, "statement").get("payloadType")))
    if not found:
        raise EvidenceError("this is no statement: it has no payloadType of ours")
    return found[1]


def signers(data: bytes) -> list[str]:
    """Ids of the keys that are said to have signed; nobody has verified it."""
    return [str(each.get("keyid")) for each in _open(kind_of(data), data)[1]]


def _open(kind: str, data: bytes) -> tuple[bytes, list[dict[str, Any]]]:
    envelope = json_object(data, kind)
    found, signatures = envelope.get("payloadType"), envelope.get("signatures")
    if found != _type(kind):
        raise EvidenceError(f"this is no {kind} (its payloadType is {str(found)[:80]!r})")
    if not isinstance(signatures, list) or not all(isinstance(each, dict) for each in signatures):
        raise EvidenceError(f"this {kind} has no list of signatures: it is damaged")
    return _decode(envelope.get("payload"), kind), signatures


def json_object(data: bytes, kind: str) -> dict[str, Any]:
    """A JSON object that is neither large nor deep; EvidenceError naming ``kind`` for anything else."""
    if len(data) > MAX_SIZE:
        raise EvidenceError(f"this {kind} is larger than {MAX_SIZE} bytes: it is none")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not _is_shallow(value):
        raise EvidenceError(f"this is no {kind}: it is not a JSON object of at most {_MAX_DEPTH} levels")
    return value


def _is_shallow(value: Any) -> bool:
    """Whether those who walk through it by recursion come back."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [inner for each in level for inner in _children(each)]
    return not level


def _children(value: Any) -> list[Any]:
    """The arrays and objects in this one."""
    members = value.values() if isinstance(value, dict) else value
    return [each for each in members if isinstance(each, dict | list)]


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
