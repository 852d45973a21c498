"""vtpmctl certify and credential show at a real manager: the AK of a guest, vouched for by its group's hierarchy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manager_vm.errors import ConfigError, EvidenceError
from tests import unlinkability
from tests.integration.harness import Guest, Manager, Refused
from tests.integration.tenants import Tenants

HANDLE = "0x81010002"
HIERARCHIES = {"sk": "default", "ak-vak": "acme", "ak-vek": "beta", "independent": "gamma"}


def make_ak(guest: Guest) -> bytes:
    """An AK of the guest at HANDLE; its Name."""
    guest.run("tpm2_createek", "-G", "ecc", "-c", "ek.ctx", "-u", "ek.pub")
    guest.run(
        "tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-n", "ak.name"
    )
    guest.run("tpm2_evictcontrol", "-C", "o", "-c", "ak.ctx", HANDLE)
    return (guest.files / "ak.name").read_bytes()


@pytest.fixture
def tenants(manager: Manager) -> Tenants:
    """Groups acme, beta, gamma of other hierarchies than the default one; each has a running vTPM of its name."""
    made = Tenants(manager)
    for kind, group in HIERARCHIES.items():
        if group != "default":
            made.add(group, "--hierarchy", kind)
            made.ctl(group, "create", group, "--group", group)
        else:
            manager.ctl("create", group)
        manager.ctl("attach", group)
    return made


def certify(tenants: Tenants, group: str, *options: str) -> None:
    """By an operator of that group."""
    args = ("certify", group, "--ak", HANDLE, *options)
    if group == "default":
        tenants.manager.ctl(*args)
    else:
        tenants.ctl(group, *args)


def test_the_ak_of_each_group_is_vouched_for_by_its_hierarchy(tenants: Tenants, tmp_path: Path) -> None:
    manager, public = tenants.manager, str(tenants.manager.authority / "authority.pub")
    for kind, group in HIERARCHIES.items():
        name, out = make_ak(manager.guest(group)), tmp_path / f"{group}.json"
        certify(tenants, group, "--out", str(out))
        if kind == "independent":
            assert json.loads(out.read_text()).keys() == {"ak", "ek", "ek_certificate", "ek_ca"}
            continue
        shown = manager.ctl("credential", "show", str(out), "--authority", public)
        assert (shown["verified"], shown["hierarchy"], shown["ak"]) == (True, kind, name.hex())
        assert bool(shown["platform"]) == (kind != "sk")
        assert manager.ctl("credential", "show", str(out))["verified"] is False
        stranger = str(tenants.files / "acme/authority.pub")
        done = manager.vtpmctl("credential", "show", str(out), "--authority", stranger)
        assert done.returncode == EvidenceError.exit_code and "NOT verified" in done.stdout


def test_an_outside_ca_is_asked_with_a_request_and_answers_with_a_certificate(tenants: Tenants, tmp_path: Path) -> None:
    guest, key, out = tenants.manager.guest("gamma"), tmp_path / "ca.key", tmp_path / "gamma.json"
    make_ak(guest)
    guest.run("tpm2_readpublic", "-c", HANDLE, "-f", "pem", "-o", "ak.pem")
    ca, certificate = tmp_path / "ca.pem", tmp_path / "ak.crt"
    new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    guest.run(*new, "-days", "10", "-subj", "/CN=outside", "-keyout", str(key), "-out", str(ca))
    signed = ("openssl", "x509", "-new", "-subj", "/CN=vAK", "-force_pubkey", str(guest.files / "ak.pem"))
    guest.run(*signed, "-CA", str(ca), "-CAkey", str(key), "-days", "10", "-out", str(certificate))
    certify(tenants, "gamma", "--response", str(certificate), "--out", str(out))
    assert tenants.manager.ctl("credential", "show", str(out), "--root", str(ca))["verified"]
    with pytest.raises(Refused, match="for another key"):
        certify(tenants, "gamma", "--response", str(ca))
    make_ak(tenants.manager.guest("acme"))
    with pytest.raises(Refused, match="asks no outside CA"):
        certify(tenants, "acme", "--response", str(certificate))


def test_only_an_ak_of_a_running_vtpm_is_certified_and_only_for_its_groups_operators(tenants: Tenants) -> None:
    manager = tenants.manager
    with pytest.raises(Refused, match="has no key at handle"):
        manager.ctl("certify", "default", "--ak", "0x81010099")
    for handle in ("0x80000000", "0", "0x40000001"):
        with pytest.raises(Refused, match="persistent handle") as refused:
            manager.ctl("certify", "default", "--ak", handle)
        assert refused.value.code == ConfigError.exit_code
    guest = manager.guest("default")
    guest.run("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "other.ctx")
    guest.run("tpm2_evictcontrol", "-C", "o", "-c", "other.ctx", "0x81010003")
    with pytest.raises(Refused, match="it is no AK"):
        manager.ctl("certify", "default", "--ak", "0x81010003")
    make_ak(manager.guest("acme"))
    with pytest.raises(Refused, match="is about group 'acme'"):
        manager.ctl("certify", "acme", "--ak", HANDLE)
    manager.ctl("stop", "acme")
    with pytest.raises(Refused, match="only a running one can be asked"):
        certify(tenants, "acme")


def test_two_credentials_of_one_manager_are_not_linked_by_what_they_show(manager: Manager, tmp_path: Path) -> None:
    found = {}
    for name in ("a", "b", "c"):
        manager.add(name)
        make_ak(manager.guest(name))
        out = tmp_path / f"{name}.json"
        manager.ctl("certify", name, "--ak", HANDLE, "--out", str(out))
        found[name] = [out.read_bytes()]
    assert unlinkability.links(found) == []
    assert unlinkability.constants(found) - unlinkability.allowed() == set()
