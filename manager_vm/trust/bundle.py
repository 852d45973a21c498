"""The evidence of a quote as one JSON file, and what signatures in it are over (EVIDENCE.md). Nothing is verified here.

Three kinds. ``linked``: a vTPM's quote, vouched for, and the platform. ``third-party``: the same without what links
vTPMs of one host. ``platform``: a vTPM and its platform, without a quote of the vTPM.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from manager_vm.errors import EvidenceError

VERSION = 2  # 1 had no snapshots
MAX_SIZE = 1 << 19  # bytes of the file
_LINKED_TAG = b"vtpm-manager linked quote 2\0"
_PLATFORM_TAG = b"vtpm-manager platform quote 2\0"
_HOST_TAG = b"vtpm-manager host quote 1\0"
_MAX_CHAIN = 4
_MAX_DEPTH_BYTES = 64  # opening brackets in the whole file; a bundle has fewer than 30


class Kind(StrEnum):
    """What a bundle holds."""

    LINKED = "linked"
    THIRD_PARTY = "third-party"
    PLATFORM = "platform"


@dataclass(frozen=True, slots=True)
class History:
    """``generation`` grows with each move and recovery; ``recovered``: how many recoveries, each from a disk that may
    have been older; ``reverted``: how often it went back to a snapshot; ``snapshots``: how many may be kept.
    """

    generation: int = 1
    recovered: int = 0
    reverted: int = 0
    snapshots: int = 0

    @property
    def packed(self) -> bytes:
        """As it is signed: u64, three u32, big-endian."""
        return struct.pack(">QIII", self.generation, self.recovered, self.reverted, self.snapshots)


@dataclass(frozen=True, slots=True)
class Vtpm:
    """``ek``: TPMT_PUBLIC. ``certificate``, ``ca``: the EK's, DER; b"" for third parties."""

    ek: bytes
    certificate: bytes = b""
    ca: bytes = b""
    history: History = History()


@dataclass(frozen=True, slots=True)
class VtpmQuote:
    """``ak``: TPMT_PUBLIC. ``quote``: TPMS_ATTEST. ``signature``: TPMT_SIGNATURE. ``pcrs``: bank -> PCR -> value."""

    ak: bytes
    quote: bytes
    signature: bytes
    pcrs: Mapping[str, Mapping[int, bytes]]


@dataclass(frozen=True, slots=True)
class Voucher:
    """``signature``: the SK's, r || s. ``chain``: certificates (DER), the SK's first."""

    signature: bytes
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """``statement``: of the authority about the AK. ``approval``: of the image. ``log``: event log, b"" if none."""

    statement: bytes
    approval: bytes
    log: bytes
    quote: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Bundle:
    """One file."""

    kind: Kind
    nonce: bytes
    vtpm: Vtpm
    quote: VtpmQuote | None
    voucher: Voucher
    host: Host | None


def linked_binding(ek_name: bytes, history: History, ak_name: bytes, quote: bytes, nonce: bytes) -> bytes:
    """What the SK signs for a vTPM's quote (32 bytes)."""
    said = _sized(ek_name) + history.packed + _sized(ak_name) + _sha256(quote) + _sized(nonce)
    return _sha256(_LINKED_TAG + said)


def platform_binding(ek_name: bytes, history: History, nonce: bytes) -> bytes:
    """What the SK signs for a vTPM without a quote (32 bytes)."""
    return _sha256(_PLATFORM_TAG + _sized(ek_name) + history.packed + _sized(nonce))


def host_binding(binding: bytes, statement: bytes, approval: bytes, log: bytes) -> bytes:
    """Qualifying data of the hardware TPM's quote (32 bytes)."""
    return _sha256(_HOST_TAG + binding + _sha256(statement) + _sha256(approval) + _sha256(log))


def pack(bundle: Bundle) -> bytes:
    """The file."""
    vtpm: dict[str, Any] = {"ek": _encode(bundle.vtpm.ek), **asdict(bundle.vtpm.history)}
    if bundle.kind is not Kind.THIRD_PARTY:
        vtpm |= {"ek_certificate": _encode(bundle.vtpm.certificate), "ek_ca": _encode(bundle.vtpm.ca)}
    if (quote := bundle.quote) is not None:
        vtpm |= {"ak": _encode(quote.ak), "quote": _encode(quote.quote), "signature": _encode(quote.signature)}
        vtpm["pcrs"] = {bank: _pack_pcrs(values) for bank, values in quote.pcrs.items()}
    chain = [_encode(each) for each in bundle.voucher.chain]
    told: dict[str, Any] = {
        "version": VERSION,
        "kind": bundle.kind.value,
        "nonce": _encode(bundle.nonce),
        "vtpm": vtpm,
        "voucher": {"signature": _encode(bundle.voucher.signature), "chain": chain},
    }
    if bundle.host is not None:
        told["platform"] = _pack_host(bundle.host)
    return json.dumps(told, indent=1).encode() + b"\n"


def pack_host(host: Host) -> bytes:
    """The platform's part alone, for a peer that knows what it is about."""
    return json.dumps(_pack_host(host)).encode()


def parse_host(data: bytes) -> Host:
    """The inverse; EvidenceError for anything else."""
    told = _load(data)
    if told.keys() != _HOST_FIELDS:
        raise EvidenceError("this is no evidence of a platform: it has not the fields that one has")
    try:
        return _host(told)
    except (TypeError, ValueError, AttributeError) as error:
        raise EvidenceError(f"this evidence has a field that cannot be read ({error})") from None


def _pack_host(host: Host) -> dict[str, Any]:
    fields = {name: _encode(getattr(host, name)) for name in ("statement", "approval", "log", "quote", "signature")}
    return {**fields, "pcrs": _pack_pcrs(host.pcrs)}


def parse(data: bytes) -> Bundle:
    """The bundle in a file; EvidenceError if there is none. Fields that its kind does not have are refused."""
    told = _load(data)
    if type(told.get("version")) is not int or told["version"] != VERSION:
        raise EvidenceError(f"this bundle is not of version {VERSION}")
    try:
        kind = Kind(told["kind"])
        vtpm, voucher = _object(told["vtpm"]), _object(told["voucher"])
        host = _object(told["platform"]) if kind is not Kind.THIRD_PARTY else None
        _demand_fields(kind, told, vtpm, voucher, host)
        found = Bundle(
            kind=kind,
            nonce=_decode(told["nonce"]),
            vtpm=_vtpm(kind, vtpm),
            quote=None if kind is Kind.PLATFORM else _quote(vtpm),
            voucher=Voucher(_decode(voucher["signature"]), _chain(voucher["chain"])),
            host=None if host is None else _host(host),
        )
    except KeyError as error:
        raise EvidenceError(f"this bundle lacks {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise EvidenceError(f"this bundle has a field that cannot be read ({error})") from None
    return found


_HOST_FIELDS = frozenset({"statement", "approval", "log", "quote", "signature", "pcrs"})
_QUOTE_FIELDS = frozenset({"ak", "quote", "signature", "pcrs"})
_HISTORY = {"generation": 64, "recovered": 32, "reverted": 32, "snapshots": 32}  # bits
_HISTORY_FIELDS = frozenset({"ek", *_HISTORY})
_EK_FIELDS = _HISTORY_FIELDS | {"ek_certificate", "ek_ca"}
_VTPM_FIELDS = {
    Kind.LINKED: _EK_FIELDS | _QUOTE_FIELDS,
    Kind.THIRD_PARTY: _HISTORY_FIELDS | _QUOTE_FIELDS,
    Kind.PLATFORM: _EK_FIELDS,
}


def _demand_fields(
    kind: Kind, told: dict[str, Any], vtpm: dict[str, Any], voucher: dict[str, Any], host: dict[str, Any] | None
) -> None:
    """Nothing else: what is not looked at cannot be believed by somebody who reads the file."""
    outer = {"version", "kind", "nonce", "vtpm", "voucher"} | ({"platform"} if host is not None else set())
    for name, found, wanted in (
        ("bundle", told, outer),
        ("vtpm", vtpm, _VTPM_FIELDS[kind]),
        ("voucher", voucher, {"signature", "chain"}),
        ("platform", host or {}, _HOST_FIELDS if host is not None else set()),
    ):
        if extra := found.keys() - wanted:
            raise EvidenceError(f"{name} has a field {sorted(extra)[0][:40]!r}, which a {kind} bundle has not")


def _load(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_SIZE:
        raise EvidenceError(f"a bundle of {len(data)} bytes; at most {MAX_SIZE} are looked at")
    if data.count(b"{") + data.count(b"[") > _MAX_DEPTH_BYTES:
        raise EvidenceError("this is no bundle: it has too many parts")
    try:
        told = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"this is no bundle: it is not JSON ({error})") from None
    return _object(told)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a field stands twice")
    return dict(pairs)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EvidenceError("this is no bundle: a part of it is not a JSON object")
    return value


def _vtpm(kind: Kind, told: dict[str, Any]) -> Vtpm:
    numbers = {name: _number(told[name], 1 << bits) for name, bits in _HISTORY.items()}
    certified = (b"", b"") if kind is Kind.THIRD_PARTY else (_decode(told["ek_certificate"]), _decode(told["ek_ca"]))
    return Vtpm(_decode(told["ek"]), *certified, History(**numbers))


def _number(value: object, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError("a number is missing")
    return value


def _quote(told: dict[str, Any]) -> VtpmQuote:
    pcrs = {str(bank): _pcrs(values) for bank, values in told["pcrs"].items()}
    return VtpmQuote(_decode(told["ak"]), _decode(told["quote"]), _decode(told["signature"]), pcrs)


def _host(told: dict[str, Any]) -> Host:
    return Host(
        statement=_decode(told["statement"]),
        approval=_decode(told["approval"]),
        log=_decode(told["log"]),
        quote=_decode(told["quote"]),
        signature=_decode(told["signature"]),
        pcrs=_pcrs(told["pcrs"]),
    )


def _chain(told: object) -> tuple[bytes, ...]:
    if not isinstance(told, list) or not 0 < len(told) <= _MAX_CHAIN:
        raise EvidenceError(f"a voucher has 1 to {_MAX_CHAIN} certificates")
    return tuple(_decode(each) for each in told)


def _pack_pcrs(values: Mapping[int, bytes]) -> dict[str, str]:
    return {str(pcr): _encode(values[pcr]) for pcr in sorted(values)}


def _pcrs(told: Any) -> dict[int, bytes]:
    return {int(pcr): _decode(value) for pcr, value in told.items()}


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("not in base64")
    data = base64.b64decode(text, validate=True)
    if _encode(data) != text:
        raise ValueError("not in base64 as it is written here")
    return data
