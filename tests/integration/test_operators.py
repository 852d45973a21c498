"""Who may change what: signed requests, enrolled operators and their roles, at real managers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manager_vm.ctl.client import Client
from manager_vm.errors import ConfigError, EvidenceError, RemoteProtocolError, VtpmManagerError
from manager_vm.trust import local, operator, request
from manager_vm.trust.operator import Role
from manager_vm.trust.pcrs import BOUND_PCRS
from manager_vm.trust.signing import SigningKey
from manager_vm.wire.admin import Request, SignedRequest
from tests.integration.conftest import Make
from tests.integration.harness import Manager, Refused, until

CHANGING: list[tuple[str, dict[str, Any]]] = [
    ("create", {"name": "b"}),
    ("start", {"name": "a", "power_on": True}),
    ("stop", {"name": "a"}),
    ("destroy", {"name": "a"}),
    ("operator_add", {"statement": b""}),
    ("operator_remove", {"statement": b""}),
]


class People:
    """Keys and statements of people, signed by a manager's authority."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.authority = SigningKey.load(manager.authority / "authority.key")
        self._files = manager.directory.parent

    def key(self, name: str) -> SigningKey:
        """A new key, kept as NAME.key."""
        key = SigningKey.create()
        key.store(self._files / f"{name}.key")
        return key

    def statement(self, name: str, data: bytes) -> str:
        """A file with a statement."""
        (self._files / name).write_bytes(data)
        return str(self._files / name)

    def enrol(self, name: str, role: Role) -> SigningKey:
        """A new operator of the manager."""
        key = self.key(name)
        enrolment = operator.enroll(name, key.public, role, self.authority)
        self.manager.ctl("operator", "add", self.statement(f"{name}.json", enrolment))
        return key

    def remove(self, key: SigningKey) -> list[dict[str, Any]]:
        """Who is left."""
        left = self.manager.ctl(
            "operator", "remove", self.statement("gone.json", operator.remove(key.public, "left", self.authority))
        )
        assert isinstance(left, list)
        return left

    def ctl(self, name: str, *args: str) -> Any:
        """vtpmctl with somebody's key."""
        return self.manager.ctl("--key", str(self._files / f"{name}.key"), *args)


def signed(client: Client, key: SigningKey, verb: str, **args: Any) -> SignedRequest:
    """A request as the client would make it, not sent yet."""
    return request.sign(client._new_id(), key, client.call("challenge"), verb, args)


def send(client: Client, message: Request | SignedRequest) -> Any:
    """Send it as it is."""
    return client._exchange(message, None)


@pytest.fixture
def people(manager: Manager) -> People:
    """Of the running manager, which has a vTPM "a" that is off."""
    manager.ctl("create", "a")
    return People(manager)


@pytest.fixture
def client(people: People) -> Iterator[Client]:
    """A connection to its admin link that signs nothing by itself."""
    with Client.connect(people.manager.directory / "admin.sock") as client:
        yield client


def local_key(manager: Manager) -> SigningKey:
    """The key of the operator that dev has made."""
    return SigningKey.load(manager.authority / local.OPERATOR_KEY)


# -- signatures and freshness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "args"), CHANGING, ids=[verb for verb, _ in CHANGING])
def test_nothing_is_changed_by_a_request_that_nobody_has_signed(
    client: Client, people: People, verb: str, args: dict[str, Any]
) -> None:
    before = people.manager.ctl("list")
    with pytest.raises(EvidenceError, match="must be signed by an enrolled operator"):
        client.call(verb, **args)
    assert people.manager.ctl("list") == before


def test_reading_needs_no_signature(client: Client) -> None:
    assert client.call("status")["vtpms"] == {"off": 1}
    assert [row["name"] for row in client.call("list")] == ["a"]
    assert client.call("show", name="a")["state"] == "off"
    assert client.call("ek_cert", name="a")["ca"]


def test_a_request_is_performed_once_and_its_replay_is_refused(client: Client, people: People) -> None:
    message = signed(client, local_key(people.manager), "create", name="b")
    assert send(client, message)["name"] == "b"
    people.manager.ctl("destroy", "b", "--yes")
    with pytest.raises(EvidenceError, match="replay"):
        send(client, message)
    with people.manager.admin() as another, pytest.raises(EvidenceError, match="replay"):
        send(another, message)
    assert [row["name"] for row in people.manager.ctl("list")] == ["a"]


def test_a_request_whose_arguments_were_changed_is_refused(client: Client, people: People) -> None:
    message = signed(client, local_key(people.manager), "destroy", name="b")
    forged = SignedRequest(message.id, message.key, message.signature, message.signed.replace(b"\xa1b", b"\xa1a"))
    assert forged.signed != message.signed
    with pytest.raises(EvidenceError, match="not signed by key"):
        send(client, forged)
    assert [row["name"] for row in people.manager.ctl("list")] == ["a"]


def test_a_request_from_before_a_restart_is_refused_after_it(client: Client, people: People) -> None:
    message = signed(client, local_key(people.manager), "destroy", name="a")
    people.manager.stop()
    people.manager.start()
    with people.manager.admin() as again, pytest.raises(EvidenceError, match="answers no challenge of this manager"):
        send(again, message)


def test_a_request_for_one_manager_is_refused_by_another_of_the_same_authority(make: Make, people: People) -> None:
    directory = people.manager.directory.parent / "n"
    directory.mkdir(mode=0o711)
    other = Manager(directory).start()
    try:
        key = local_key(people.manager)
        assert other.authority == people.manager.authority
        with people.manager.admin() as here, other.admin() as there:
            message = signed(here, key, "create", name="b")
            with pytest.raises(EvidenceError, match="was signed for manager"):
                send(there, message)
            challenge = {**there.call("challenge"), "manager": here.call("status")["manager"]}
            with pytest.raises(EvidenceError, match="was signed for manager"):
                send(there, request.sign(1, key, challenge, "create", {"name": "b"}))
        assert other.ctl("list") == []
        assert other.ctl("create", "b")["name"] == "b"
    finally:
        other.stop()


def test_the_host_link_takes_no_signed_request(people: People) -> None:
    with people.manager.admin() as admin, Client.connect(people.manager.directory / "host.sock") as host:
        message = signed(admin, local_key(people.manager), "create", name="b")
        with pytest.raises(RemoteProtocolError, match="takes no signed requests"):
            send(host, message)


def test_a_flood_of_challenges_keeps_nobody_out_for_longer_than_it_lasts(client: Client, people: People) -> None:
    message = signed(client, local_key(people.manager), "create", name="b")
    for _ in range(request.MAX_NONCES):
        client.call("challenge")
    with pytest.raises(EvidenceError, match="answers no challenge"):
        send(client, message)
    assert people.manager.ctl("create", "b")["name"] == "b"


# -- people -----------------------------------------------------------------------------------------------------


def test_each_role_reaches_as_far_as_it_should(people: People) -> None:
    for role in Role:
        people.enrol(role, role)
    assert people.ctl("auditor", "operator", "list") == people.ctl("admin", "operator", "list")
    for verb in (("create", "b"), ("stop", "a"), ("destroy", "a", "--yes")):
        with pytest.raises(Refused, match="the role auditor may not ask for"):
            people.ctl("auditor", *verb)
    people.ctl("operator", "create", "b")
    people.ctl("operator", "start", "b", "--power-on")
    people.ctl("operator", "stop", "b")
    people.ctl("operator", "start", "b")
    people.ctl("operator", "destroy", "b", "--yes")
    with pytest.raises(Refused, match="the role operator may not ask for 'operator_add'") as refused:
        people.ctl("operator", "operator", "add", people.statement("x.json", b"{}"))
    assert refused.value.code == EvidenceError.exit_code
    people.ctl("admin", "operator", "add", str(people.manager.directory.parent / "auditor.json"))


def test_a_stranger_and_a_removed_operator_are_refused(people: People) -> None:
    people.key("eve")
    with pytest.raises(Refused, match="is not enrolled at this manager"):
        people.ctl("eve", "create", "b")
    bob = people.enrol("bob", Role.OPERATOR)
    people.ctl("bob", "create", "b")
    assert [each["name"] for each in people.remove(bob)] == ["local"]
    with pytest.raises(Refused, match="was removed"):
        people.ctl("bob", "create", "c")
    people.manager.stop()
    people.manager.start()
    with pytest.raises(Refused, match="was removed"):
        people.ctl("bob", "create", "c")
    with pytest.raises(Refused, match="was removed"):
        people.manager.ctl("operator", "add", str(people.manager.directory.parent / "bob.json"))


def test_nobody_is_enrolled_by_another_authority_and_the_last_admin_stays(people: People) -> None:
    eve = people.key("eve")
    foreign = operator.enroll("eve", eve.public, Role.ADMIN, SigningKey.create())
    with pytest.raises(Refused, match="not signed by anybody who is trusted"):
        people.manager.ctl("operator", "add", people.statement("eve.json", foreign))
    with pytest.raises(Refused, match="no admin would be left"):
        people.remove(local_key(people.manager))
    assert [each["name"] for each in people.manager.ctl("operator", "list")] == ["local"]


# -- provisioning -----------------------------------------------------------------------------------------------


@pytest.fixture
def new(make: Make) -> Manager:
    """A running manager without an authority, as an appliance's at its first start."""
    return make({"authority_dir": None}).start()


def order(made: local.LocalAuthority, value: int = 0) -> dict[str, Any]:
    """What a manager needs to be provisioned by this authority: here its TPM's PCRs are 0, nothing has measured."""
    approval = made.approve("this machine", {pcr: bytes([value]) * 32 for pcr in BOUND_PCRS})
    return {"authority": made.public.der, "operators": [made.enrolment], "approvals": [approval]}


def test_before_provisioning_a_manager_is_only_looked_at(new: Manager) -> None:
    assert new.ctl("status")["authority"] == ""
    with Client.connect(new.directory / "admin.sock") as client:
        for verb, args in CHANGING:
            with pytest.raises(ConfigError, match="provision first"):
                client.call(verb, **args)
        with pytest.raises(ConfigError, match="provision first"):
            send(client, SignedRequest(1, "", b"", b""))


def test_a_manager_is_provisioned_once_and_remembers_by_whom(new: Manager) -> None:
    made = local.open_or_make(new.authority)
    with Client.connect(new.directory / "admin.sock") as client:
        client.call("provision", **order(made))
    until(lambda: serves(new), what="the manager serves")
    assert new.ctl("status")["authority"] == made.public.id
    assert "PROVISIONED" in new.log() and made.public.id in new.log()
    assert [row["name"] for row in new.ctl("operator", "list")] == ["local"]
    new.ctl("create", "a")
    other = local.open_or_make(new.directory.parent / "other")
    for _ in range(2):
        with Client.connect(new.directory / "admin.sock") as client, pytest.raises(RemoteProtocolError):
            client.call("provision", **order(other))
        new.stop()
        new.start()
    assert new.ctl("status")["authority"] == made.public.id
    new.ctl("destroy", "a", "--yes")


def serves(manager: Manager) -> bool:
    """Whether it has been provisioned and is up."""
    try:
        return bool(manager.ctl("status")["authority"])
    except Refused:
        return False


def test_of_many_who_provision_at_once_one_succeeds(new: Manager) -> None:
    others = [local.open_or_make(new.directory.parent / f"x{index}") for index in range(4)]
    outcomes: list[str] = []

    def come(made: local.LocalAuthority) -> None:
        try:
            with Client.connect(new.directory / "admin.sock") as client:
                client.call("provision", **order(made))
            outcomes.append(made.public.id)
        except VtpmManagerError:
            outcomes.append("")

    threads = [threading.Thread(target=come, args=(made,)) for made in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: serves(new), what="the manager serves")
    assert sorted(outcomes)[:-1] == [""] * 3
    assert new.ctl("status")["authority"] == max(outcomes)


def test_what_is_no_provisioning_changes_nothing(new: Manager, tmp_path: Path) -> None:
    made, other = (local.open_or_make(tmp_path / name) for name in ("a", "b"))
    key = SigningKey.create().public
    auditor = operator.enroll("x", key, Role.AUDITOR, SigningKey.load(made.directory / "authority.key"))
    good = order(made)
    wrong: list[dict[str, Any]] = [
        {"authority": None},
        {"operators": None},
        {"operators": []},
        {"operators": [auditor]},
        {"operators": [other.enrolment]},
        {"operators": [made.enrolment, b""]},
        {"operators": {"a": made.enrolment}},
        {"approvals": []},
        {"authority": made.public.der[:-1]},
        {"authority": b""},
        {"authority": "key"},
        {"authority": other.public.der},
        {"approvals": order(made, 1)["approvals"]},
    ]
    with Client.connect(new.directory / "admin.sock") as client:
        for args in wrong:
            with pytest.raises(VtpmManagerError):
                client.call("provision", **{**good, **args})
        assert client.call("status")["authority"] == ""
        client.call("provision", **good)


# -- dev --------------------------------------------------------------------------------------------------------


def test_managers_that_start_at_once_share_the_authority_beside_them(make: Make) -> None:
    first = make(fresh=True)
    managers = [first]
    for name in "no":
        directory = first.directory.parent / name
        directory.mkdir(mode=0o711)
        managers.append(Manager(directory))
    starts = [threading.Thread(target=manager.start) for manager in managers]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len({manager.ctl("status")["authority"] for manager in managers}) == 1
    assert len({manager.ctl("status")["manager"] for manager in managers}) == 3
    for manager in managers:
        manager.ctl("create", "a")
    for manager in managers[1:]:
        manager.stop()
    assert sorted(path.name for path in first.directory.parent.iterdir()) == ["authority", "m", "n", "o"]


def test_an_authority_that_others_could_change_is_refused_at_the_first_start(make: Make) -> None:
    manager = make(fresh=True)
    manager.authority.mkdir(mode=0o755)
    code, text = manager.refuse_to_start()
    assert code == ConfigError.exit_code and "must be a directory of this user with mode 0700" in text
    manager.authority.rmdir()
    manager.start()
    assert (manager.authority / "operator.key").exists()


def test_an_operators_key_is_named_by_option_or_environment(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    people.enrol("bob", Role.OPERATOR)
    (people.manager.authority / "operator.key").rename(people.manager.directory.parent / "moved.key")
    with pytest.raises(Refused, match="must be signed by an enrolled operator"):
        people.manager.ctl("create", "b")
    people.ctl("bob", "create", "b")
    monkeypatch.setenv("VTPM_OPERATOR_KEY", str(people.manager.directory.parent / "bob.key"))
    people.manager.ctl("create", "c")
