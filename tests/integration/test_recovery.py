"""A manager whose hardware TPM is gone goes on with another: by the recovery key and the authority's order alone."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any, ClassVar

import pytest

from manager_vm.errors import IntegrityError
from manager_vm.store import sealed
from manager_vm.trust import policy, recovery
from manager_vm.trust.authority import AuthorityDirectory
from manager_vm.trust.operator import Role
from manager_vm.trust.recovery_register import RecoveryRegister
from manager_vm.trust.signing import SigningKey, VerifyKey
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


# -- the recipient --------------------------------------------------------------------------------------------


def test_the_authority_alone_says_to_whom_keys_are_wrapped_and_never_goes_back(ready: Site) -> None:
    register, first = RecoveryRegister(ready.authority), ready.recipient
    newer, made = register.name_recipient(ready.key("second").public)
    mine = ready.path / "mine.json"
    mine.write_bytes(recovery.name_recipient(ready.key("mallory").public, 99, ready.alice))
    with pytest.raises(Refused, match="not signed by anybody who is trusted"):
        ready.ctl("recovery", "set", str(mine))
    bob = ready.key("bob")
    ready.ctl("operator", "add", str(ready.authority.enroll_operator("bob", bob.public, Role.OPERATOR)))
    with pytest.raises(Refused, match="the role operator may not ask"):
        ready.manager.ctl("--key", str(ready.path / "bob.key"), "recovery", "set", str(newer))
    assert ready.ctl("recovery", "set", str(newer))["recipient"] == made.key.id
    ready.ctl("recovery", "off")
    with pytest.raises(Refused, match="the authority has named another"):
        ready.ctl("recovery", "set", str(first))
    with pytest.raises(Refused, match="nothing to switch off"):
        ready.ctl("recovery", "off")
    told = ready.ctl("recovery", "set", str(newer))
    assert (told["recipient"], told["serial"], told["active"]) == (made.key.id, made.serial, True)
    assert [each["event"] for each in ready.ctl("audit")].count("recovery recipient") == 3


def test_each_commit_wraps_anew_and_an_old_disk_opens_with_the_recovery_key_alone(ready: Site) -> None:
    disks = []
    for name in ("a", "b", "c"):
        ready.ctl("create", name)
        disks.append((ready.manager.state / "manifest").read_bytes())
    ready.ctl("destroy", "a", "--yes")
    ready.manager.stop()
    found = [sealed.look(each) for each in disks]
    assert len({each.stanza for each in found}) == len({each.stanza[:65] for each in found}) == 3
    keys = [recovery.unwrap_keys(ready.holder, each.stanza, each.manager) for each in found]
    assert len({root.reveal() for root, _ in keys}) == 1 and len({store.reveal() for _, store in keys}) == 3
    opened = sealed.open_with(disks[0], keys[0][1])  # the documented power: what was destroyed is there
    assert [record.name for record in opened.vtpms.values()] == ["a"] and len(opened.keys) == 1
    with pytest.raises(IntegrityError, match="key table"):
        sealed.open_with(disks[0], keys[1][1])
    with pytest.raises(IntegrityError, match="another key"):
        recovery.unwrap_keys(ready.alice, found[0].stanza, found[0].manager)
    with pytest.raises(IntegrityError):  # a stanza of one disk in another: the associated data of the key table
        sealed.open_with(disks[0].replace(found[0].stanza, found[1].stanza), keys[0][1])


# -- which TPMs -----------------------------------------------------------------------------------------------


def test_a_tpm_of_another_manager_and_an_older_disk_on_its_own_tpm_are_refused_as_ever(ready: Site, make: Make) -> None:
    older = ready.path / "older"
    shutil.copytree(ready.manager.state, older)
    ready.ctl("create", "a")
    ready.manager.stop()
    shutil.copytree(ready.manager.state, newest := ready.path / "newest")
    shutil.rmtree(ready.manager.state)
    shutil.copytree(older, ready.manager.state)
    code, line = ready.manager.refuse_to_start()
    assert code == TRUST and "is not the anchored one" in line
    other = make().start()
    other.stop()
    shutil.rmtree(ready.manager.state)
    shutil.copytree(newest, ready.manager.state)
    shutil.rmtree(ready.manager.directory / "hwtpm")
    shutil.copytree(other.directory / "hwtpm", ready.manager.directory / "hwtpm")
    code, line = ready.manager.refuse_to_start()
    assert code == TRUST and "not the one that the root key is sealed to" in line


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_the_old_keyslot_is_not_needed(ready: Site, how: str) -> None:
    ready.ctl("create", "a")
    ready.manager.stop()
    keyslot = ready.manager.state / "keyslot"
    keyslot.unlink() if how == "missing" else keyslot.write_bytes(b"{}")
    said = ready.lose_tpm()
    assert how in ready.manager.ctl("status")["warnings"][-1]
    ready.recovered(ready.order(said))
    assert ready.manager.show("a")["generation"] == 2


def test_a_broken_audit_log_does_not_hinder_a_recovery(ready: Site) -> None:
    ready.manager.stop()
    (ready.manager.state / "audit.log").write_bytes(b"nonsense\n")
    ready.recovered(ready.order(ready.lose_tpm()))
    events = str(ready.ctl("audit"))
    assert "chain broken" in events and "recovered" in events


# -- secrets --------------------------------------------------------------------------------------------------


class Recorded(socket.socket):
    """A client's connection; what passes is kept."""

    passed: ClassVar[list[bytes]] = []

    def sendall(self, data: Any, *more: Any) -> None:
        self.passed.append(bytes(data))
        super().sendall(data, *more)

    def recv(self, *args: Any) -> bytes:
        data = super().recv(*args)
        self.passed.append(data)
        return data


def test_no_key_crosses_the_admin_link_or_lies_on_the_disk_in_clear(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, secrets, holder = make(), tmp_path / "secrets", SigningKey.create()
    manager.program = ["-m", "tests.integration.spying", str(manager.directory), str(secrets)]
    manager.start()
    register = RecoveryRegister(AuthorityDirectory.open(manager.authority))
    manager.ctl("recovery", "set", str(register.name_recipient(holder.public)[0]))
    manager.ctl("create", "a")
    manager.stop()
    outside = sealed.look((manager.state / "manifest").read_bytes())
    root, store = recovery.unwrap_keys(holder, outside.stanza, outside.manager)
    shutil.rmtree(manager.directory / "hwtpm")
    manager.start()
    waiting, said = manager.log().count("READY"), manager.ctl("status")["recovery"]
    ordered = register.order(said["manager"], said["from"], said["to"], "")[0].read_bytes()
    monkeypatch.setattr("socket.socket", Recorded)
    with manager.admin() as client:
        offer = client.call("recover_offer")
        receiver = VerifyKey.from_der(offer["key"])
        handover = recovery.hand_over(holder, offer["stanza"], offer["manager"], ordered, receiver)
        client.call("recover", order=ordered, approvals=[], handover=handover)
    monkeypatch.undo()
    until(lambda: manager.log().count("READY") == waiting + 2, 30, "READY")  # in its log, and printed
    assert manager.show("a")["generation"] == 2
    assert manager.ctl("platform", "show")["enrolled"]  # the new TPM, by dev's authority
    manager.stop()
    keys = {bytes.fromhex(line) for line in secrets.read_text().split()}
    assert {root.reveal(), store.reveal()} <= keys  # the spy knows what it should
    link = b"".join(Recorded.passed)
    assert handover in link and not [key for key in keys if key in link or key.hex().encode() in link]
    own = manager.directory / "hwtpm"
    for path in manager.directory.parent.rglob("*"):
        if path.is_file() and own not in path.parents:
            data = path.read_bytes()
            assert not [key for key in keys if key in data or key.hex().encode() in data], path
