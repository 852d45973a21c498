"""From a state disk and a hardware TPM that nobody owns to a manager, and which images may then unseal its root key."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from manager_vm.trust import approval, policy
from manager_vm.trust.authority import AuthorityDirectory
from manager_vm.trust.operator import Role
from manager_vm.trust.signing import SigningKey
from tests.integration.conftest import Make
from tests.integration.harness import Refused, until

ZERO = dict.fromkeys(policy.BOUND_PCRS, bytes(32))  # what a stand-in's PCRs are at its power-on
OTHER = ZERO | {9: b"\x09" * 32}


class Site:
    """An authority with an operator of its own, and a manager that waits to be provisioned."""

    def __init__(self, make: Make, tmp_path: Path) -> None:
        self.authority = AuthorityDirectory.init(tmp_path / "site")
        self.path = tmp_path / "site"
        self.key = tmp_path / "alice.key"
        alice = SigningKey.create()
        alice.store(self.key)
        self.alice = self.authority.enroll_operator("alice", alice.public, Role.ADMIN)
        self.manager = make({"authority_dir": None})

    def ctl(self, *args: str) -> Any:
        return self.manager.ctl("--key", str(self.key), *args)

    def provision(self, *approvals: Path) -> Any:
        options = [word for each in approvals for word in ("--approval", str(each))]
        return self.ctl("provision", str(self.path / "authority.pub"), str(self.alice), *options)

    def start(self) -> Site:
        """Launched, provisioned, serving."""
        self.manager.launch_waiting()
        self.provision(self.authority.approve("now", ZERO))
        self.serving()
        return self

    def serving(self) -> None:
        until(lambda: self.manager.log().count("READY") > 1, 30, "READY after provisioning")


@pytest.fixture
def site(make: Make, tmp_path: Path) -> Site:
    return Site(make, tmp_path)


def test_before_it_is_provisioned_a_manager_serves_status_and_provision_only(site: Site) -> None:
    site.manager.launch_waiting()
    status = site.manager.ctl("status")
    assert (status["authority"], status["vtpms"]) == ("", {}) and "not provisioned" in status["warnings"][-1]
    for verb in (("create", "a"), ("list",), ("operator", "list")):
        with pytest.raises(Refused, match="no authority yet") as refused:
            site.ctl(*verb)
        assert refused.value.code == 3
    site.manager.stop()


def test_provisioning_happens_once_and_survives_restarts(site: Site) -> None:
    site.start()
    site.ctl("create", "a")
    with pytest.raises(Refused) as refused:
        site.provision(site.authority.approve("again", ZERO))
    assert refused.value.code in (3, 5)  # the reception is closed, and the desk knows no such verb
    site.manager.stop()
    site.manager.start()
    assert site.manager.show("a")["state"] == "off"
    audit = site.ctl("audit")
    assert "provisioned" in str(audit)


def test_an_approval_of_another_image_or_authority_does_not_provision(site: Site, tmp_path: Path) -> None:
    site.manager.launch_waiting()
    with pytest.raises(Refused, match="none of these approvals is for what has booted here") as refused:
        site.provision(site.authority.approve("other", OTHER))
    assert refused.value.code == 6
    stranger = AuthorityDirectory.init(tmp_path / "stranger")
    with pytest.raises(Refused, match="not signed by anybody who is trusted") as refused:
        site.provision(stranger.approve("now", ZERO))
    assert refused.value.code == 6
    assert not (site.manager.state / "keyslot").exists()  # nothing was sealed, the TPM belongs to nobody
    site.provision(site.authority.approve("now", ZERO))
    site.serving()


def test_an_enrolment_by_another_authority_is_refused_before_the_tpm_is_touched(site: Site, tmp_path: Path) -> None:
    site.manager.launch_waiting()
    stranger = AuthorityDirectory.init(tmp_path / "stranger")
    own, site.alice = site.alice, stranger.enroll_operator("alice", SigningKey.create().public, Role.ADMIN)
    with pytest.raises(Refused):
        site.provision(site.authority.approve("now", ZERO))
    assert not (site.manager.state / "keyslot").exists()
    site.alice = own
    site.provision(site.authority.approve("again", ZERO))
    site.serving()


def test_a_tpm_of_another_manager_is_refused(site: Site, make: Make, tmp_path: Path) -> None:
    site.start()
    site.manager.stop()
    other = make({"authority_dir": None})
    shutil.copytree(site.manager.directory / "hwtpm", other.directory / "hwtpm")
    other.launch_waiting()
    site.manager, first = other, site.manager
    with pytest.raises(Refused, match="belongs to another manager") as refused:
        site.provision(site.authority.approve("again", ZERO))
    assert refused.value.code == 7
    other.stop()
    assert first.state.exists()


def test_a_newer_image_needs_one_approval_and_no_new_seal(site: Site) -> None:
    site.start()
    sealed = (site.manager.state / "keyslot").read_bytes()
    site.ctl("create", "a")
    listed = site.ctl("approve", str(site.authority.approve("next", OTHER)))
    assert [row["number"] for row in listed] == [0, 1]
    with pytest.raises(Refused, match="would be left"):
        site.ctl("revoke", str(site.authority.revoke([0, 1], "both")))
    site.ctl("revoke", str(site.authority.revoke([1], "a bad one")))
    site.manager.stop()
    site.manager.start()
    assert (site.manager.state / "keyslot").read_bytes() == sealed
    assert site.manager.show("a")["state"] == "off"


def test_a_revoked_image_is_refused_by_the_tpm_and_its_approval_never_taken_again(site: Site) -> None:
    site.start()
    newer = site.authority.approve("next", OTHER)
    site.ctl("approve", str(newer))
    listed = site.ctl("revoke", str(site.authority.revoke(reason="too old", below=1)))
    assert [(row["number"], row["state"]) for row in listed] == [(0, "revoked"), (1, "approved")]
    with pytest.raises(Refused, match=r"approval 0 .* is revoked here, and stays so"):
        site.ctl("approve", str(site.path / "approvals/0.json"))
    site.manager.stop()
    code, line = site.manager.refuse_to_start()
    assert code == 6 and "approval 0 (now) is revoked, and the hardware TPM refuses it" in line
    for path in (site.manager.state / "approvals").iterdir():
        path.unlink()
    shutil.copy(site.path / "approvals/0.json", site.manager.state / "approvals/0.json")
    code, line = site.manager.refuse_to_start()
    assert code == 6 and "approval 0 (now) is revoked" in line
    again = site.authority.approve("the same image again", ZERO)
    shutil.copy(again, site.manager.state / "approvals")
    site.manager.start()


def test_a_forged_approval_on_the_disk_is_named_and_unseals_nothing(site: Site, tmp_path: Path) -> None:
    site.start()
    site.manager.stop()
    (site.manager.state / "approvals/0.json").unlink()
    stranger = AuthorityDirectory.init(tmp_path / "stranger")
    shutil.copy(stranger.approve("forged", ZERO), site.manager.state / "approvals/7.json")
    code, line = site.manager.refuse_to_start()
    assert code == 6
    assert "7.json: this approval is not signed by anybody who is trusted" in line
    assert "there is no approval of this image" in line
    moved = approval.approve(5, "a ticket for another number", ZERO, SigningKey.load(site.path / "authority.key"))
    (site.manager.state / "approvals/5.json").write_bytes(moved.replace(b'"payload": "', b'"payload": "AAAA'))
    assert site.manager.refuse_to_start()[0] == 6


def test_only_an_admin_approves_and_revokes(site: Site, tmp_path: Path) -> None:
    site.start()
    bob = SigningKey.create()
    bob.store(tmp_path / "bob.key")
    site.ctl("operator", "add", str(site.authority.enroll_operator("bob", bob.public, Role.OPERATOR)))
    statement = str(site.authority.approve("next", OTHER))
    with pytest.raises(Refused, match="the role operator may not ask") as refused:
        site.manager.ctl("--key", str(tmp_path / "bob.key"), "approve", statement)
    assert refused.value.code == 6
    assert len(site.manager.ctl("approvals")) == 1
