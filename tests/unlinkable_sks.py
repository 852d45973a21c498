"""What certificates of signing keys give away: whether somebody who only sees them can tell which are of one host.

Each field must be the same in all certificates of an authority and month, or different in every one of them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization


def fields(der: bytes) -> dict[str, bytes]:
    """Everything that a certificate says, by name."""
    found = x509.load_der_x509_certificate(der)
    extensions = {f"extension {each.oid.dotted_string}": each.value.public_bytes() for each in found.extensions}
    critical = ",".join(f"{each.oid.dotted_string}:{each.critical}" for each in found.extensions)
    spki = found.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return {
        "version": found.version.name.encode(),
        "serial": found.serial_number.to_bytes(20),
        "issuer": found.issuer.public_bytes(),
        "subject": found.subject.public_bytes(),
        "from": str(found.not_valid_before_utc).encode(),
        "until": str(found.not_valid_after_utc).encode(),
        "algorithm": found.signature_algorithm_oid.dotted_string.encode(),
        "extensions": critical.encode(),
        "key": spki,
        "signature": found.signature,
        "rest": _rest(found, spki),
        **extensions,
    }


def linking(hosts: Sequence[Sequence[bytes]]) -> list[str]:
    """Fields that are neither the same in all certificates nor different in each.

    ``hosts``: for each host its certificates (DER).
    """
    all_ = [fields(der) for host in hosts for der in host]
    found = []
    for name in sorted({name for each in all_ for name in each}):
        values = Counter(each.get(name) for each in all_)
        if len(values) not in (1, len(all_)):
            found.append(name)
    return found


def _rest(found: x509.Certificate, spki: bytes) -> bytes:
    """All bytes that are signed behind the serial number, without the key."""
    serial = found.serial_number.to_bytes((found.serial_number.bit_length() + 8) // 8)
    return found.tbs_certificate_bytes.split(serial, 1)[1].replace(spki, b"")


def main() -> int:
    """``python -m tests.unlinkable_sks DIR DIR...``: a directory of certificates (*.der) for each host."""
    hosts = [[path.read_bytes() for path in sorted(Path(name).glob("*.der"))] for name in sys.argv[1:]]
    found = linking(hosts)
    print("\n".join(found) or f"nothing links {sum(map(len, hosts))} certificates to {len(hosts)} hosts")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
