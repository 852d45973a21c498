"""A manager as a child process, its operator (vtpmctl) and its guests (tpm2-tools through ``pipe``)."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from guest_frontend.link import Link
from manager_vm.ctl import main as vtpmctl
from manager_vm.ctl.client import Client
from manager_vm.trust import local
from manager_vm.trust.signing import SigningKey

ROOT = Path(__file__).parents[2]
_READY_TIMEOUT = 30.0
_STOP_TIMEOUT = 30.0


def until(condition: Callable[[], Any], timeout: float = 10.0, what: str = "") -> Any:
    """Poll ``condition`` until it is true; its value. AssertionError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or condition}"
        time.sleep(0.02)
    return value


def processes(word: str) -> dict[int, str]:
    """Living processes (pid -> command line) whose command line contains ``word``; zombies have none."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if word in line:
                found[int(entry.name)] = line
    return found


def environment(directory: Path, **more: str) -> dict[str, str]:
    """For children: our modules, and the front end's runtime directory below ``directory``."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(directory), **more}


class Refused(Exception):
    """vtpmctl ended with an error."""

    def __init__(self, code: int, name: str, text: str, cause: str = "") -> None:
        super().__init__(f"exit code {code}, {name}: {text}")
        self.code, self.name, self.text, self.cause = code, name, text, cause


class Manager:
    """One manager on ``directory``. ``table``: run ``daemon`` with these settings instead of ``dev``."""

    def __init__(self, directory: Path, table: dict[str, Any] | None = None, prefix: Sequence[str] = ()) -> None:
        self.directory = directory
        self.state = directory / "state"
        self._log = directory / "manager.log"
        self._prefix = list(prefix)
        words = ["dev", str(directory)] if table is None else ["daemon", "--config", str(self._config(table))]
        self.program = ["-m", "manager_vm", *words]  # for Python
        self._process: subprocess.Popen[bytes] | None = None
        self.prepare: Callable[[], None] = lambda: None  # called before the first start on an empty directory

    def _config(self, table: dict[str, Any]) -> Path:
        values = {
            "state_dir": str(self.state),
            "run_dir": str(self.directory),
            "admin": f"unix:{self.directory}/admin.sock",
            "host_link": f"unix:{self.directory}/host.sock",
            "hwtpm": f"swtpm:{self.directory}/hwtpm",
            "own_host": True,
            "strict": False,
            "authority_dir": str(self.directory.parent / "authority"),
            **table,
        }
        path = self.directory / "config.toml"
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
        path.write_text("\n".join(["[manager]", *lines]) + "\n")
        return path

    # -- the process ----------------------------------------------------------------------------------------

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process, do not wait."""
        if not self.state.exists():
            self.prepare()
        argv = [*self._prefix, sys.executable, *self.program]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                argv, cwd=ROOT, env=environment(self.directory), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self._process

    def start(self) -> Manager:
        """Start it and wait until it serves."""
        before = self.log().count("READY")
        process = self.launch()
        until(lambda: self.log().count("READY") > before or process.poll() is not None, _READY_TIMEOUT, "READY")
        assert process.poll() is None, self.log()
        return self

    def launch_waiting(self) -> Manager:
        """Start one that nobody has provisioned; it serves little, and that over its admin link."""
        process = self.launch()
        until(lambda: "READY" in self.log() or process.poll() is not None, _READY_TIMEOUT, "READY")
        assert process.poll() is None, self.log()
        return self

    def refuse_to_start(self) -> tuple[int, str]:
        """Start it although it cannot: (exit code, last line of its log)."""
        process = self.launch()
        code = process.wait(_READY_TIMEOUT)
        self._process = None
        return code, self.log().strip().splitlines()[-1]

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """An orderly end: every vTPM is parked."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(_STOP_TIMEOUT) == 0, self.log()
        self._process = None

    def kill(self, *, swtpms: bool = True) -> None:
        """SIGKILL to the manager and all its swtpms at once; without ``swtpms`` they have to end by themselves."""
        assert self._process is not None
        for pid in [self.pid, *(self.swtpms() if swtpms else [])]:
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        until(lambda: not self.swtpms(), what="swtpms are gone")

    def killed(self) -> None:
        """Wait for the end of a manager that kills itself, and of its swtpms."""
        assert self._process is not None
        assert self._process.wait(_STOP_TIMEOUT) == -signal.SIGKILL, self.log()
        self._process = None
        until(lambda: not self.swtpms(), what="swtpms are gone")

    def swtpms(self) -> list[int]:
        """Process ids of the swtpms that work below our directory."""
        return [pid for pid, line in processes(f"dir={self.state}/runs/").items() if line.startswith("swtpm ")]

    def log(self) -> str:
        """All that the manager and its swtpms have said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    # -- the operator ---------------------------------------------------------------------------------------

    @property
    def authority(self) -> Path:
        """The directory of the authority and of the operator that vtpmctl uses by itself."""
        return self.directory.parent / local.DIRECTORY

    def admin(self, key: SigningKey | None = None) -> Client:
        """A connection to the admin link; by default with that operator's key."""
        socket = self.directory / "admin.sock"
        return Client.connect(socket, key=key or SigningKey.load(self.authority / local.OPERATOR_KEY))

    def vtpmctl(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run vtpmctl --json: here, since a Python of its own takes longer than most verbs, or else as a process."""
        argv = self._ctl_argv(args)
        if threading.current_thread() is not threading.main_thread():  # standard output belongs to all threads
            return subprocess.run(argv, cwd=ROOT, env=environment(self.directory), capture_output=True, text=True)
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = vtpmctl.main(argv[3:])
            except SystemExit as error:  # of the parser
                code = int(error.code or 0)
        return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())

    def vtpmctl_later(self, *args: str) -> subprocess.Popen[bytes]:
        """Start vtpmctl, do not wait."""
        return subprocess.Popen(
            self._ctl_argv(args), cwd=ROOT, env=environment(self.directory), stdout=subprocess.DEVNULL
        )

    def _ctl_argv(self, args: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "manager_vm.ctl", "-m", str(self.directory), "--json", *args]

    def ctl(self, *args: str) -> Any:
        """The result of a verb; Refused if it fails."""
        done = self.vtpmctl(*args)
        said = json.loads(done.stdout) if done.stdout.strip() else None
        if done.returncode:
            error = (said or {}).get("error", {})
            raise Refused(
                done.returncode, error.get("name", ""), error.get("text", done.stderr), error.get("cause", "")
            )
        return said

    def show(self, name: str) -> dict[str, Any]:
        """``vtpmctl show``."""
        shown: dict[str, Any] = self.ctl("show", name)
        return shown

    def swtpm_pid(self, name: str) -> int:
        """Process id of a running vTPM's swtpm."""
        pid = self.show(name)["pid"]
        assert isinstance(pid, int)
        return pid

    def add(self, *names: str) -> None:
        """Create vTPMs, attach them to their own channels, power them on."""
        for name in names:
            self.ctl("create", name)
            self.ctl("attach", name)

    # -- the guests -----------------------------------------------------------------------------------------

    def channel(self, name: str) -> str:
        """The channel's address."""
        return f"unix:{self.directory}/channels/{name}.sock"

    def frontend(self, *args: str) -> subprocess.CompletedProcess[str]:
        """``python -m guest_frontend`` with nothing on stdin, for at most 20 s."""
        argv = [sys.executable, "-m", "guest_frontend", *args]
        return subprocess.run(
            argv, cwd=ROOT, env=environment(self.directory), input="", capture_output=True, text=True, timeout=20
        )

    def guest(self, name: str) -> Guest:
        """tpm2-tools over ``pipe``."""
        files = self.directory / f"guest-{name}"
        files.mkdir(exist_ok=True)
        return Guest(f"cmd:{sys.executable} -m guest_frontend pipe {self.channel(name)}", files, self.directory)

    def link(self, name: str) -> Link:
        """A front end of this process, with raw commands; the caller closes it."""
        link = Link(self.channel(name), patience=10.0)
        link.open(5.0)
        return link


class Guest:
    """Runs TPM tools in a directory of its own."""

    def __init__(self, tcti: str, files: Path, runtime: Path) -> None:
        self.files = files
        self.env = environment(runtime, TPM2TOOLS_TCTI=tcti, TSS2_LOG="all+none")

    def attempt(self, *argv: str, stdin: bytes = b"", timeout: float = 60.0) -> subprocess.CompletedProcess[bytes]:
        """Run a tool, whatever comes of it."""
        return subprocess.run(argv, cwd=self.files, env=self.env, input=stdin, capture_output=True, timeout=timeout)

    def run(self, *argv: str, stdin: bytes = b"") -> bytes:
        """Run a tool that must succeed; its output."""
        done = self.attempt(*argv, stdin=stdin)
        assert done.returncode == 0, f"{argv}: {done.stderr.decode(errors='replace')}"
        return done.stdout

    def fails(self, *argv: str) -> str:
        """Run a tool that must fail; what it complains about, in lower case."""
        done = self.attempt(*argv)
        assert done.returncode != 0, f"{argv} succeeded: {done.stdout!r}"
        return done.stderr.decode(errors="replace").lower()

    def pcr(self, number: int) -> str:
        """A SHA-256 PCR, hex in lower case."""
        return self.run("tpm2_pcrread", f"sha256:{number}").decode().split("0x")[1].strip().lower()

    def extend(self, number: int, digest: str = "11" * 32) -> str:
        """Extend a SHA-256 PCR; its new value."""
        self.run("tpm2_pcrextend", f"{number}:sha256={digest}")
        return self.pcr(number)

    def define(
        self, index: str, size: int = 32, attributes: str = "ownerread|ownerwrite|authread|authwrite|no_da"
    ) -> None:
        """Define an owner NV index."""
        self.run("tpm2_nvdefine", index, "-C", "o", "-s", str(size), "-a", attributes)

    def write(self, index: str, data: bytes) -> None:
        """NV_Write."""
        self.run("tpm2_nvwrite", index, "-C", "o", "-i", "-", stdin=data)

    def read(self, index: str) -> bytes:
        """NV_Read."""
        return self.run("tpm2_nvread", index, "-C", "o")
