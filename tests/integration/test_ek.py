"""The EKs are those of the TCG templates, and the certificates are the manager CA's, for exactly them."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tests.integration.harness import Guest, Manager

# kind -> (what tpm2_createek calls it, its index): templates L-1, L-2, H-3
KINDS = {"rsa2048": ("rsa", "0x1c00002"), "ecc-p256": ("ecc", "0x1c0000a"), "ecc-p384": ("ecc384", "0x1c00016")}
CHAIN = "0x1c00100"


@pytest.fixture
def guest(manager: Manager) -> Guest:
    """A guest on vTPM "a"."""
    manager.add("a", "b")
    return manager.guest("a")


def openssl(*argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(("openssl", *argv), input=stdin, capture_output=True)


def certificate(manager: Manager, name: str, *options: str) -> bytes:
    """PEM, as vtpmctl prints it."""
    pem: str = manager.ctl("ek-cert", name, *options)["pem"]
    return pem.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_the_ek_is_the_one_that_createek_makes(manager: Manager, guest: Guest, kind: str) -> None:
    guest.run("tpm2_createek", "-G", KINDS[kind][0], "-c", "ek.ctx", "-u", "ek.pub")
    guest.run("tpm2_readpublic", "-c", "ek.ctx", "-n", "ek.name", "-f", "pem", "-o", "ek.pem")
    assert (guest.files / "ek.name").read_bytes().hex() == manager.show("a")["ek_names"][kind]
    public = openssl("x509", "-noout", "-pubkey", stdin=certificate(manager, "a", "--key", kind)).stdout
    assert public == (guest.files / "ek.pem").read_bytes()
    other = openssl("x509", "-noout", "-pubkey", stdin=certificate(manager, "b", "--key", kind)).stdout
    assert public != other


@pytest.mark.parametrize("kind", KINDS)
def test_the_guest_finds_its_certificate_in_the_nv_index_of_the_profile(
    manager: Manager, guest: Guest, kind: str
) -> None:
    der = guest.run("tpm2_nvread", KINDS[kind][1])
    assert openssl("x509", "-inform", "der", stdin=der).stdout == certificate(manager, "a", "--key", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_certificate_verifies_against_this_manager_and_no_other(
    manager: Manager, guest: Guest, kind: str, tmp_path: Path
) -> None:
    ca, ek, foreign = (tmp_path / name for name in ("ca.pem", "ek.pem", "foreign.pem"))
    ca.write_bytes(certificate(manager, "a", "--ca"))
    ek.write_bytes(certificate(manager, "a", "--key", kind))
    make_foreign_ca(foreign)
    good = openssl("verify", "-x509_strict", "-CAfile", str(ca), str(ek))
    assert good.returncode == 0, good.stderr
    assert openssl("verify", "-CAfile", str(foreign), str(ek)).returncode != 0
    text = openssl("x509", "-noout", "-text", stdin=ek.read_bytes()).stdout.decode()
    for part in ("2.23.133.8.1", "2.23.133.2.1 = id:00001014", "CA:FALSE", "9999"):
        assert part.replace(" ", "") in text.replace(" ", ""), text


def test_the_guest_finds_the_chain_in_nv_and_verifies_its_ek_with_it_alone(
    manager: Manager, guest: Guest, tmp_path: Path
) -> None:
    ca, ek = tmp_path / "ca.pem", tmp_path / "ek.pem"
    ca.write_bytes(openssl("x509", "-inform", "der", stdin=guest.run("tpm2_nvread", CHAIN)).stdout)
    assert ca.read_bytes() == certificate(manager, "a", "--ca")
    for _, index in KINDS.values():
        ek.write_bytes(openssl("x509", "-inform", "der", stdin=guest.run("tpm2_nvread", index)).stdout)
        assert openssl("verify", "-x509_strict", "-CAfile", str(ca), str(ek)).returncode == 0


def test_a_certificate_says_that_the_tpm_is_virtual_and_nothing_of_the_host(manager: Manager, guest: Guest) -> None:
    status = manager.ctl("status")
    for options in (*(("--key", kind) for kind in KINDS), ("--ca",)):
        text = openssl("x509", "-noout", "-text", stdin=certificate(manager, "a", *options)).stdout.decode()
        assert options == ("--ca",) or "vtpm-managervirtualTPM" in text.replace(" ", "")
        for word in (socket.gethostname(), status["manager"], "Authority Information Access", "CRL Distribution"):
            assert word not in text, text
        assert text.count("00:00:00 20") == (2 if options == ("--ca",) else 1)  # whole days


def test_the_nv_certificates_of_two_managers_differ_but_all_vtpms_of_one_have_one_ca(
    manager: Manager, guest: Guest
) -> None:
    assert certificate(manager, "a", "--ca") == certificate(manager, "b", "--ca")
    assert certificate(manager, "a") != certificate(manager, "b")


def test_a_credential_made_for_the_recorded_ek_is_opened_by_the_vtpm(guest: Guest) -> None:
    """What an EK is for: MakeCredential to it, ActivateCredential inside."""
    guest.run("tpm2_createek", "-G", "rsa", "-c", "ek.ctx", "-u", "ek.pub")
    guest.run("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-u", "ak.pub", "-n", "ak.name")
    (guest.files / "secret").write_bytes(b"12345678")
    name = (guest.files / "ak.name").read_bytes().hex()
    make = ("tpm2_makecredential", "-T", "none", "-e", "ek.pub", "-s", "secret", "-n", name, "-o", "credential")
    guest.run(*make)
    guest.run("tpm2_startauthsession", "--policy-session", "-S", "s.ctx")
    guest.run("tpm2_policysecret", "-S", "s.ctx", "-c", "e")
    guest.run(
        "tpm2_activatecredential",
        "-c",
        "ak.ctx",
        "-C",
        "ek.ctx",
        "-i",
        "credential",
        "-o",
        "out",
        "-P",
        "session:s.ctx",
    )
    assert (guest.files / "out").read_bytes() == b"12345678"


def make_foreign_ca(path: Path) -> None:
    """A CA certificate with the same subject and another key."""
    done = openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-days", "10"),
        *("-subj", "/CN=vTPM manager EK CA", "-keyout", str(path.with_suffix(".key")), "-out", str(path)),
    )
    assert done.returncode == 0, done.stderr
