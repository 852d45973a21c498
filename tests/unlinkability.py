"""Who can link what: takes certificates and credentials of several vTPMs apart and compares every value in them.

    python -m tests.unlinkability PLATFORM/VTPM=FILE[,FILE...] ...

A value that some vTPMs share and others do not links those. One that all share says only which authority it is; each
such field must stand in keys/HIERARCHIES.md, or it could single out what is not here to compare with.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import utils

from manager_vm.errors import EvidenceError
from manager_vm.trust import tpm_structures, vak
from manager_vm.trust.tpm_structures import Quote

PAGE = Path(__file__).parents[1] / "manager_vm" / "keys" / "HIERARCHIES.md"
_LONG = 16  # bytes from which a value links wherever it stands, not only in the same field
Field = tuple[str, bytes]  # what it is, its value


@dataclass(frozen=True, slots=True)
class Finding:
    """``fields``: what carries the value; ``vtpms``: all that have it."""

    fields: tuple[str, ...]
    vtpms: frozenset[str]


def shared(found: Mapping[str, Sequence[bytes]]) -> list[Finding]:
    """Every value that two or more vTPMs have. ``found``: vTPM -> its files."""
    where: dict[bytes, set[Field]] = defaultdict(set)
    for vtpm, files in found.items():
        for data in files:
            for name, value in take_apart(data):
                key = value if len(value) >= _LONG else name.encode() + b"\0" + value
                where[key].add((name, vtpm.encode()))
    findings = []
    for places in where.values():
        vtpms = frozenset(vtpm.decode() for _, vtpm in places)
        if len(vtpms) > 1:
            findings.append(Finding(tuple(sorted({name for name, _ in places})), vtpms))
    return findings


def links(found: Mapping[str, Sequence[bytes]]) -> list[Finding]:
    """Values that some vTPMs share and others do not."""
    return [each for each in shared(found) if each.vtpms != frozenset(found)]


def constants(found: Mapping[str, Sequence[bytes]]) -> set[str]:
    """Fields with a value that all vTPMs share."""
    return {name for each in shared(found) if each.vtpms == frozenset(found) for name in each.fields}


def allowed() -> set[str]:
    """Fields that the page names as the same for all vTPMs of an authority."""
    lines = PAGE.read_text().split("## The same for all")[1].split("\n## ")[0].splitlines()
    return {line.split("`")[1] for line in lines if line.startswith("| `")}


# -- taking apart -----------------------------------------------------------------------------------------------------


def take_apart(data: bytes) -> Iterator[Field]:
    """All fields of a certificate (DER or PEM) or of a credential."""
    if data.startswith(b"-----BEGIN"):
        for certificate in x509.load_pem_x509_certificates(data):
            yield from _certificate("ek", certificate)
    elif data.startswith(b"{"):
        yield from _credential(data)
    else:
        yield from _certificate("ek", x509.load_der_x509_certificate(data))


def _credential(data: bytes) -> Iterator[Field]:
    found = vak.unpack(data)
    yield "hierarchy", found.hierarchy.value.encode()
    yield from _public("ak", found.ak)
    if found.statement:
        yield from _statement(found.statement)
    for index, der in enumerate(found.chain):
        yield from _certificate(f"chain{index}", x509.load_der_x509_certificate(der))
    if found.ek:
        yield from _public("ek", found.ek)
    if found.attested:
        yield from _attested(found.attested)
        yield "evidence.signature", found.signature


def _public(name: str, area: bytes) -> Iterator[Field]:
    found = tpm_structures.parse_public(area)
    yield f"{name}.attributes", int(found.attributes).to_bytes(4)
    yield f"{name}.policy", found.policy
    yield f"{name}.parameters", found.parameters
    yield f"{name}.name", found.name
    yield from _key(name, found.key)


def _key(name: str, key: object) -> Iterator[Field]:
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    yield f"{name}.key", spki
    yield f"{name}.key", hashlib.sha256(spki).hexdigest().encode()  # its id in our statements


def _statement(data: bytes) -> Iterator[Field]:
    envelope = json.loads(data)
    yield "statement.kind", envelope["payloadType"].encode()
    for signature in envelope["signatures"]:
        yield "statement.signer", signature["keyid"].encode()
        yield "statement.signature", base64.b64decode(signature["sig"])
    for name, value in json.loads(base64.b64decode(envelope["payload"])).items():
        try:
            yield f"statement.{name}", bytes.fromhex(str(value))
        except ValueError:
            yield f"statement.{name}", str(value).encode()


def _certificate(name: str, found: x509.Certificate) -> Iterator[Field]:
    is_ca = any(each.oid == x509.BasicConstraints.oid and each.value.ca for each in found.extensions)
    name = f"{name}.ca" if is_ca and name == "ek" else name
    yield f"{name}.serial", found.serial_number.to_bytes(20)
    yield f"{name}.issuer", found.issuer.public_bytes()
    yield f"{name}.subject", found.subject.public_bytes()
    yield f"{name}.not-before", found.not_valid_before_utc.isoformat().encode()
    yield f"{name}.not-after", found.not_valid_after_utc.isoformat().encode()
    yield from _key(name, found.public_key())
    for half in utils.decode_dss_signature(found.signature):
        yield f"{name}.signature", half.to_bytes(48)
    for extension in found.extensions:
        value = extension.value.public_bytes()
        if isinstance(extension.value, x509.SubjectKeyIdentifier):
            value = extension.value.digest
        if isinstance(extension.value, x509.AuthorityKeyIdentifier):
            value = extension.value.key_identifier or b""
        yield f"{name}.extension {extension.oid.dotted_string}", value


def _attested(data: bytes) -> Iterator[Field]:
    found = tpm_structures.parse_attest(data)
    yield "evidence.signer", found.qualified_signer
    yield "evidence.qualifying", found.extra_data
    yield "evidence.resets", found.clock_info[8:16]  # resetCount, restartCount: obfuscated, by the same value each time
    yield "evidence.firmware", found.firmware.to_bytes(8)
    if isinstance(found.attested, Quote):
        yield "evidence.pcrs", found.attested.digest
        yield "evidence.selection", repr(found.attested.pcr_select).encode()


def main(words: Sequence[str]) -> int:
    """Print what links whom; 1 if anything does, or if all share what the page does not name."""
    found = {}
    for word in words:
        vtpm, _, files = word.partition("=")
        found[vtpm] = [Path(each).read_bytes() for each in files.split(",")]
    if len(found) < 2:
        print(__doc__)
        return 2
    linking, unnamed = links(found), constants(found) - allowed()
    for each in linking:
        print(f"{', '.join(sorted(each.vtpms))} share {', '.join(each.fields)}")
    for name in sorted(unnamed):
        print(f"all share {name}, which {PAGE.name} does not name")
    return int(bool(linking or unnamed))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (EvidenceError, OSError) as error:
        sys.exit(f"unlinkability: {error}")
