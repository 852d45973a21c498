"""A manager whose hardware TPM is gone goes on with another: by the recovery key and the authority's order alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from manager_vm.store import sealed
from manager_vm.trust import policy, recovery
from manager_vm.trust.authority import AuthorityDirectory
from manager_vm.trust.operator import Role
from manager_vm.trust.recovery_register import RecoveryRegister
from manager_vm.trust.signing import SigningKey
from tests.integration.conftest import Make
from tests.integration.harness import Refused, until

ZERO = dict.fromkeys(policy.BOUND_PCRS, bytes(32))  # what a stand-in's PCRs are at its power-on
OTHER = ZERO | {9: b"\x09" * 32}
INDEX, SECRET, PERSISTENT = "0x1500001", bytes(range(32)), "0x81010001"
TRUST, STATE = 6, 13


class Site:
    """An authority, an operator, a recovery key; a provisioned manager whose keys are wrapped to that."""

    def __init__(self, make: Make, tmp_path: Path) -> None:
        self.path = tmp_path
        self.authority = AuthorityDirectory.init(tmp_path / "site")
        self.alice, self.holder = self.key("alice"), self.key("recovery")
        self.operator = self.authority.enroll_operator("alice", self.alice.public, Role.ADMIN)
        self.approval = self.authority.approve("now", ZERO)
        self.recipient, _ = RecoveryRegister(self.authority).name_recipient(self.holder.public)
        self.manager = make({"authority_dir": None})

    def key(self, name: str) -> SigningKey:
        key = SigningKey.create()
        key.store(self.path / f"{name}.key")
        return key

    def ctl(self, *args: str) -> Any:
        return self.manager.ctl("--key", str(self.path / "alice.key"), *args)

    def provision(self, *options: str) -> Site:
        self.manager.launch_waiting()
        public = str(self.authority.path / "authority.pub")
        self.ctl("provision", public, str(self.operator), "--approval", str(self.approval), *options)
        self.ready(2)
        return self

    def ready(self, count: int) -> None:
        until(lambda: self.manager.log().count("READY") >= count, 30, f"READY for the {count}. time")

    def lose_tpm(self) -> dict[str, Any]:
        """Stop, take another stand-in, start: what it says then must be ordered."""
        if self.manager.running:
            self.manager.stop()
        shutil.rmtree(self.manager.directory / "hwtpm")
        return self.wait()

    def wait(self) -> dict[str, Any]:
        self.manager.start()
        said: dict[str, Any] = self.manager.ctl("status")["recovery"]
        return said

    def order(self, said: dict[str, Any], **other: str) -> Path:
        way = {"manager": said["manager"], "old": said["from"], "new": said["to"], "reason": "it died", **other}
        return RecoveryRegister(self.authority).order(**way, again=True)[0]

    def recover(self, order: Path, *options: str, key: str = "recovery") -> Any:
        return self.manager.ctl("recover", "--key", str(self.path / f"{key}.key"), "--order", str(order), *options)

    def recovered(self, order: Path, *options: str) -> None:
        count = self.manager.log().count("READY")
        self.recover(order, *options)
        self.ready(count + 1)

    def disk(self) -> dict[str, bytes]:
        """What lies on the disk and in the TPM."""
        paths = [*self.manager.state.rglob("*"), *(self.manager.directory / "hwtpm").rglob("*.permall")]
        return {str(path): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture
def site(make: Make, tmp_path: Path) -> Site:
    return Site(make, tmp_path)


@pytest.fixture
def ready(site: Site) -> Site:
    """Provisioned with a recipient, serving."""
    return site.provision("--recovery", str(site.recipient))


def furnish(site: Site) -> None:
    """A vTPM with something in NV and a persistent key; its PCR 16 extended."""
    site.ctl("create", "a")
    site.ctl("create", "b")
    site.ctl("attach", "a")
    guest = site.manager.guest("a")
    guest.define(INDEX)
    guest.write(INDEX, SECRET)
    guest.run("tpm2_createprimary", "-C", "o", "-c", "primary.ctx")
    guest.run("tpm2_evictcontrol", "-C", "o", "-c", "primary.ctx", PERSISTENT)
    guest.run("tpm2_readpublic", "-c", PERSISTENT, "-n", "before.name")
    guest.extend(16)


def test_on_another_tpm_every_vtpm_is_back_a_generation_further_and_marked(ready: Site) -> None:
    furnish(ready)
    before = ready.manager.ctl("status")
    said = ready.lose_tpm()
    assert said["manager"] == before["manager"] and said["from"] != said["to"]
    status = ready.manager.ctl("status")
    assert "not the one that the root key is sealed to" in status["warnings"][-1]
    order = ready.order(said)
    ready.recovered(order)

    shown = ready.manager.show("a")
    assert (shown["generation"], ready.manager.show("b")["generation"]) == (2, 2)
    assert (shown["state"], ready.manager.show("b")["state"]) == ("failed", "off")
    assert "recovered from a disk that may be older" in shown["reason"]
    ready.ctl("boot", "a", "2")
    guest = ready.manager.guest("a")
    assert guest.read(INDEX) == SECRET
    guest.run("tpm2_readpublic", "-c", PERSISTENT, "-n", "after.name")
    assert (guest.files / "after.name").read_bytes() == (guest.files / "before.name").read_bytes()
    assert guest.pcr(16) == "00" * 32  # a park may have been used up already: nothing goes back in PCRs

    digest = recovery.verify_order(order.read_bytes(), ready.authority.public).id.hex()
    mark = {"from": said["from"], "order": digest}
    for marks in (shown["recovered"], ready.manager.ctl("status")["recovered"]):
        assert [{key: each[key] for key in mark} for each in marks] == [mark]
    told = ready.manager.ctl("recovery", "show")
    assert [each["srk"] for each in told["revoked_platforms"]] == [said["from"]] and told["active"]
    entries = ready.ctl("audit")
    assert "recovered" in str(entries) and digest in str(entries)
    ready.ctl("create", "c")
    assert ready.manager.show("c")["recovered"] == []


def test_the_mark_the_warning_and_the_new_tpm_stay(ready: Site) -> None:
    ready.ctl("create", "a")
    ready.recovered(ready.order(ready.lose_tpm()))
    ready.manager.stop()
    ready.manager.start()
    status = ready.manager.ctl("status")
    assert len(status["recovered"]) == 1 and "nothing proves that the disk was the newest" in status["warnings"][-1]
    assert not (ready.manager.state / "recovering").exists()
    with pytest.raises(Refused, match="nothing to recover") as refused:
        ready.recover(ready.authority.path / "recovery/2.json")
    assert refused.value.code == STATE
    ready.recovered(ready.order(ready.lose_tpm()))  # and again
    assert ready.manager.show("a")["generation"] == 3
    assert len(ready.manager.show("a")["recovered"]) == len(ready.manager.ctl("status")["recovered"]) == 2


def test_while_it_waits_only_status_and_recover_are_served(ready: Site) -> None:
    ready.lose_tpm()
    for verb in (("list",), ("create", "a"), ("operator", "list"), ("provision", *ready_to_provision(ready))):
        with pytest.raises(Refused, match="only 'status' and 'recover'") as refused:
            ready.ctl(*verb)
        assert refused.value.code == TRUST


def ready_to_provision(site: Site) -> tuple[str, ...]:
    return str(site.authority.path / "authority.pub"), str(site.operator), "--approval", str(site.approval)


def test_without_a_recipient_another_tpm_is_refused_as_ever(site: Site) -> None:
    site.provision()
    site.manager.stop()
    shutil.rmtree(site.manager.directory / "hwtpm")
    code, line = site.manager.refuse_to_start()
    assert code == TRUST and "not the one that the root key is sealed to" in line


def test_after_off_nobody_recovers_and_nothing_is_wrapped(ready: Site) -> None:
    assert sealed.look((ready.manager.state / "manifest").read_bytes()).stanza
    assert ready.ctl("recovery", "off")["active"] is False
    assert not sealed.look((ready.manager.state / "manifest").read_bytes()).stanza
    ready.manager.stop()
    shutil.rmtree(ready.manager.directory / "hwtpm")
    code, line = ready.manager.refuse_to_start()
    assert code == TRUST and "not the one" in line


def test_each_wrong_key_order_and_approval_is_refused_by_its_own_error_and_changes_nothing(ready: Site) -> None:
    ready.ctl("create", "a")
    said = ready.lose_tpm()
    before = ready.disk()
    stranger, elsewhere = AuthorityDirectory.init(ready.path / "stranger"), "000b" + "77" * 32
    good, ready.authority = ready.authority, stranger
    foreign = ready.order(said)
    ready.authority = good
    right = ready.order(said)
    forged = ready.path / "forged.json"
    forged.write_bytes(right.read_bytes().replace(b'"sig": "', b'"sig": "AAAA')[:-1])
    ready.key("mallory")
    refusals: list[tuple[Path, str, str]] = [
        (right, "mallory", "recovery stanza does not open: it is wrapped for another key"),
        (foreign, "recovery", "not signed by anybody who is trusted"),
        (forged, "recovery", "signature has 67 bytes"),
        (ready.order(said, manager="ab" * 32), "recovery", "this order is for manager abab"),
        (ready.order(said, old=elsewhere), "recovery", "it was recovered since, or never was there"),
        (
            RecoveryRegister(good).order(said["manager"], said["from"], elsewhere, "", again=True)[0],
            "recovery",
            "this order leads to the TPM with SRK 000b7777",
        ),
        (ready.recipient, "recovery", "this is no recovery "),
    ]
    for order, key, why in refusals:
        with pytest.raises(Refused, match=why) as refused:
            ready.recover(order, key=key)
        assert refused.value.code == TRUST, why
        assert ready.disk() == before, why
    good.revoke([0], "a bad image")
    with pytest.raises(Refused, match="revoked by this order"):
        ready.recover(ready.order(said))
    assert ready.disk() == before
    anew = good.approve("the same image again", ZERO)
    with pytest.raises(Refused, match="revoked by this order"):
        ready.recover(ready.order(said), "--approval", str(good.approve("another", OTHER)))
    ready.recovered(ready.order(said), "--approval", str(anew))
    assert {row["number"]: row["state"] for row in ready.ctl("approvals")}[0] == "revoked"  # as on the TPM before
