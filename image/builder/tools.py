"""The tools root: a tree of Debian trixie with ukify, erofs-utils, veritysetup: Debian 12 lacks or has old ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from image.builder.kinds import SUITE, TOOLS
from image.builder.mirror import mirror
from image.builder.steps import Builder, key_of

_MIRROR_REMEDY = "check the mirror (VTPM_DEBIAN_MIRROR names another) and the disk's free space"
# a hook of mmdebstrap: what was installed, into the file {}
VERSIONS = "chroot \"$1\" dpkg-query -W -f '${{Package}} ${{Version}} ${{Architecture}}\\n' >'{}'"
# $1: the tools root, $2: the folder to see at /mnt; then the program. All mounts end with the program.
_ENTER = 'mount --bind "$2" "$1/mnt" && root=$1 && shift 2 && exec chroot "$root" "$@"'


class Tools:
    """Trixie's programs, run by ``run``. ``make`` builds the tree if it is missing or its package list changed."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self.root = builder.layout.cache / "tools"
        self._versions = builder.layout.cache / "tools.versions"

    def make(self) -> None:
        """Bootstrap the tree; half a minute, once."""
        key = key_of([SUITE, TOOLS, VERSIONS])
        if self._builder.is_fresh("tools root", key, self.root / "usr", self._versions):
            return
        self._builder.begin("tools root")
        shutil.rmtree(self.root, ignore_errors=True)
        bootstrap(self._builder, "tools root", TOOLS.split(), self.root, [VERSIONS.format(self._versions)])
        self._builder.done("tools root", key)

    def versions(self) -> str:
        """Lines "package version architecture": parts of these go into every image."""
        return self._versions.read_text()

    def run(self, step: str, argv: list[str], folder: Path, remedy: str) -> str:
        """Run a program of the tree that sees ``folder`` at /mnt; its stdout."""
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh"]
        return self._builder.run(step, [*enter, str(self.root), str(folder), *argv], remedy)


def bootstrap(builder: Builder, step: str, packages: list[str], target: Path, hooks: list[str]) -> None:
    """mmdebstrap into a directory, or into a tar where ``target`` ends so; .debs come from and go to the cache."""
    debs = builder.layout.debs
    archives = "/var/cache/apt/archives"
    argv = [
        "mmdebstrap",
        "--mode=root",
        "--variant=apt",
        f"--format={'tar' if target.suffix == '.tar' else 'directory'}",
    ]
    argv += ["--skip=download/empty,essential/unlink,cleanup/apt/cache", f"--include={','.join(packages)}"]
    argv += ['--aptopt=Acquire::Retries "3"']
    argv += [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("man", "doc", "info", "locale", "lintian")]
    argv += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    argv += [f'--setup-hook=mkdir -p "$1"{archives} && cp -t "$1"{archives} \'{debs}\'/*.deb 2>/dev/null || true']
    argv += [f"--customize-hook={hook}" for hook in hooks]
    argv += [f'--customize-hook=cp -n -t \'{debs}\' "$1"{archives}/*.deb && rm "$1"{archives}/*.deb']
    argv += [SUITE, str(target), f"deb {mirror()} {SUITE} main"]
    # INITRD=No: Debian's kernel package makes no initrd of its own
    builder.run(step, argv, _MIRROR_REMEDY, {"INITRD": "No", "TMPDIR": str(builder.layout.cache)})
    os.sync()
