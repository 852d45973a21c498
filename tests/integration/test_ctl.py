"""vtpmctl as an operator uses it: a process of its own, a real manager, real pipes, terminals and shells."""

from __future__ import annotations

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from manager_vm.ctl import actions, completion, help
from tests.integration.conftest import Make
from tests.integration.harness import ROOT, Manager, environment

KEYS = ("rsa2048", "ecc-p256", "ecc-p384")
VTPMCTL = (sys.executable, "-m", "manager_vm.ctl")


def shell_environment(directory: Path) -> dict[str, str]:
    """Of an operator who has not named a manager in it."""
    return {key: value for key, value in environment(directory).items() if key != "VTPM_MANAGER"}


def run(manager: Manager, *args: str, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
    """vtpmctl for people, asked of no manager unless ``args`` name it."""
    env = shell_environment(manager.directory)
    return subprocess.run([*VTPMCTL, *args], cwd=ROOT, env=env, stdin=stdin, capture_output=True, text=True, timeout=60)


def said(manager: Manager, *args: str) -> str:
    """What a verb prints that must succeed without a word on stderr."""
    done = run(manager, "-m", str(manager.directory), *args)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def fields(text: str) -> dict[str, str]:
    """Name and value of each line."""
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in text.splitlines()}


def openssl(*argv: str) -> str:
    """What openssl prints."""
    return subprocess.run(("openssl", *argv), capture_output=True, text=True, check=True).stdout


# -- asking ---------------------------------------------------------------------------------------------------


def test_status_list_show_and_names_say_the_same_to_people_and_to_programs(manager: Manager) -> None:
    assert said(manager, "list") == "no vTPMs\n"
    assert manager.ctl("list") == []
    manager.add("web")
    manager.ctl("create", "db")
    status = manager.ctl("status")
    assert status["vtpms"] == {"running": 1, "off": 1}
    assert fields(said(manager, "status")).items() >= {"version": status["version"], "vtpms.off": "1"}.items()

    rows = {row["name"]: row for row in manager.ctl("list")}
    table = [line.split() for line in said(manager, "list").splitlines()]
    assert table[0] == ["NAME", "GROUP", "STATE", "CHANNEL", "BOOT", "GENERATION", "LIVE", "REASON"]
    assert sorted(table[1:]) == [
        ["db", "default", "off", "-", "0", "1", "no", "-"],
        ["web", "default", "running", manager.channel("web"), "1", "1", "no", "-"],
    ]
    assert said(manager, "names").split() == list(rows) == [line[0] for line in table[1:]]

    shown = manager.show("web")
    assert shown.items() >= rows["web"].items()
    assert sorted(shown["ek_names"]) == sorted(KEYS)
    lines = fields(said(manager, "show", "web"))
    assert (lines["state"], lines["boot_named"], lines["pid"]) == ("running", "yes", str(shown["pid"]))
    assert all(lines[f"ek_names.{key}"] == shown["ek_names"][key] for key in KEYS)


def test_info_is_what_the_guest_could_ask_itself(manager: Manager) -> None:
    manager.add("web")
    info = manager.ctl("info", "web")
    assert info["manufacturer"] == "IBM"
    assert "sha256" in info["pcr_banks"]
    assert (info["lockout_counter"], info["in_lockout"], info["nv_indices"]) == (0, False, len(KEYS) + 1)  # and the CA
    lines = fields(said(manager, "info", "web"))
    assert lines.keys() == info.keys()
    assert lines["pcr_banks"] == ", ".join(info["pcr_banks"])
    assert (lines["in_lockout"], lines["lockout_counter"]) == ("no", "0")


def test_every_ek_certificate_is_pem_that_openssl_verifies_against_the_ca(manager: Manager, tmp_path: Path) -> None:
    manager.ctl("create", "web")
    ca = tmp_path / "ca.pem"
    assert said(manager, "ek-cert", "web", "--ca", "--out", str(ca)) == ""
    assert ca.read_text() == said(manager, "ek-cert", "web", "--ca") == manager.ctl("ek-cert", "web", "--ca")["pem"]
    seen = set()
    for key in KEYS:
        file = tmp_path / key
        assert said(manager, "ek-cert", "web", "--key", key, "--out", str(file)) == ""
        assert file.read_text() == said(manager, "ek-cert", "web", "--key", key)
        assert openssl("verify", "-x509_strict", "-CAfile", str(ca), str(file)) == f"{file}: OK\n"
        text = openssl("x509", "-noout", "-text", "-in", str(file))
        size = {"rsa2048": "2048 bit", "ecc-p256": "P-256", "ecc-p384": "P-384"}[key]
        assert size in text.partition("Public Key Algorithm")[2], text
        seen.add(file.read_text())
    assert len(seen) == len(KEYS)
    assert said(manager, "ek-cert", "web") == (tmp_path / "rsa2048").read_text()


# -- mistakes -------------------------------------------------------------------------------------------------


def at_terminal(manager: Manager, typed: str, *args: str) -> tuple[int, str]:
    """(exit code, stderr) of vtpmctl on a terminal at which this line is typed."""
    master, slave = pty.openpty()
    try:
        os.write(master, typed.encode() + b"\n")
        done = run(manager, "-m", str(manager.directory), *args, stdin=slave)
    finally:
        os.close(master)
        os.close(slave)
    return done.returncode, done.stderr


def test_destroying_is_confirmed_by_name_and_without_a_terminal_by_an_option(manager: Manager) -> None:
    manager.ctl("create", "web")
    before = (manager.ctl("list"), sorted((manager.state / "blobs").iterdir()))
    done = run(manager, "-m", str(manager.directory), "destroy", "web")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "vtpmctl: destroying 'web' loses its keys for ever; confirm with --yes\n"
    assert at_terminal(manager, "wed", "destroy", "web") == (3, "vtpmctl: not confirmed; nothing was changed\n")
    assert (manager.ctl("list"), sorted((manager.state / "blobs").iterdir())) == before
    assert at_terminal(manager, "web", "destroy", "web") == (0, "")
    assert manager.ctl("list") == []


def test_an_error_in_json_has_a_name_and_a_text(manager: Manager) -> None:
    mistakes: tuple[tuple[str, int, Sequence[str]], ...] = (
        ("UnknownVtpmError", 11, ("show", "nobody")),
        ("ConfigError", 3, ("destroy", "nobody")),
        ("ConfigError", 3, ("create", "../x")),
        ("UnknownVtpmError", 11, ("boot", "nobody", "1")),
    )
    for name, code, args in mistakes:
        done = manager.vtpmctl(*args)
        error: dict[str, Any] = json.loads(done.stdout)
        assert error.keys() == {"error"} and error["error"].keys() == {"name", "text"}
        assert (done.returncode, error["error"]["name"]) == (code, name)
        assert done.stderr == f"vtpmctl: {error['error']['text']}\n"


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_what_is_written_into_a_closed_pipe_is_lost_without_a_traceback(manager: Manager, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        for verb in ("list", "status", "doctor", "--help"):
            argv = [*VTPMCTL, "-m", str(manager.directory), verb]
            env = environment(manager.directory, PYTHONUNBUFFERED=unbuffered)
            done = subprocess.run(argv, cwd=ROOT, env=env, stdout=writer, stderr=subprocess.PIPE, timeout=60)
            assert (done.returncode, done.stderr) == (1, b"")
    finally:
        os.close(writer)


# -- doctor ---------------------------------------------------------------------------------------------------


def test_doctor_asks_both_links_of_a_running_manager(manager: Manager) -> None:
    version = manager.ctl("status")["version"]
    done = run(manager, "-m", str(manager.directory), "doctor")
    assert (done.returncode, done.stderr, "FAIL" in done.stdout) == (0, "", False)
    for link in ("admin", "host"):
        assert f"OK    {manager.directory}/{link}.sock: manager {version}\n" in done.stdout
    report = manager.ctl("doctor")
    assert all(each.keys() == {"level", "what", "remedy"} for each in report)
    assert {each["level"] for each in report} <= {"OK", "WARN"}
    assert all(
        each["remedy"] for each in report if not each["what"].startswith("the manager") and each["level"] != "OK"
    )


def test_doctor_without_a_manager_looks_at_the_machine_only(make: Make) -> None:
    done = run(make(), "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "WARN  no manager was named\n      name it with -m, or set VTPM_MANAGER\n" in done.stdout
    assert "sock" not in done.stdout


def test_doctor_fails_where_nobody_answers(make: Make) -> None:
    manager = make()
    left = manager.directory / "left.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left))
    done = run(manager, "-m", str(left), "doctor")
    assert done.returncode == 1
    assert f"FAIL  {left}: no manager answers at {left} (Connection refused); start it" in done.stdout
    assert f"FAIL  {left.with_name('host.sock')}: no manager answers" in done.stdout
    done = run(manager, "-m", str(left), "doctor", "--json")
    levels = [each["level"] for each in json.loads(done.stdout)]
    assert (done.returncode, levels.count("FAIL")) == (1, 2)


# -- completion -----------------------------------------------------------------------------------------------

# $1: the script; then a command line whose last word is being typed
_TRY = """
source "$1"
COMP_WORDS=("${@:2}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_vtpmctl
printf '%s\\n' "${COMPREPLY[@]}"
"""
_FAKE = """
vtpmctl() { printf 'web\\ndb1\\ndb2\\n'; printf '%s\\n' "$*" >asked; }
"""
_REAL = f"""
vtpmctl() {{ PYTHONPATH={ROOT} {sys.executable} -m manager_vm.ctl "$@"; }}
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files that ``vtpmctl completion SHELL`` makes."""
    made = {shell: tmp_path_factory.mktemp("completion") / shell for shell in completion.SHELLS}
    for shell, path in made.items():
        done = subprocess.run([*VTPMCTL, "completion", shell], cwd=ROOT, capture_output=True, check=True)
        path.write_bytes(done.stdout)
    return made


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, in which the shells run."""
    monkeypatch.delenv("VTPM_MANAGER", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def completed(script: Path, vtpmctl: str, *words: str) -> list[str]:
    """What bash offers for the last one of ``words``; ``vtpmctl`` is a function for it."""
    argv = ["bash", "--norc", "-c", vtpmctl + _TRY, "bash", str(script), "vtpmctl", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_completion_script_is_one_that_its_shell_can_read(scripts: dict[str, Path], shell: str) -> None:
    if shell == "fish" and not shutil.which("fish"):
        lines = scripts[shell].read_text().replace("\\\n", "").splitlines()
        assert len(lines) == 10 + 3 * len(actions.ACTIONS) and all(
            line.startswith("complete -c vtpmctl ") for line in lines
        )
        return
    reader = shell if shutil.which(shell) else "bash"  # zsh's is bash's behind bashcompinit
    done = subprocess.run([reader, "-n", str(scripts[shell])], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert scripts[shell].stat().st_size > 0


def test_bash_registers_the_function_for_vtpmctl(scripts: dict[str, Path]) -> None:
    argv = ["bash", "--norc", "-c", 'source "$1" && complete -p vtpmctl', "bash", str(scripts["bash"])]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "complete -F _vtpmctl vtpmctl\n"


def test_bash_offers_verbs_first_and_then_the_names_that_the_named_manager_has(
    scripts: dict[str, Path], there: Path
) -> None:
    bash, asked = scripts["bash"], there / "asked"
    assert completed(bash, _FAKE, "") == sorted(help.VERBS)
    assert completed(bash, _FAKE, "sta") == ["standing", "start", "status"]
    assert completed(bash, _FAKE, "--json", "-m", "/run/a b", "de") == ["declare-dead", "destroy", "detach"]
    assert completed(bash, _FAKE, "fly") == []
    assert not asked.exists()
    assert completed(bash, _FAKE, "show", "") == ["web", "db1", "db2"]
    assert asked.read_text() == "--timeout 2 names\n"
    assert completed(bash, _FAKE, "-m", "/run/a b", "--json", "show", "db") == ["db1", "db2"]
    assert asked.read_text() == "-m /run/a b --timeout 2 names\n"
    assert completed(bash, _FAKE, "-m", "as") == ["asked"]


def test_bash_offers_a_name_only_where_a_verb_takes_one(scripts: dict[str, Path], there: Path) -> None:
    bash = scripts["bash"]
    assert completed(bash, _FAKE, "status", "") == []
    assert completed(bash, _FAKE, "completion", "") == list(completion.SHELLS)
    assert completed(bash, _FAKE, "--timeout", "5", "sta") == ["standing", "start", "status"]


def test_bash_offers_the_actions_of_an_offline_verb_then_roles_and_files(scripts: dict[str, Path], there: Path) -> None:
    bash = scripts["bash"]
    (there / "alice.key.pub").touch()
    assert completed(bash, _FAKE, "authority", "") == list(actions.ACTIONS["authority"])
    assert completed(bash, _FAKE, "--json", "authority", "re") == ["revoke", "remove", "recover", "relocate"]
    assert completed(bash, _FAKE, "key", "") == ["new"]
    assert completed(bash, _FAKE, "authority", "enroll", "ali") == ["alice.key.pub"]
    assert completed(bash, _FAKE, "authority", "enroll", "d", "--role", "a") == ["admin", "auditor"]
    assert completed(bash, _FAKE, "authority", "show", "") == ["alice.key.pub"]  # a file, not a vTPM's name
    assert not (there / "asked").exists()


def test_a_name_that_is_a_command_is_not_run(scripts: dict[str, Path], there: Path) -> None:
    fake = "vtpmctl() { printf '%s\\n' '$(touch${IFS}pwned)' '`touch pwned`' good; }\n"
    assert completed(scripts["bash"], fake, "show", "") == ["good"]
    assert not (there / "pwned").exists()


def test_bash_offers_nothing_where_no_manager_answers(scripts: dict[str, Path], there: Path) -> None:
    assert completed(scripts["bash"], _REAL, "-m", f"{there}/none", "show", "") == []


def test_bash_offers_the_vtpms_of_a_real_manager(manager: Manager, scripts: dict[str, Path], there: Path) -> None:
    manager.ctl("create", "web")
    manager.ctl("create", "db")
    assert sorted(completed(scripts["bash"], _REAL, "-m", str(manager.directory), "show", "")) == ["db", "web"]
