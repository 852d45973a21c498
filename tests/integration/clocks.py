"""Two managers of one authority; the second one's swtpms see a clock that can be set."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.integration.conftest import managed, short_directory
from tests.integration.site import Site

_SHIM = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static int shift = -1;
__attribute__((constructor)) static void find(void)
{
    shift = open(getenv("SHIFT"), O_RDONLY | O_CLOEXEC);
}
int clock_gettime(clockid_t id, struct timespec *now)
{
    int result = syscall(SYS_clock_gettime, id, now);
    char seconds[24] = "";
    if (id == atol(getenv("CLOCK")) && pread(shift, seconds, sizeof seconds - 1, 0) > 0)
        now->tv_sec += atol(seconds);
    return result;
}
"""


class HostClock:
    """As the swtpms see it that are started as ``swtpm`` from now on, and while they run."""

    def __init__(self, directory: Path) -> None:
        self.swtpm, self._settings, self._shim = (directory / name for name in ("swtpm", "settings", "shim.so"))
        self._shift = directory / "shift"
        compiler = ["gcc", "-shared", "-fPIC", "-x", "c", "-o", str(self._shim), "-"]
        subprocess.run(compiler, input=_SHIM.encode(), check=True)
        self.set(0)
        self.swtpm.write_text(f'#!/bin/sh\n. {self._settings}\nexec swtpm "$@"\n')
        self.swtpm.chmod(0o755)

    def set(self, seconds: int, clock: int = time.CLOCK_REALTIME) -> None:
        """So much later than it is; negative: earlier. Those that run follow where they were started with a shift."""
        self._shift.write_text(str(seconds))
        settings = f"export LD_PRELOAD={self._shim} CLOCK={clock} SHIFT={self._shift}\n"
        self._settings.write_text(settings if seconds else "")


@contextmanager
def two_managers() -> Iterator[tuple[Site, HostClock]]:
    """The clock is that of ``Site.b``."""
    with ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        clock = HostClock(directory)
        managers = []
        for name, table in (("a", None), ("b", {"swtpm": str(clock.swtpm), "migration": "127.0.0.1:0"})):
            path = directory / name
            path.mkdir(mode=0o711)
            managers.append(stack.enter_context(managed(path, table, ())).start())
        yield Site(*managers), clock
