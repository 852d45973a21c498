"""ctl: what vtpmctl asks of which link, how it prints, what it completes, and that its help tells the truth."""

from __future__ import annotations

import base64
import json
import re
import shlex
import ssl
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from image.host import departure, pair
from manager_vm import errors, packages
from manager_vm.ctl import actions, command_line, completion, details, doctor, help, main, output, wiring
from manager_vm.ctl.client import sockets
from manager_vm.ctl.doctor import Level
from manager_vm.errors import ConfigError, VtpmManagerError
from manager_vm.server import desk, reception, verbs
from manager_vm.trust import local, rules
from manager_vm.trust.signing import SigningKey
from manager_vm.wire import audit
from manager_vm.wire.admin import Progress

# -- output ---------------------------------------------------------------------------------------------------

ROW = {"name": "web", "state": "running", "channel": "unix:/x", "boot": 12, "generation": 1, "live": True, "reason": ""}


def test_a_table_is_aligned_below_its_heading() -> None:
    short = {"name": "a-long-name", "state": "off", "live": False, "uuid": "not a column"}
    assert output.as_table([ROW, short]).splitlines() == [
        "NAME         GROUP  STATE    CHANNEL  BOOT  GENERATION  LIVE  REASON",
        "web          -      running  unix:/x  12    1           yes   -",
        "a-long-name  -      off      -        -     -           no    -",
    ]


def test_an_empty_table_says_so() -> None:
    assert output.as_table([]) == "no vTPMs"


def test_fields_are_a_line_each_and_nested_ones_stand_behind_a_dot() -> None:
    value = {"name": "web", "ek_names": {"rsa2048": "00ff", "deep": {"er": 1}}, "vtpms": {}, "pid": None}
    assert output.as_fields(value).splitlines() == [
        "name              web",
        "ek_names.rsa2048  00ff",
        "ek_names.deep.er  1",
        "vtpms             -",
        "pid               -",
    ]
    assert output.as_fields({}) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        (0, "0"),
        (1.5, "1.5"),
        (True, "yes"),
        (False, "no"),
        (b"\x01\xff", "01ff"),
        (["sha1", "sha256"], "sha1, sha256"),
        ([True, None], "yes, -"),
        ("text", "text"),
    ],
)
def test_values_are_written_for_people(value: object, text: str) -> None:
    assert output.as_fields({"k": value}) == f"k  {text}"


def test_the_start_time_is_a_date_with_its_time_zone() -> None:
    shown = datetime.fromisoformat(output.as_fields({"started": 1_750_000_000.9}).split()[1])
    assert shown.tzinfo is not None
    assert shown.timestamp() == 1_750_000_000


def test_json_has_sorted_keys_and_bytes_as_base64() -> None:
    value = {"b": [1, None, True], "a": {"der": bytes(range(256))}}
    text = output.as_json(value)
    assert text.index('"a"') < text.index('"b"')
    again = json.loads(text)
    assert again == {"b": [1, None, True], "a": {"der": base64.b64encode(bytes(range(256))).decode()}}
    assert (output.as_json([]), output.as_json(None)) == ("[]", "null")


# -- completion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_is_offered_every_verb_and_the_names_of_vtpms(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f'"{" ".join(sorted(help.VERBS))}"' in script
    assert "names 2>/dev/null" in script
    assert all(" ".join(each) in script for each in actions.ACTIONS.values())
    assert " ".join(actions.ROLES) in script
    assert "{{" not in script and "{verbs}" not in script


def test_zsh_gets_the_script_of_bash_behind_its_own_preparation() -> None:
    bash, zsh = (completion.script(shell, ["list"], ["show"], {"key": ["new"]}, ["admin"]) for shell in ("bash", "zsh"))
    assert zsh.endswith(bash)
    assert zsh.removesuffix(bash).startswith("autoload -U +X bashcompinit && bashcompinit")


# -- attach --print qemu --------------------------------------------------------------------------------------


def options(text: str) -> list[str]:
    """The lines that are no comment: each is one QEMU option."""
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("channel", ["ivshmem", "ivshmem:0000:05:00.0"])
def test_a_guest_with_ivshmem_is_told_of_its_viommu_and_its_device(channel: str) -> None:
    text = wiring.qemu_arguments("web", channel)
    assert options(text) == [
        "-M q35,kernel-irqchip=split",
        "-device intel-iommu,intremap=on",
        "-chardev socket,id=vtpm-pair,path=/run/vtpm/web.sock",
        f"-device ivshmem-doorbell,chardev=vtpm-pair,vectors={pair.VECTORS}",
    ]
    assert "intel_iommu=on" in text
    assert "python -m image.host pair /run/vtpm/web.sock" in text
    assert text.splitlines()[-1].endswith("guest_frontend device ivshmem")


def test_a_guest_with_a_port_is_told_which_one_and_connects_again() -> None:
    text = wiring.qemu_arguments("web", "virtio-serial:org.vtpm.guest.web")
    assert options(text) == [
        "-device virtio-serial-pci",
        "-chardev socket,id=vtpm-port,path=/run/vtpm/web.sock,reconnect=1",
        "-device virtserialport,chardev=vtpm-port,name=org.vtpm.tpm",
    ]
    assert "with its own port org.vtpm.guest.web)" in text
    assert text.splitlines()[-1].endswith("guest_frontend device virtio-serial:org.vtpm.tpm")
    assert "with its own port NAME)" in wiring.qemu_arguments("web", "virtio-serial")


def test_a_vm_that_knows_nothing_is_given_a_tpm_device_in_front_of_the_shim(capsys: pytest.CaptureFixture[str]) -> None:
    assert options(wiring.qemu_arguments("web", "shim:web")) == [
        "-chardev socket,id=vtpm,path=/run/vtpm-qemu/web.sock",
        "-tpmdev emulator,id=vtpm,chardev=vtpm",
        "-device tpm-crb,tpmdev=vtpm",
    ]
    assert main.main(["attach", "web", "shim", "--print", "libvirt"]) == 0
    device = ElementTree.fromstring(capsys.readouterr().out.partition("-->")[2])
    assert (device.tag, device.get("model")) == ("tpm", "tpm-crb")
    backend = device[0]
    assert (backend.tag, backend.get("type")) == ("backend", "external")
    assert backend[0].attrib == {"type": "unix", "mode": "connect", "path": "/run/vtpm-qemu/web.sock"}
    assert main.main(["attach", "web", "ivshmem", "--print", "libvirt"]) == 3


@pytest.mark.parametrize("channel", ["unix:/run/x.sock", "xen:1/2", "", "IVSHMEM"])
def test_no_other_channel_can_be_given_to_a_qemu(channel: str) -> None:
    with pytest.raises(ConfigError, match="virtio-serial:NAME or shim; unix:PATH is for processes of this host"):
        wiring.qemu_arguments("web", channel)


def test_printing_asks_no_manager(manager: FakeManager, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["attach", "web", "--print", "qemu"]) == 0
    assert capsys.readouterr().out == wiring.qemu_arguments("web", "ivshmem") + "\n"
    assert main.main(["attach", "web", "unix:/x", "--print", "qemu"]) == ConfigError.exit_code
    assert manager.asked == []


# -- the command line against a manager that only remembers what it was asked ------------------------------------


class FakeManager:
    """Stands for ``Client``: every connection leads here. ``answer`` is returned or, if it is an error, raised."""

    def __init__(self) -> None:
        self.asked: list[tuple[Path, str, dict[str, Any]]] = []
        self.answer: Any = None
        self.steps: list[Progress] = []

    def connect(self, path: Path, timeout: float, key: SigningKey | None = None) -> FakeManager:
        self._path, self.timeout, self.key = path, timeout, key
        return self

    def call(self, verb: str, on_progress: Any = None, **args: Any) -> Any:
        self.asked.append((self._path, verb, args))
        for step in self.steps:
            on_progress(step)
        if isinstance(self.answer, VtpmManagerError):
            raise self.answer
        return self.answer

    def __enter__(self) -> FakeManager:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> FakeManager:
    """The manager that VTPM_MANAGER names."""
    fake = FakeManager()
    monkeypatch.setattr(main, "Client", fake)
    monkeypatch.setenv("VTPM_MANAGER", "/run/vtpm/admin.sock")
    return fake


ADMIN, HOST = Path("/run/vtpm/admin.sock"), Path("/run/vtpm/host.sock")
OTHERS = {
    "challenge",
    "provision",
    "operator_add",
    "operator_remove",
    "group_add",
    "standing_add",
    "certify",
    "approve",
    "revoke",
    "audit",
    "recover_offer",
    "recover",
    "migrate",
    "receipt",
    "snapshots",
    "snapshots_keep",
    "snapshot_drop",
    "revert",
}  # see the tests about them
STEPS = {"quote", "recovery_set", "platform_evidence", "platform_activate", "platform_install"}
SERVED = {*verbs.ADMIN, *desk.OWN, *reception.SERVED}
REQUESTS: list[tuple[str, Path, str, dict[str, Any]]] = [
    ("status", ADMIN, "status", {}),
    ("list", ADMIN, "list", {}),
    ("names", ADMIN, "list", {}),
    ("create web", ADMIN, "create", {"name": "web"}),
    ("create web --group acme", ADMIN, "create", {"name": "web", "group": "acme"}),
    ("create web --vm none", ADMIN, "create", {"name": "web", "vm": "none"}),
    ("bind web 6f2c", ADMIN, "bind", {"name": "web", "vm": "6f2c"}),
    ("operator list --group acme", ADMIN, "operators", {"group": "acme"}),
    ("group list", ADMIN, "groups", {}),
    ("standing list", ADMIN, "standings", {}),
    ("group remove acme", ADMIN, "group_remove", {"name": "acme"}),
    ("show web", ADMIN, "show", {"name": "web"}),
    ("start web", ADMIN, "start", {"name": "web", "power_on": False}),
    ("start web --power-on", ADMIN, "start", {"name": "web", "power_on": True}),
    ("stop web", ADMIN, "stop", {"name": "web"}),
    ("info web", ADMIN, "info", {"name": "web"}),
    ("destroy web --yes", ADMIN, "destroy", {"name": "web"}),
    ("release web", ADMIN, "release", {"name": "web", "discard": ""}),
    ("release web --discard-run --yes", ADMIN, "release", {"name": "web", "discard": "run"}),
    ("release web --discard-state --yes", ADMIN, "release", {"name": "web", "discard": "state"}),
    ("operator list", ADMIN, "operators", {}),
    ("recovery show", ADMIN, "recovery", {}),
    ("recovery off", ADMIN, "recovery_off", {}),
    ("approvals", ADMIN, "approvals", {}),
    ("platform show", ADMIN, "platform_show", {}),
    ("migrations", ADMIN, "migrations", {}),
    ("abort web", ADMIN, "abort", {"name": "web"}),
    ("declare-dead web --yes", ADMIN, "declare_dead", {"name": "web"}),
    ("attach web", HOST, "attach", {"name": "web", "channel": None, "boot": None}),
    ("attach web ivshmem --boot 3", HOST, "attach", {"name": "web", "channel": "ivshmem", "boot": 3}),
    ("attach web ivshmem --vm 6f2c", HOST, "attach", {"name": "web", "channel": "ivshmem", "boot": None, "vm": "6f2c"}),
    ("detach web", HOST, "detach", {"name": "web"}),
    ("boot web 7", HOST, "boot", {"name": "web", "number": 7}),
    (
        "network 52:54:00:12:34:56 10.0.0.7/24 fd00::7/64 --gateway 10.0.0.1",
        HOST,
        "network",
        {"mac": "52:54:00:12:34:56", "addresses": ["10.0.0.7/24", "fd00::7/64"], "gateway": "10.0.0.1"},
    ),
]


@pytest.mark.parametrize(("line", "link", "verb", "args"), REQUESTS, ids=[each[0] for each in REQUESTS])
def test_a_verb_goes_over_its_link_with_what_was_said(
    manager: FakeManager, line: str, link: Path, verb: str, args: dict[str, Any]
) -> None:
    manager.answer = []
    assert main.main(line.split()) == 0
    assert manager.asked == [(link, verb, args)]
    assert verb in (verbs.HOST if link == HOST else SERVED)


SNAPSHOTS: list[tuple[str, str, dict[str, Any]]] = [
    ("snapshots web", "snapshots", {}),
    ("snapshots web --keep 3", "snapshots_keep", {"count": 3}),
    ("snapshots web --drop 51c0", "snapshot_drop", {"snapshot": "51c0"}),
    ("revert web 51c0 --yes", "revert", {"snapshot": "51c0", "now": False}),
    ("revert web 51c0 --now --yes", "revert", {"snapshot": "51c0", "now": True}),
]


@pytest.mark.parametrize(("line", "verb", "args"), SNAPSHOTS, ids=[each[0] for each in SNAPSHOTS])
def test_what_is_asked_about_snapshots_is_answered_with_those_that_are_kept(
    manager: FakeManager, line: str, verb: str, args: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"snapshot": "51c0", "taken": "2026-11-27T10:00:00+00:00", "boot": 1}]
    manager.answer = {"name": "web", "keep": 3, "most": 8, "permitted": "51c0", "reverted": 2, "snapshots": rows}
    assert main.main(line.split()) == 0
    assert manager.asked == [(ADMIN, verb, {"name": "web", **args})] and verb in SERVED
    said = capsys.readouterr().out
    assert "keeps 3 (at most 8 here), has gone back 2 times" in said and "51c0" in said and "yes" in said


def test_a_rollback_is_not_permitted_by_chance(manager: FakeManager) -> None:
    assert main.main(["revert", "web", "51c0"]) == 3
    assert manager.asked == []


def test_no_verb_of_a_link_is_out_of_an_operators_reach(manager: FakeManager) -> None:
    manager.answer = {"ca": b"", "certificates": {"rsa2048": b""}}
    main.main(["ek-cert", "web"])
    (link, verb, args) = manager.asked[0]
    assert (link, args) == (ADMIN, {"name": "web"})
    reached = {ADMIN: {verb, *OTHERS, *STEPS}, HOST: {"status", "list"}}
    for _, link, verb, _ in REQUESTS:
        reached[link].add(verb)
    assert reached == {ADMIN: SERVED, HOST: set(verbs.HOST)}


def test_a_standing_order_is_signed_offline_and_goes_to_the_manager_as_it_is(
    manager: FakeManager, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vm, path = "0d2c1a4e-5b7f-4c1d-9a3e-1f2b3c4d5e6f", tmp_path / "web.json"
    assert main.main(["authority", "init", str(tmp_path / "authority")]) == 0
    argv = ["authority", "standing", str(tmp_path / "authority"), "--vm", vm, "--serial", "1", "--out", str(path)]
    assert main.main([*argv, "--platform", "rack1", "rack2"]) == 0
    manager.answer = [{"vm": vm, "group": "default", "platforms": ["rack1", "rack2"], "serial": 1}]
    assert main.main(["standing", "add", str(path)]) == 0
    assert manager.asked[-1][1:] == ("standing_add", {"statement": path.read_bytes()})
    assert "rack1, rack2" in capsys.readouterr().out
    authority = str(tmp_path / "authority" / "authority.pub")
    assert main.main(["authority", "show", str(path), "--authority", authority]) == 0
    assert "verified" in capsys.readouterr().out
    assert main.main(["standing", "add"]) == 3


def test_a_group_goes_to_the_manager_with_its_first_operators(manager: FakeManager, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("acme.json", "bob.json", "carol.json")]
    for path in files:
        path.write_bytes(path.name.encode())
    manager.answer = []
    assert main.main(["group", "add", *map(str, files)]) == 0
    first, *others = [path.name.encode() for path in files]
    assert manager.asked.pop() == (ADMIN, "group_add", {"statement": first, "operators": others})
    for wrong in (["add"], ["remove"], ["remove", "a", "b"], ["list", "a"], ["add", str(tmp_path / "none")]):
        assert main.main(["group", *wrong]) == ConfigError.exit_code
    assert not manager.asked


def test_a_credential_or_a_request_is_written_as_the_manager_gives_it(
    manager: FakeManager, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    response, out = tmp_path / "ak.pem", tmp_path / "web.json"
    response.write_bytes(b"PEM")
    manager.answer = {"hierarchy": "sk", "credential": b"{}"}
    assert main.main(["certify", "web", "--ak", "0x81010002"]) == 0
    assert manager.asked.pop() == (ADMIN, "certify", {"name": "web", "ak": 0x81010002})
    assert capsys.readouterr().out == "{}"
    manager.answer = {"hierarchy": "independent", "request": b"[]"}
    words = ["--json", "certify", "web", "--ak", "2164326402", "--response", str(response), "--out", str(out)]
    assert main.main(words) == 0
    assert manager.asked.pop() == (ADMIN, "certify", {"name": "web", "ak": 0x81010002, "response": b"PEM"})
    assert (out.read_bytes(), json.loads(capsys.readouterr().out)["what"]) == (b"[]", "request")
    assert main.main(["certify", "web", "--ak", "1", "--out", str(tmp_path / "no/where")]) == ConfigError.exit_code


def test_a_chain_is_the_certificate_and_that_of_the_ca(
    manager: FakeManager, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.answer = {"ca": b"ca" * 40, "certificates": {"rsa2048": b"ek" * 40}}
    said = []
    for option in ("--chain", "--ca"):
        assert main.main(["ek-cert", "web", option]) == 0
        said.append(capsys.readouterr().out)
    assert main.main(["ek-cert", "web"]) == 0
    assert said[0] == capsys.readouterr().out + said[1]
    assert max(map(len, said[0].splitlines())) == 64


def test_evidence_is_asked_for_with_the_verifiers_nonce_and_written_as_it_is(
    manager: FakeManager, tmp_path: Path
) -> None:
    manager.answer = b"{bundle}"
    assert main.main(["quote", "web", "--nonce", "5a" * 32, "--out", str(tmp_path / "b.json")]) == 0
    assert manager.asked == [(ADMIN, "quote", {"name": "web", "nonce": b"Z" * 32})]
    assert (tmp_path / "b.json").read_bytes() == b"{bundle}"


@pytest.mark.parametrize("nonce", ["", "zz", "5a" * 15, "5a" * 65, "5"])
def test_a_nonce_that_no_tpm_takes_or_that_is_too_short_is_refused(manager: FakeManager, nonce: str) -> None:
    assert main.main(["quote", "web", "--nonce", nonce]) == ConfigError.exit_code
    assert manager.asked == []


def test_a_statement_goes_to_the_manager_as_it_is(manager: FakeManager, tmp_path: Path) -> None:
    authority, statement = local.open_or_make(tmp_path / "authority"), tmp_path / "statement.json"
    statement.write_bytes(b"{}")
    manager.answer = []
    for action in ("add", "remove"):
        assert main.main(["operator", action, str(statement)]) == 0
        assert manager.asked.pop() == (ADMIN, f"operator_{action}", {"statement": b"{}"})
        assert main.main(["operator", action]) == ConfigError.exit_code
    assert main.main(["operator", "list", str(statement)]) == ConfigError.exit_code
    for line in (["approve"], ["upgrade"], ["revoke", "--force"]):
        assert main.main([line[0], str(statement), *line[1:]]) == 0
    assert manager.asked == [
        (ADMIN, "approve", {"statement": b"{}"}),
        (ADMIN, "approve", {"statement": b"{}"}),
        (ADMIN, "revoke", {"statement": b"{}", "force": True}),
    ]
    manager.asked.clear()
    public = str(tmp_path / "authority/authority.pub")
    assert main.main(["provision", public, str(statement), "--approval", str(statement)]) == 0
    order = {"authority": authority.public.der, "operators": [b"{}"], "approvals": [b"{}"]}
    assert manager.asked == [(ADMIN, "provision", order)]
    manager.asked.clear()
    assert (
        main.main(["provision", public, str(statement), "--approval", str(statement), "--recovery", str(statement)])
        == 0
    )
    assert manager.asked == [(ADMIN, "provision", {**order, "recovery": b"{}"})]
    manager.asked.clear()
    manager.answer = {}
    assert main.main(["recovery", "set", str(statement)]) == 0
    assert manager.asked == [(ADMIN, "recovery_set", {"statement": b"{}"})]
    for line in (["recovery", "set"], ["recovery", "off", str(statement)], ["recovery", "show", str(statement)]):
        assert main.main(line) == ConfigError.exit_code
    assert main.main(["operator", "add", str(tmp_path / "none")]) == ConfigError.exit_code


def test_each_step_of_an_enrolment_takes_its_file_and_keeps_what_the_manager_says(
    manager: FakeManager, tmp_path: Path
) -> None:
    given, kept = tmp_path / "given.json", tmp_path / "kept.json"
    given.write_bytes(b"{}")
    manager.answer = b"said"
    assert main.main(["platform", "evidence", "--out", str(kept), "--more", "3"]) == 0
    assert main.main(["platform", "activate", str(given), "--out", str(kept)]) == 0
    assert kept.read_bytes() == b"said"
    manager.answer = {"enrolled": True}
    assert main.main(["platform", "install", str(given)]) == 0
    assert manager.asked == [
        (ADMIN, "platform_evidence", {"more": 3}),
        (ADMIN, "platform_activate", {"statement": b"{}"}),
        (ADMIN, "platform_install", {"statement": b"{}"}),
    ]


@pytest.mark.parametrize(
    "line", ["evidence", "evidence x --out y", "activate x", "activate --out y", "install", "install x --out y",
             "show x", "show --out y", "install x --more 3"],
)  # fmt: skip
def test_a_step_of_an_enrolment_without_its_files_is_refused_before_anything_is_asked(
    manager: FakeManager, line: str
) -> None:
    assert main.main(["platform", *line.split()]) == ConfigError.exit_code
    assert manager.asked == []


@pytest.mark.parametrize(
    "line",
    [
        "--operator a --key k",
        "--operator a --role admin",
        "--platform p --evidence e --vendor-ca v",
        "--platform p --evidence e --out o",
        "--platform p --vendor-ca v --out o",
        "--platform p --evidence e --vendor-ca v --out o --role admin",
        "--answer a --out o --vendor-ca v",
        "--answer a",
    ],
)
def test_an_enrolment_by_half_a_command_line_is_refused(line: str, tmp_path: Path) -> None:
    local.open_or_make(tmp_path / "authority")
    before = sorted(tmp_path.rglob("*"))
    assert main.main(["authority", "enroll", str(tmp_path / "authority"), *line.split()]) == ConfigError.exit_code
    assert sorted(tmp_path.rglob("*")) == before


def test_operators_are_a_table_or_json(manager: FakeManager, capsys: pytest.CaptureFixture[str]) -> None:
    manager.answer = [{"name": "alice", "role": "admin", "serial": 1, "key": "00"}]
    main.main(["operator", "list"])
    lines = ["NAME   ROLE   SERIAL  KEY", "alice  admin  1       00"]
    assert capsys.readouterr().out.splitlines() == lines
    main.main(["operator", "list", "--json"])
    assert json.loads(capsys.readouterr().out) == manager.answer


LINES = [audit.encode(7, bytes(32), 0, "boot", {"vtpm": "web", "x": "\x1b[2J"}).decode()]


def test_the_audit_log_is_shown_by_lines_and_what_is_not_anchored_is_marked(
    manager: FakeManager, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.answer = {"lines": LINES, "count": 7, "anchored": 7, "digest": audit.digest(LINES[0].encode())}
    assert main.main(["audit"]) == 0
    (shown,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"7  1970-01-01T\S+  boot  vtpm=web x=\\x1b\[2J", shown)
    manager.answer["anchored"] = 6
    main.main(["audit", "--last", "3"])
    assert capsys.readouterr().out.endswith("  [not anchored yet]\n")
    main.main(["audit", "--json"])
    assert json.loads(capsys.readouterr().out)[0].items() >= {"n": 7, "anchored": False, "vtpm": "web"}.items()
    assert manager.asked == [(ADMIN, "audit", {"after": after}) for after in (-20, -3, -20)]


def test_verifying_says_whether_the_chain_is_whole(manager: FakeManager, capsys: pytest.CaptureFixture[str]) -> None:
    manager.answer = {"lines": LINES, "count": 7, "anchored": 7, "digest": bytes(32)}
    assert main.main(["audit", "--verify"]) == errors.IntegrityError.exit_code
    assert "those before it were removed" in capsys.readouterr().err
    for wrong in (["--last", "-1"], ["--last", "x"], ["--follow", "1", "--verify"], ["forget"]):
        with pytest.raises(SystemExit):
            main.main(["audit", *wrong])
    assert main.main(["audit", "verify"]) == ConfigError.exit_code


def test_what_must_be_signed_is_signed_with_the_named_key_else_with_that_beside_the_manager(
    manager: FakeManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority, own = local.open_or_make(tmp_path / "authority"), SigningKey.create()
    (tmp_path / "m").mkdir()
    own.store(tmp_path / "own.key")
    manager.answer = []

    def used(line: str) -> str | None:
        assert main.main(["-m", str(tmp_path / "m"), *line.split()]) == 0
        return manager.key.public.id if manager.key else None

    assert used("stop web") == authority.operator.public.id
    assert used(f"--key {tmp_path}/own.key stop web") == own.public.id
    monkeypatch.setenv("VTPM_OPERATOR_KEY", f"{tmp_path}/own.key")
    assert used("stop web") == own.public.id
    for line in ("list", "show web", "boot web 1"):
        assert used(f"--key {tmp_path}/none {line}") is None
    assert main.main(["--key", f"{tmp_path}/none", "stop", "web"]) == ConfigError.exit_code
    monkeypatch.delenv("VTPM_OPERATOR_KEY")
    assert main.main(["stop", "web"]) == 0 and manager.key is None


def test_a_verb_says_that_it_must_be_signed_where_it_must() -> None:
    for verb, text in help.VERBS.items():
        other = {
            "operator": "operator_add",
            "group": "group_add",
            "upgrade": "approve",
            "platform": "platform_show",
            "evacuate": "migrate",
            "standing": "standing_add",
        }
        asked = other.get(verb, verb.replace("-", "_"))
        assert text.startswith("[signed] ") is rules.is_signed(asked)


def test_the_manager_is_that_of_the_option_before_that_of_the_environment(manager: FakeManager, tmp_path: Path) -> None:
    manager.answer = []
    main.main(["-m", str(tmp_path), "--timeout", "2.5", "list"])
    assert manager.asked[0][0] == tmp_path / "admin.sock"
    assert manager.timeout == 2.5


def test_a_manager_is_named_by_its_directory_or_its_socket(tmp_path: Path) -> None:
    assert sockets(str(tmp_path)) == (tmp_path / "admin.sock", tmp_path / "host.sock")
    for where in ("/a/own.sock", "unix:/a/own.sock"):
        assert sockets(where) == (Path("/a/own.sock"), Path("/a/host.sock"))
    with pytest.raises(ConfigError, match="no manager was named; use -m DIR or set VTPM_MANAGER"):
        sockets("")


@pytest.mark.parametrize("argv", [["--json", "show", "web"], ["show", "web", "--json"], ["show", "--json", "web"]])
def test_json_may_be_asked_for_before_and_after_the_verb(
    manager: FakeManager, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    manager.answer = {"name": "web", "live": True}
    assert main.main(argv) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "web", "live": True}


def test_without_json_a_list_is_a_table_and_a_record_is_fields(
    manager: FakeManager, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, answer, text in (
        ("list", [ROW], output.as_table([ROW]) + "\n"),
        ("list", [], "no vTPMs\n"),
        ("names", [ROW, {**ROW, "name": "db"}], "web\ndb\n"),
        ("status", {"version": "1"}, "version  1\n"),
        ("detach web", None, ""),
    ):
        manager.answer = answer
        assert main.main(verb.split()) == 0
        assert capsys.readouterr().out == text


def test_progress_goes_to_stderr_with_its_count_where_it_has_one(
    manager: FakeManager, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.steps = [Progress(1, "EK rsa2048", 1, 3), Progress(1, "committing")]
    main.main(["create", "web", "--json"])
    said = capsys.readouterr()
    assert said.err.splitlines() == ["EK rsa2048 (1/3)", "committing"]
    assert json.loads(said.out) is None


@pytest.mark.parametrize("size", [0, 1, 47, 48, 49, 96, 1000])
def test_a_certificate_is_printed_as_pem_in_lines_of_at_most_64(
    manager: FakeManager, capsys: pytest.CaptureFixture[str], tmp_path: Path, size: int
) -> None:
    der = bytes(index % 251 for index in range(size))
    manager.answer = {"ca": b"CA", "certificates": {"rsa2048": b"other", "ecc-p384": der}}
    assert main.main(["ek-cert", "web", "--key", "ecc-p384"]) == 0
    pem = capsys.readouterr().out
    assert ssl.PEM_cert_to_DER_cert(pem) == der
    body = pem.splitlines()[1:-1]
    assert all(0 < len(line) <= 64 for line in body)
    assert all(len(line) == 64 for line in body[:-1])
    assert main.main(["ek-cert", "web", "--key", "ecc-p384", "--out", str(tmp_path / "pem")]) == 0
    assert (tmp_path / "pem").read_text() == pem
    assert main.main(["ek-cert", "web", "--ca", "--json"]) == 0
    assert ssl.PEM_cert_to_DER_cert(json.loads(capsys.readouterr().out)["pem"]) == b"CA"


def terminal(typed: str) -> SimpleNamespace:
    """A standard input at which somebody typed this."""
    return SimpleNamespace(isatty=lambda: True, readline=lambda: typed)


def test_destroying_needs_the_name_typed_or_the_option(
    manager: FakeManager, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    assert main.main(["destroy", "web"]) == ConfigError.exit_code
    assert "confirm with --yes" in capsys.readouterr().err
    for typed in ("wed\n", ""):  # another name; Ctrl-D
        monkeypatch.setattr("sys.stdin", terminal(typed))
        assert main.main(["destroy", "web"]) == ConfigError.exit_code
        assert "not confirmed; nothing was changed" in capsys.readouterr().err
    assert main.main(["release", "web", "--discard-run"]) == ConfigError.exit_code
    assert manager.asked == []
    monkeypatch.setattr("sys.stdin", terminal("web\n"))
    assert main.main(["release", "web", "--discard-state"]) == 0
    manager.asked.clear()
    assert main.main(["destroy", "web"]) == 0
    assert manager.asked == [(ADMIN, "destroy", {"name": "web"})]


def test_a_certificate_is_written_and_printed_where_both_are_asked_for(
    manager: FakeManager, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.answer = {"certificates": {"rsa2048": b"EK"}, "ca": b"CA"}
    assert main.main(["ek-cert", "web", "--json", "--out", str(tmp_path / "pem")]) == 0
    assert json.loads(capsys.readouterr().out)["pem"] == (tmp_path / "pem").read_text()
    assert main.main(["ek-cert", "web", "--out", str(tmp_path / "none" / "pem")]) == ConfigError.exit_code
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "1e99", "soon"])
def test_a_time_that_cannot_be_waited_is_a_mistake_of_usage(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["--timeout", seconds, "list"])
    assert ended.value.code == 2
    assert "--timeout" in capsys.readouterr().err


def test_names_are_lines_or_json(manager: FakeManager, capsys: pytest.CaptureFixture[str]) -> None:
    manager.answer = []
    assert main.main(["names"]) == 0
    assert capsys.readouterr().out == ""
    manager.answer = [{"name": "web"}, {"name": "db"}]
    assert main.main(["names"]) == 0
    assert capsys.readouterr().out == "web\ndb\n"
    assert main.main(["names", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["web", "db"]


def test_an_interrupted_wait_ends_with_130(manager: FakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(main._HANDLERS, "list", interrupted)
    assert main.main(["list"]) == 130


# -- errors and help ------------------------------------------------------------------------------------------


ERRORS = list(errors.BY_NAME.values())


def help_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What --help prints, its lines joined."""
    with pytest.raises(SystemExit) as ended:
        main.main([*argv, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("cls", ERRORS)
def test_an_error_is_one_sentence_on_stderr_and_its_class_is_the_exit_code(
    manager: FakeManager, capsys: pytest.CaptureFixture[str], cls: type[VtpmManagerError]
) -> None:
    manager.answer = cls("the cause; the remedy")
    assert main.main(["list"]) == cls.exit_code
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "vtpmctl: the cause; the remedy\n")
    assert main.main(["list", "--json"]) == cls.exit_code
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": {"name": cls.__name__, "text": "the cause; the remedy"}}
    assert said.err == "vtpmctl: the cause; the remedy\n"


def test_the_exit_codes_in_the_help_are_those_of_the_error_classes() -> None:
    text = " ".join(help.EPILOG.partition("exit codes:\n")[2].partition("With --json")[0].split())
    documented = {int(code): words.strip(" ·") for code, words in re.findall(r"(\d+) (\D+)", text)}
    assert documented.keys() == {0, 2} | {cls.exit_code for cls in ERRORS}  # 0 = done, 2 = argparse
    for cls, words in (
        (ConfigError, "configuration"),
        (errors.UnreachableError, "manager unreachable"),
        (errors.ProtocolError, "protocol"),
        (errors.TrustError, "trust"),
        (errors.HardwareTpmError, "hardware TPM"),
        (errors.StoreError, "state disk"),
        (errors.UnknownVtpmError, "unknown vTPM"),
        (errors.BusyError, "busy or name in use"),
        (errors.StateError, "wrong state"),
        (errors.SwtpmError, "swtpm"),
        (errors.QuarantinedError, "quarantined"),
        (errors.RefusedError, "refused"),
        (errors.AbortedError, "aborted"),
        (errors.HandoverUnconfirmedError, "handover unconfirmed"),
    ):
        assert documented[cls.exit_code] == words


def test_a_wrong_command_line_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (
        [],
        ["fly"],
        ["show"],
        ["boot", "web", "one"],
        ["ek-cert", "web", "--key", "dsa"],
        ["completion", "sh"],
        ["authority"],
        ["authority", "fly"],
        ["authority", "approve", "d"],
        ["authority", "revoke", "d", "--number", "1", "--below", "2", "--reason", "r"],
        ["authority", "enroll", "d", "--operator", "a", "--key", "k", "--role", "king"],
        ["key", "new"],
    ):
        with pytest.raises(SystemExit) as ended:
            main.main(argv)
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("usage: vtpmctl")


def test_every_verb_has_a_handler_and_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert help.VERBS.keys() == main._HANDLERS.keys()
    assert details.DETAILS.keys() <= help.VERBS.keys()
    text = help_of(capsys)
    for verb, sentence in help.VERBS.items():
        assert sentence
        assert f" {verb} {sentence}" in text


@pytest.mark.parametrize("verb", help.VERBS)
def test_a_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, verb)
    sentence = help.VERBS[verb]
    assert text.startswith(f"usage: vtpmctl {verb} ")
    assert f"{sentence[0].upper()}{sentence[1:]}." in text
    assert text.endswith(" ".join(details.DETAILS.get(verb, "").split()))


ACTIONS = [(verb, action) for verb, each in actions.ACTIONS.items() for action in each]


@pytest.mark.parametrize(("verb", "action"), ACTIONS)
def test_an_action_explains_itself(verb: str, action: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, verb, action)
    sentence, details = actions.ACTIONS[verb][action]
    assert text.startswith(f"usage: vtpmctl {verb} {action} ")
    assert f"{sentence[0].upper()}{sentence[1:]}." in text
    assert text.endswith(" ".join(details.split()))
    assert f" {action} {sentence}" in help_of(capsys, verb)


def examples() -> list[str]:
    """The arguments of every vtpmctl in the texts of the help: up to two blanks, a pipe, an "&" or a bracket."""
    acts = [text for each in actions.ACTIONS.values() for texts in each.values() for text in texts]
    text = "\n".join([help.EPILOG, *help.VERBS.values(), *details.DETAILS.values(), *acts])
    return re.findall(r"vtpmctl (.+?)(?=  | [|&]|[)\n])", text)


@pytest.mark.parametrize("line", examples())
def test_an_example_of_the_help_is_a_command_line_that_is_understood(line: str) -> None:
    assert command_line.parser().parse_args(shlex.split(line)).verb in help.VERBS


def test_the_examples_were_found() -> None:
    assert len(examples()) >= 22
    assert {line.split()[0] for line in examples()} >= {"-m", "attach", "ek-cert", "create", "completion", "key"}
    acted = {tuple(line.split()[:2]) for line in examples()}
    assert acted >= {(verb, action) for verb, each in actions.ACTIONS.items() for action in each}


# -- doctor ---------------------------------------------------------------------------------------------------

PAGE = 4096


def have_memory(monkeypatch: pytest.MonkeyPatch, mib: int) -> None:
    """The machine has so much."""
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": PAGE, "SC_PHYS_PAGES": (mib << 20) // PAGE}.__getitem__)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine with every program, 1 GiB of memory and these packages (to be changed); no manager is named."""
    versions = {"libtpms0": "0.10.0-1"}
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(packages, "installed", lambda: versions)
    monkeypatch.delenv("VTPM_MANAGER", raising=False)
    have_memory(monkeypatch, 1024)
    return versions


def findings(*parts: str) -> list[doctor.Finding]:
    """Those whose sentence contains each of ``parts``."""
    return [found for found in doctor.examine("") if all(part in found.what for part in parts)]


def test_a_healthy_machine_has_no_failure_and_a_manager_is_missed_but_not_needed(
    machine: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "OK    swtpm: /usr/bin/swtpm\n" in text
    assert "OK    libtpms0 0.10.0-1\n" in text
    assert "OK    1024 MiB of memory\n" in text
    assert "WARN  no manager was named\n      name it with -m, or set VTPM_MANAGER\n" in text
    assert "FAIL" not in text


def test_a_missing_program_is_a_warning_with_the_package_to_install(
    machine: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == "swtpm" else f"/usr/bin/{name}")
    (found,) = findings("is missing", "swtpm")
    assert (found.level, found.remedy) == (Level.WARN, "needed where a manager runs: apt-get install swtpm")
    assert findings("unshare is missing") == []


def test_a_vulnerable_package_and_unknown_versions_are_warnings(machine: dict[str, str]) -> None:
    machine["libtpms0"] = "0.9.2-3"
    (found,) = findings("libtpms0 0.9.2-3", "CVE-")
    assert (found.level, found.remedy) == (Level.WARN, "apt-get upgrade")
    machine.clear()
    (found,) = findings("no dpkg database")
    assert found.level is Level.WARN


def test_too_little_memory_is_a_failure(
    machine: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    have_memory(monkeypatch, 511)
    assert main.main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {"level": "FAIL", "what": "511 MiB of memory", "remedy": "a manager needs 512 MiB"} in report
    assert [each["level"] for each in report].count("FAIL") == 1


def test_a_machine_that_lacks_everything_gets_a_remedy_for_each_line(
    machine: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.clear()
    have_memory(monkeypatch, 1)
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(Path, "is_dir", lambda _: False)
    bad = [found for found in doctor.examine("") if found.level is not Level.OK]
    assert all(found.remedy for found in bad)
    missed = " ".join(found.what for found in bad)
    for word in ("swtpm", "unshare", "setpriv", "prlimit", "qemu", "dpkg", "/dev/vtpmx", "IOMMU", "memory", "manager"):
        assert word in missed


def test_post_copy_is_refused_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["-m", "x", "relocate", "--to", "y", "--method", "postcopy"]) == 3
    assert "loses the only memory" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="loses the only memory"):
        departure.parse("postcopy")
