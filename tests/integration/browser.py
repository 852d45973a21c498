"""A real browser without a window, over the DevTools protocol on a pipe. No host name leads anywhere from it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

_PATIENCE = 20.0  # seconds for an answer
_FREE = 10  # descriptors from here on are nobody's
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)


class Browser:
    """One tab. ``directory``: of the profile and the log."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("chromium")
        if program is None:
            raise FileNotFoundError("there is no chromium; run ./build.sh test, which installs it")
        self._events: list[dict[str, Any]] = []
        self._number, self._left, self._session = 0, b"", ""
        argv = [program, *_OPTIONS, f"--user-data-dir={directory / 'profile'}", "about:blank"]
        with open(directory / "browser.log", "wb") as log:
            self._process, self._to, self._from = _start(argv, log.fileno(), directory)
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = str(self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Network"):
            self.ask(f"{domain}.enable")

    def open(self, page: Path, width: int, height: int, *, phone: bool = False) -> list[str]:
        """Load a page; the addresses of all that it asks for. ``phone``: as phones read <meta name=viewport>."""
        self._events.clear()
        size = {"width": width, "height": height, "screenWidth": width, "screenHeight": height}
        self.ask("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=3 if phone else 1, mobile=phone)
        self.ask("Page.navigate", url=page.as_uri())
        self._until(lambda: any(each["method"] == "Page.loadEventFired" for each in self._events), "the page is loaded")
        self.run("1")  # what the page has asked for until now was told before the answer
        asked = (each["params"] for each in self._events if each["method"] == "Network.requestWillBeSent")
        return [str(each["request"]["url"]) for each in asked]

    def look(self, *, medium: str = "", scheme: str = "light") -> None:
        """As on paper ("print"), or with a dark background."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=medium, features=features)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise ValueError(f"the script fails: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def pdf(self) -> bytes:
        """The page on A4."""
        size = {"paperWidth": 8.27, "paperHeight": 11.69}
        return base64.b64decode(self.ask("Page.printToPDF", printBackground=True, **size)["data"])

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        found: list[dict[str, Any]] = []
        self._until(lambda: bool(found), method, found)
        if "error" in found[0]:
            raise ValueError(f"{method}: {found[0]['error']['message']}")
        return dict(found[0]["result"])

    def close(self) -> None:
        """End it with all its processes, which are a group of their own."""
        os.close(self._to)
        os.close(self._from)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _until(self, condition: Any, what: str, answers: list[dict[str, Any]] | None = None) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._from, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError(f"the browser {'has ended' if ready else 'does not answer'}: {what}")
            *whole, self._left = (self._left + data).split(b"\0")
            for message in map(json.loads, whole):
                if message.get("id") == self._number and answers is not None:
                    answers.append(message)
                elif "method" in message:
                    self._events.append(message)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _start(argv: list[str], log: int, scratch: Path) -> tuple[subprocess.Popen[bytes], int, int]:
    """The process, which reads commands at descriptor 3 and answers at 4; our ends of both. Files go to ``scratch``."""
    theirs_in, ours_out = _pipe()
    ours_in, theirs_out = _pipe()
    script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out} {theirs_in}<&- {theirs_out}>&-'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *argv],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(theirs_in, theirs_out),
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    os.close(theirs_in)
    os.close(theirs_out)
    return process, ours_out, ours_in


def _pipe() -> tuple[int, int]:
    """Descriptors that are neither 3 nor 4."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, _FREE) for each in ends)
    for each in ends:
        os.close(each)
    return high[0], high[1]
