"""The authority's directory, and vtpmctl authority and key on it: what is written, what is refused, what is shown."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from manager_vm.ctl import actions, main, statements
from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import approval, envelope, group_register, operator
from manager_vm.trust.authority import AuthorityDirectory
from manager_vm.trust.group import Hierarchy
from manager_vm.trust.operator import Role
from manager_vm.trust.pcrs import capped
from manager_vm.trust.signing import SigningKey, VerifyKey

PCRS = {pcr: bytes([pcr]) * 32 for pcr in (4, 9, 11, 12, 13)}
TOLD = {"bank": "sha256", "pcrs": {str(pcr): value.hex() for pcr, value in PCRS.items()}}
KEYS = [SigningKey.create().public for _ in range(3)]


@pytest.fixture
def authority(tmp_path: Path) -> AuthorityDirectory:
    """A new one."""
    return AuthorityDirectory.init(tmp_path / "authority")


def files(directory: Path) -> set[str]:
    """Paths of all files below it."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


# -- the directory --------------------------------------------------------------------------------------------


def test_an_authority_is_a_private_directory_with_a_key_and_its_public_key(authority: AuthorityDirectory) -> None:
    assert files(authority.path) == {"authority.key", "authority.pub", "authority.pem"}
    assert (mode(authority.path), mode(authority.path / "authority.key")) == (0o700, 0o600)
    assert VerifyKey.load(authority.path / "authority.pub").id == authority.public.id
    assert SigningKey.load(authority.path / "authority.key").public.id == authority.public.id
    assert AuthorityDirectory.open(authority.path).public.id == authority.public.id


def test_an_authority_is_never_overwritten(authority: AuthorityDirectory) -> None:
    before = (authority.path / "authority.key").read_bytes()
    with pytest.raises(ConfigError, match="has an authority already"):
        AuthorityDirectory.init(authority.path)
    assert (authority.path / "authority.key").read_bytes() == before


def test_an_authority_needs_a_directory_of_its_own(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="not empty"):
        AuthorityDirectory.init(tmp_path)
    with pytest.raises(ConfigError, match="cannot make"):
        AuthorityDirectory.init(tmp_path / "mine")
    with pytest.raises(ConfigError, match="No such file"):
        AuthorityDirectory.init(tmp_path / "none" / "authority")


def test_an_interrupted_init_is_completed_when_it_is_opened(authority: AuthorityDirectory) -> None:
    (authority.path / "authority.pub").unlink()
    (authority.path / "revocations").rmdir()
    assert AuthorityDirectory.open(authority.path).public.id == authority.public.id
    assert VerifyKey.load(authority.path / "authority.pub").id == authority.public.id


@pytest.mark.parametrize("name", ["", "authority.key"])
@pytest.mark.parametrize("bits", [0o040, 0o004, 0o020, 0o001])
def test_what_others_can_open_is_refused(authority: AuthorityDirectory, name: str, bits: int) -> None:
    path = authority.path / name
    path.chmod(mode(path) | bits)
    with pytest.raises(ConfigError, match="open to other users; chmod go="):
        AuthorityDirectory.open(authority.path)


def test_what_belongs_to_another_user_is_refused(
    authority: AuthorityDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: authority.path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match=r"belongs to user .*, not to you; run as its owner"):
        AuthorityDirectory.open(authority.path)


def test_what_is_no_authority_is_refused_with_what_to_do(tmp_path: Path, authority: AuthorityDirectory) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match=f"make one with 'vtpmctl authority init {empty}'"):
        AuthorityDirectory.open(empty)
    with pytest.raises(ConfigError, match="No such file"):
        AuthorityDirectory.open(tmp_path / "none")
    (authority.path / "authority.pub").write_bytes(KEYS[0].pem)
    with pytest.raises(ConfigError, match=r"authority.pub .* does not belong to authority.key"):
        AuthorityDirectory.open(authority.path)
    (authority.path / "authority.key").write_text("no key")
    with pytest.raises(ConfigError, match="holds no private key"):
        AuthorityDirectory.open(authority.path)


def test_a_file_is_synced_before_it_has_its_name_and_its_folder_after(
    authority: AuthorityDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real_sync, real_link = os.fsync, os.link

    def sync(fd: int) -> None:
        seen.append(f"sync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        real_sync(fd)

    def link(source: Path, target: Path) -> None:
        seen.append(f"link {target.name}")
        real_link(source, target)

    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr("os.link", link)
    authority.approve("image", PCRS)
    assert seen == ["sync 0.json.tmp", "link 0.json", "sync approvals"]
    assert "approvals/0.json.tmp" not in files(authority.path)


def test_a_full_disk_leaves_no_statement_and_no_used_number(
    authority: AuthorityDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(ConfigError, match="No space left on device"):
            authority.approve("image", PCRS)
        with pytest.raises(ConfigError, match="No space left on device"):
            SigningKey.create().store(authority.path / "other.key")
    assert not (authority.path / "other.key").exists()
    assert authority.used() == set()
    assert authority.approve("image", PCRS).name == "0.json"


# -- approvals and revocations --------------------------------------------------------------------------------


def test_approvals_are_numbered_upwards_and_each_says_what_was_asked(authority: AuthorityDirectory) -> None:
    for number in range(3):
        path = authority.approve(f"image {number}", PCRS)
        assert path == authority.path / "approvals" / f"{number}.json"
        found = approval.verify(path.read_bytes(), authority.public)
        assert (found.number, found.image, found.pcrs) == (number, f"image {number}", PCRS)


def test_a_number_is_used_once(authority: AuthorityDirectory) -> None:
    first = authority.approve("image", PCRS, 7)
    before = first.read_bytes()
    with pytest.raises(ConfigError, match="number 7 is used already"):
        authority.approve("other", PCRS, 7)
    assert first.read_bytes() == before
    assert authority.approve("next", PCRS).name == "8.json"
    assert authority.approve("gap", PCRS, 3).name == "3.json"
    assert authority.approve("next again", PCRS).name == "9.json"


def test_a_revoked_number_is_used_even_if_nothing_had_it(authority: AuthorityDirectory) -> None:
    authority.revoke([4], "typing error")
    assert authority.approve("image", PCRS).name == "5.json"
    with pytest.raises(ConfigError, match="number 4 is used already"):
        authority.approve("image", PCRS, 4)


@pytest.mark.parametrize("number", [-1, 64])
def test_a_number_out_of_range_is_refused(authority: AuthorityDirectory, number: int) -> None:
    with pytest.raises(ConfigError, match=f"approval number {number}"):
        authority.approve("image", PCRS, number)
    assert authority.approved() == set()


def test_the_65th_approval_is_refused(authority: AuthorityDirectory) -> None:
    authority.approve("image", PCRS, 63)
    with pytest.raises(ConfigError, match="63 was the last; name a free one with --number: 0, 1, 2"):
        authority.approve("image", PCRS)
    for number in range(63):
        authority.approve("image", PCRS, number)
    with pytest.raises(ConfigError, match="all 64 approvals of this authority are used; make a new authority"):
        authority.approve("image", PCRS)
    assert authority.approved() == set(range(64))


def test_revocations_are_numbered_in_the_order_in_which_they_were_made(authority: AuthorityDirectory) -> None:
    first, second = authority.revoke([3, 5], "old"), authority.revoke(below=3, reason="minimum")
    assert (first.name, second.name) == ("0.json", "1.json")
    assert approval.numbers(approval.verify_revocation(first.read_bytes(), authority.public)) == [3, 5]
    assert approval.numbers(approval.verify_revocation(second.read_bytes(), authority.public)) == [0, 1, 2]
    assert authority.revoked() == {0, 1, 2, 3, 5}


@pytest.mark.parametrize(("numbers", "below"), [([], 0), ([64], 0), ([-1], 0), ([], 65), ([], -1), ([], 10**9)])
def test_a_revocation_of_nothing_or_out_of_range_is_refused(
    authority: AuthorityDirectory, numbers: list[int], below: int
) -> None:
    with pytest.raises(ConfigError):
        authority.revoke(numbers, "", below=below)
    assert authority.revoked() == set()


def test_a_directory_that_was_changed_is_noticed(authority: AuthorityDirectory, tmp_path: Path) -> None:
    path = authority.revoke([3], "old")
    other = AuthorityDirectory.init(tmp_path / "other")
    shutil.copyfile(other.revoke([4], "forged"), path)
    with pytest.raises(EvidenceError, match=r"revocations/0.json: .*; restore the authority's directory from its copy"):
        authority.approve("image", PCRS)


def test_other_files_in_the_directory_do_no_harm(authority: AuthorityDirectory) -> None:
    for name in ("x.json", "0.json.tmp", "-1.json", "1.txt", "9" * 50 + ".json", "\u0661.json"):
        (authority.path / "approvals" / name).touch()
    assert authority.approve("image", PCRS).name == "0.json"


# -- operators ------------------------------------------------------------------------------------------------


def test_a_group_is_signed_with_growing_serials_and_never_changes_hands(authority: AuthorityDirectory) -> None:
    paths = [group_register.enroll(authority, name, KEYS[0], Hierarchy.SK) for name in ("acme", "a.b", "acme")]
    assert [path.name for path in paths] == ["acme.json", "a.b.json", "acme.json"]
    found = group_register.groups(AuthorityDirectory.open(authority.path))
    assert {name: (each.serial, each.authority.id) for name, each in found.items()} == {
        "acme": (3, KEYS[0].id),
        "a.b": (2, KEYS[0].id),
    }
    with pytest.raises(ConfigError, match="never changes hands"):
        group_register.enroll(authority, "acme", KEYS[1], Hierarchy.SK)
    with pytest.raises(ConfigError, match="an authority of its own"):
        group_register.enroll(authority, "own", authority.public, Hierarchy.SK)


@pytest.mark.parametrize(
    "options",
    [
        ["--operator", "x", "--key", "x.pub"],
        ["--operator", "x", "--role", "admin"],
        ["--operator", "x", "--key", "x.pub", "--role", "admin", "--authority", "x.pub"],
        ["--operator", "x", "--key", "x.pub", "--role", "admin", "--hierarchy", "sk"],
        ["--group", "x"],
        ["--group", "x", "--authority", "x.pub", "--role", "admin"],
        ["--group", "x", "--authority", "x.pub", "--key", "x.pub"],
    ],
    ids=" ".join,
)
def test_an_enrolment_of_one_kind_takes_no_option_of_the_other(
    authority: AuthorityDirectory, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main.main(["authority", "enroll", str(authority.path), *options]) == ConfigError.exit_code
    assert re.search(r"belong to --|--(operator|group) needs", capsys.readouterr().err)


def test_an_operator_is_enrolled_in_a_file_of_that_name(authority: AuthorityDirectory) -> None:
    for name in ("alice", "..", ".tmp-x", "a" * 63):
        path = authority.enroll_operator(name, SigningKey.create().public, Role.AUDITOR, "night")
        assert path == authority.path / "operators" / f"{name}.json"
        found = operator.verify(path.read_bytes(), authority.public)
        assert (found.name, found.role, found.description) == (name, Role.AUDITOR, "night")
    assert authority.operators().keys() == {"alice", "..", ".tmp-x", "a" * 63}


@pytest.mark.parametrize("name", ["../authority", "a/b", "", "a b"])
def test_a_name_that_leads_elsewhere_is_refused(authority: AuthorityDirectory, name: str) -> None:
    before = files(authority.path)
    with pytest.raises(ConfigError, match="no operator's name"):
        authority.enroll_operator(name, KEYS[0], Role.ADMIN)
    with pytest.raises(ConfigError, match=r"no operator .* is enrolled here"):
        authority.remove_operator(name)
    assert files(authority.path) == before


def test_each_enrolment_has_a_higher_serial_than_all_before(authority: AuthorityDirectory) -> None:
    serials = []
    for name, key in (("alice", KEYS[0]), ("bob", KEYS[1]), ("alice", KEYS[0])):
        path = authority.enroll_operator(name, key, Role.OPERATOR)
        serials.append(operator.verify(path.read_bytes(), authority.public).serial)
    authority.remove_operator("alice")
    path = authority.enroll_operator("alice", KEYS[2], Role.ADMIN)
    serials.append(operator.verify(path.read_bytes(), authority.public).serial)
    assert serials == [1, 2, 3, 4]


def test_the_same_key_again_changes_the_role(authority: AuthorityDirectory) -> None:
    authority.enroll_operator("alice", KEYS[0], Role.ADMIN)
    authority.enroll_operator("alice", KEYS[0], Role.AUDITOR)
    assert authority.operators()["alice"].role is Role.AUDITOR


def test_name_and_key_belong_together_until_they_are_removed(authority: AuthorityDirectory) -> None:
    authority.enroll_operator("alice", KEYS[0], Role.ADMIN)
    with pytest.raises(ConfigError, match="operator alice has another key; first 'vtpmctl authority remove'"):
        authority.enroll_operator("alice", KEYS[1], Role.ADMIN)
    with pytest.raises(ConfigError, match="operator alice has this key"):
        authority.enroll_operator("bob", KEYS[0], Role.ADMIN)
    removal = authority.remove_operator("alice", "left")
    assert operator.verify_removal(removal.read_bytes(), authority.public) == KEYS[0].id
    for name in ("alice", "bob"):
        with pytest.raises(ConfigError, match="this key was removed, for ever"):
            authority.enroll_operator(name, KEYS[0], Role.ADMIN)
    authority.enroll_operator("alice", KEYS[1], Role.ADMIN)
    assert authority.operators()["alice"].key.id == KEYS[1].id


def test_the_authoritys_own_key_is_no_operators(authority: AuthorityDirectory) -> None:
    with pytest.raises(ConfigError, match="the authority's own key"):
        authority.enroll_operator("root", authority.public, Role.ADMIN)


def test_an_interrupted_removal_is_completed_by_the_next(
    authority: AuthorityDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise OSError(5, "Input/output error")

    enrolment = authority.enroll_operator("alice", KEYS[0], Role.ADMIN)
    with monkeypatch.context() as patched:
        patched.setattr("os.rename", crash)
        with pytest.raises(ConfigError, match="Input/output error"):
            authority.remove_operator("alice", "left")
    assert enrolment.exists()
    removal = authority.remove_operator("alice", "left")
    assert not enrolment.exists()
    assert operator.verify_removal(removal.read_bytes(), authority.public) == KEYS[0].id


# -- vtpmctl --------------------------------------------------------------------------------------------------


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, without a manager, with pcrs.json in it and an image."""
    monkeypatch.delenv("VTPM_MANAGER", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("pcrs.json").write_text(json.dumps(TOLD))
    Path("image").mkdir()
    Path("image/uki.efi").write_bytes(b"kernel")
    Path("image/pcrs.json").write_text(json.dumps({**TOLD, "uki": hashlib.sha256(b"kernel").hexdigest()}))
    Path("image/image.json").write_text(json.dumps({"kind": "manager", "profile": "debug", "root_hash": "ab" * 32}))
    return tmp_path


def ctl(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    """What vtpmctl --json prints when it ends with ``code``."""
    capsys.readouterr()
    assert main.main([*argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *argv: str, code: int = ConfigError.exit_code) -> str:
    """The sentence with which it ends."""
    said: str = ctl(capsys, *argv, code=code)["error"]["text"]
    return said


def test_from_a_new_authority_to_an_approved_image_and_back(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ctl(capsys, "authority", "init", "a")
    key = VerifyKey.load(Path(made["public"]))
    assert made == {"directory": "a", "public": "a/authority.pub", "key_id": key.id}
    approved = ctl(capsys, "authority", "approve", "a", "--image", "image")
    assert (approved["file"], approved["number"]) == ("a/approvals/0.json", 0)
    assert approved["image"] == "manager debug " + "ab" * 32
    assert approved["pcrs"] == TOLD["pcrs"]
    assert approved["after_cap"] == {"11": capped(PCRS[11]).hex()}
    assert approved["policy"] == approval.verify(Path(approved["file"]).read_bytes(), key).policy.hex()
    named = ctl(capsys, "authority", "approve", "a", "--pcrs", "pcrs.json", "--name", "release 7", "--number", "6")
    assert (named["number"], named["image"]) == (6, "release 7")
    revoked = ctl(capsys, "authority", "revoke", "a", "--below", "6", "--reason", "old")
    assert revoked == {"file": "a/revocations/0.json", "revoked": [0, 1, 2, 3, 4, 5], "left": [6]}
    revoked = ctl(capsys, "authority", "revoke", "a", "--number", "6", "9", "--reason", "bad")
    assert revoked == {"file": "a/revocations/1.json", "revoked": [6, 9], "left": []}


def test_from_a_new_key_to_an_operator_and_back(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ctl(capsys, "authority", "init", "a")
    made = ctl(capsys, "key", "new", "alice.key")
    assert (mode(Path("alice.key")), mode(Path("alice.key.pub")) & 0o600) == (0o600, 0o600)
    assert VerifyKey.load(Path("alice.key.pub")).id == SigningKey.load(Path("alice.key")).public.id == made["key_id"]
    enroll = ["authority", "enroll", "a", "--operator", "alice", "--key", "alice.key.pub", "--role", "admin"]
    told = {"file": "a/operators/alice.json", "operator": "alice", "role": "admin", "key_id": made["key_id"]}
    assert ctl(capsys, *enroll) == told
    removed = ctl(capsys, "authority", "remove", "a", "--operator", "alice", "--reason", "left")
    assert removed["file"] == f"a/removals/{made['key_id']}.json"
    assert "removed, for ever" in fails(capsys, *enroll)


def test_no_key_is_overwritten(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ctl(capsys, "key", "new", "k")
    before = {name: Path(name).read_bytes() for name in ("k", "k.pub")}
    assert "k.pub is there already" in fails(capsys, "key", "new", "k")
    Path("k.pub").unlink()
    assert "cannot write the key k: File exists" in fails(capsys, "key", "new", "k")
    assert Path("k").read_bytes() == before["k"] and not Path("k.pub").exists()


def test_expected_values_of_another_build_are_not_approved(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ctl(capsys, "authority", "init", "a")
    Path("image/uki.efi").write_bytes(b"newer kernel")
    text = fails(capsys, "authority", "approve", "a", "--image", "image")
    assert "is not of the uki.efi beside it" in text and "./build.sh image" in text
    assert files(Path("a/approvals")) == set()


PCR_FILES = [
    "",
    "[]",
    "{}",
    "{" * 10_000,
    "\xff",
    '{"bank": "sha256"}',
    json.dumps({**TOLD, "bank": "sha1"}),
    *(
        json.dumps({"bank": "sha256", "pcrs": pcrs})
        for pcrs in ("", {"4": 1}, {"x": "00"}, {"4": "zz"}, {"4": "00"}, {"4": None})
    ),
    json.dumps({"bank": "sha256", "pcrs": {str(pcr): "00" * 32 for pcr in (0, *PCRS)}}),
]


@pytest.mark.parametrize("text", PCR_FILES, ids=range(len(PCR_FILES)))
def test_a_file_without_the_right_pcr_values_is_refused(
    there: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    ctl(capsys, "authority", "init", "a")
    Path("pcrs.json").write_text(text, encoding="latin-1")
    assert fails(capsys, "authority", "approve", "a", "--pcrs", "pcrs.json")
    assert files(Path("a/approvals")) == set()


@pytest.mark.parametrize("missing", ["image.json", "pcrs.json", "uki.efi"])
def test_an_image_that_lacks_a_file_is_refused_with_what_makes_it(
    there: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    ctl(capsys, "authority", "init", "a")
    (there / "image" / missing).unlink()
    text = fails(capsys, "authority", "approve", "a", "--image", "image")
    assert f"image/{missing}" in text and "'./build.sh image' makes it" in text


def test_showing_says_whether_the_signature_is_good(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        ctl(capsys, "authority", "init", name)
    made = ctl(capsys, "authority", "approve", "a", "--pcrs", "pcrs.json", "--name", "release 7")
    shown = ctl(capsys, "authority", "show", made["file"])
    assert (shown["kind"], shown["verified"], shown["statement"]["image"]) == ("approval", False, "release 7")
    assert shown["verdict"].startswith("NOT verified: name the authority's public key") and "meaning" not in shown
    shown = ctl(capsys, "authority", "show", made["file"], "--authority", "a/authority.pub")
    assert shown["verified"] is True and shown["verdict"] == "verified: signed by a/authority.pub"
    assert shown["meaning"]["policy"] == made["policy"]
    shown = ctl(capsys, "authority", "show", made["file"], "--authority", "b/authority.pub", code=6)
    assert shown["verified"] is False and shown["verdict"].startswith("NOT verified: this approval is not signed")
    assert "meaning" not in shown


def test_every_kind_of_statement_can_be_shown(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = AuthorityDirectory.init(there / "a")
    enrolment = authority.enroll_operator("alice", KEYS[0], Role.AUDITOR).read_bytes()
    for kind, statement, meaning in (
        ("revocation", authority.revoke([1, 2], "old").read_bytes(), {"revoked": [1, 2]}),
        ("operator", enrolment, {"operator": "alice", "may": actions.ROLES["auditor"], "key_id": KEYS[0].id}),
        ("operator-removal", authority.remove_operator("alice").read_bytes(), {"removed": KEYS[0].id}),
    ):
        Path("statement").write_bytes(statement)
        shown = ctl(capsys, "authority", "show", "statement", "--authority", "a/authority.pub")
        assert (shown["kind"], shown["verified"], shown["meaning"]) == (kind, True, meaning)


def test_a_kind_that_this_version_does_not_know_is_shown_but_not_verified(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = AuthorityDirectory.init(there / "a")
    key = SigningKey.load(authority.path / "authority.key")
    Path("statement").write_bytes(envelope.sign("later", {"x": 1}, key))
    shown = ctl(capsys, "authority", "show", "statement", "--authority", "a/authority.pub", code=6)
    assert shown["statement"] == {"x": 1} and "knows no statement of the kind 'later'" in shown["verdict"]


def test_what_is_no_statement_cannot_be_shown(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("statement").write_bytes(b"hello")
    assert "no statement" in fails(capsys, "authority", "show", "statement", code=6)
    assert "No such file" in fails(capsys, "authority", "show", "none")


def test_a_forged_statement_cannot_write_to_the_terminal(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = {"\x1b[2J": "\x1b]0;evil\x07", "started": "soon", "nested": {"\x9b": [{"\x1b": "\ud800"}]}}
    Path("statement").write_bytes(envelope.sign("approval", evil, SigningKey.create()))
    assert main.main(["authority", "show", "statement"]) == 0
    text = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "NOT verified" in text


def test_without_json_a_result_is_fields(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["authority", "init", "a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["directory", "public", "key_id"]


def test_the_roles_of_the_help_are_those_of_the_statements() -> None:
    assert list(actions.ROLES) == [role.value for role in Role]


def test_every_action_of_the_help_can_be_performed() -> None:
    assert statements.ACTIONS.keys() == {(verb, action) for verb, each in actions.ACTIONS.items() for action in each}
