"""Tenants' groups at real managers: their own authority, operators, EK certificates; what the platform keeps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from manager_vm.errors import EvidenceError, StateError, UnknownVtpmError
from tests.integration.harness import Manager, Refused
from tests.integration.tenants import Tenants


@pytest.fixture
def tenants(manager: Manager) -> Tenants:
    """Two groups, "acme" with a vTPM "a", and "beta"; a vTPM "d" of the platform."""
    tenants = Tenants(manager)
    tenants.add("acme")
    tenants.add("beta")
    tenants.ctl("acme", "create", "a", "--group", "acme")
    manager.ctl("create", "d")
    return tenants


def rows(manager: Manager) -> dict[str, int]:
    """vTPMs by group."""
    return {row["name"]: row["vtpms"] for row in manager.ctl("group", "list")}


def test_a_tenants_vtpm_is_made_started_and_destroyed_by_the_tenants_operators_only(tenants: Tenants) -> None:
    manager = tenants.manager
    assert rows(manager) == {"default": 1, "acme": 1, "beta": 0}
    assert {row["name"]: row["group"] for row in manager.ctl("list")} == {"a": "acme", "d": "default"}
    for args in (("create", "b", "--group", "acme"), ("start", "a", "--power-on"), ("destroy", "a", "--yes")):
        with pytest.raises(Refused, match="is about group 'acme'") as refused:
            manager.ctl(*args)  # with the key of the platform's admin
        assert refused.value.code == EvidenceError.exit_code
        with pytest.raises(Refused, match="is about group 'acme'"):
            tenants.ctl("beta", *args)
    tenants.ctl("acme", "create", "b", "--group", "acme")
    for verb in (("start", "--power-on"), ("stop",), ("start",), ("stop",), ("destroy", "--yes")):
        tenants.ctl("acme", verb[0], "b", *verb[1:])
    assert rows(manager)["acme"] == 1


def test_a_tenants_operators_have_no_say_in_what_is_not_theirs(tenants: Tenants) -> None:
    outside = (
        ("create", "x"),
        ("start", "d", "--power-on"),
        ("stop", "d"),
        ("destroy", "d", "--yes"),
        ("group", "remove", "beta"),
        ("audit",),
    )
    for args in outside:
        with pytest.raises(Refused, match="is an operator of group 'acme'"):
            tenants.ctl("acme", *args)
    with pytest.raises(Refused, match="there is no vTPM 'nobody'") as refused:
        tenants.ctl("acme", "destroy", "nobody", "--yes")
    assert refused.value.code == UnknownVtpmError.exit_code


def test_the_platforms_admin_can_stop_a_tenants_vtpm_and_the_log_says_who_did_what(tenants: Tenants) -> None:
    manager = tenants.manager
    tenants.ctl("acme", "start", "a", "--power-on")
    assert manager.ctl("stop", "a")["state"] == "parked"
    with pytest.raises(Refused, match="is about group 'acme'"):
        manager.ctl("start", "a")
    assert tenants.ctl("acme", "start", "a")["state"] == "running"
    told = [entry for entry in manager.ctl("audit", "--last", "100") if entry["event"] == "request"]
    who = [(entry["operator"], entry.get("group", ""), entry["verb"]) for entry in told if entry["verb"] != "group_add"]
    assert who == [
        ("acme", "acme", "create"),
        ("local", "", "create"),
        ("acme", "acme", "start"),
        ("local", "", "stop"),
        ("acme", "acme", "start"),
    ]


def test_a_tenants_operators_are_enrolled_by_its_authority_and_handed_in_by_its_admin_or_the_platforms(
    tenants: Tenants,
) -> None:
    manager = tenants.manager
    carol, dave = tenants.person("carol", "operator", "acme"), tenants.person("dave", "auditor", "acme")
    tenants.ctl("acme", "operator", "add", carol, "--group", "acme")
    manager.ctl("operator", "add", dave, "--group", "acme")
    assert [row["name"] for row in tenants.ctl("dave", "operator", "list", "--group", "acme")] == [
        "acme",
        "carol",
        "dave",
    ]
    with pytest.raises(Refused, match="not signed by anybody who is trusted"):
        manager.ctl("operator", "add", carol)
    with pytest.raises(Refused, match="not signed by anybody who is trusted"):
        manager.ctl("operator", "add", str(manager.authority / "operators/local.json"), "--group", "acme")
    with pytest.raises(Refused, match="the role operator may not ask for 'operator_add'"):
        tenants.ctl("carol", "operator", "add", dave, "--group", "acme")
    tenants.ctl("carol", "start", "a", "--power-on")
    gone = manager.ctl("authority", "remove", str(tenants.files / "acme"), "--operator", "carol", "--reason", "left")
    tenants.ctl("acme", "operator", "remove", gone["file"], "--group", "acme")
    with pytest.raises(Refused, match="was removed"):
        tenants.ctl("carol", "stop", "a")


def test_a_group_with_vtpms_stays_and_groups_survive_a_restart(tenants: Tenants) -> None:
    manager = tenants.manager
    with pytest.raises(Refused, match="group 'acme' has 1 vTPMs") as refused:
        manager.ctl("group", "remove", "acme")
    assert refused.value.code == StateError.exit_code
    before = manager.ctl("ek-cert", "a", "--ca")
    manager.stop()
    manager.start()
    assert manager.ctl("ek-cert", "a", "--ca") == before
    tenants.ctl("acme", "destroy", "a", "--yes")
    assert [row["name"] for row in manager.ctl("group", "remove", "acme")] == ["default", "beta"]
    with pytest.raises(Refused, match="is not enrolled at this manager"):
        tenants.ctl("acme", "create", "a", "--group", "acme")


def test_a_group_of_another_authority_is_refused(tenants: Tenants) -> None:
    stranger = tenants.files / "stranger"
    tenants.manager.ctl("authority", "init", str(stranger))
    pub = str(tenants.files / "acme/authority.pub")
    made = tenants.manager.ctl("authority", "enroll", str(stranger), "--group", "evil", "--authority", pub)
    with pytest.raises(Refused, match="not signed by anybody who is trusted"):
        tenants.manager.ctl("group", "add", made["file"])
    shown = tenants.manager.ctl("authority", "show", made["file"], "--authority", str(stranger / "authority.pub"))
    assert shown["verified"] and shown["meaning"]["group"] == "evil" and shown["meaning"]["hierarchy"] == "sk"


def test_the_hierarchy_ek_is_refused_on_the_command_line(tenants: Tenants) -> None:
    pub = str(tenants.files / "acme/authority.pub")
    args = ("authority", "enroll", str(tenants.manager.authority), "--group", "x", "--authority", pub)
    with pytest.raises(Refused, match="R9"):
        tenants.manager.ctl(*args, "--hierarchy", "ek")


@pytest.mark.parametrize("kind", ["rsa2048", "ecc-p256", "ecc-p384"])
def test_a_tenants_ek_certificate_verifies_with_its_groups_ca_and_with_no_other(
    tenants: Tenants, kind: str, tmp_path: Path
) -> None:
    manager = tenants.manager
    tenants.ctl("beta", "create", "b", "--group", "beta")
    names = {"a": "acme", "b": "beta", "d": "default"}
    files = {}
    for vtpm in names:
        for what, options in (("ek", ("--key", kind)), ("ca", ("--ca",)), ("chain", ("--chain", "--key", kind))):
            files[vtpm, what] = tmp_path / f"{vtpm}-{what}.pem"
            files[vtpm, what].write_text(manager.ctl("ek-cert", vtpm, *options)["pem"])
        assert files[vtpm, "chain"].read_text() == files[vtpm, "ek"].read_text() + files[vtpm, "ca"].read_text()
    for vtpm in names:
        for other in names:
            argv = ("openssl", "verify", "-x509_strict", "-CAfile", files[other, "ca"], files[vtpm, "ek"])
            done = subprocess.run(argv, capture_output=True)
            assert (done.returncode == 0) == (vtpm == other), done.stderr
