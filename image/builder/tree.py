"""The root file system as one tar: the packages without what an appliance does not need, overlays, our own code."""

from __future__ import annotations

import io
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from image.builder.kinds import PRODUCTION_LEFT_OUT, PRODUCTION_PROGRAMS
from image.builder.steps import EPOCH
from manager_vm.errors import BuildError

# paths (without the leading "./") that do not go into an image
_LEFT_OUT = re.compile(
    r"(boot|dev|proc|sys|run|tmp|var/cache|var/log|var/tmp|var/lib/apt)/.*"
    r"|usr/share/(bash-completion|bug|doc-base|initramfs-tools|info|locale|man|menu|zsh)/.*"
    r"|usr/lib/python3\.\d+/(ensurepip|idlelib|lib2to3|pydoc_data|test|turtledemo)/.*"
    r"|(initrd\.img|vmlinuz)(\.old)?|etc/(resolv\.conf|hostname|machine-id|fstab)|var/lib/dbus/machine-id"
)
_DIRECTORY, _FILE, _PROGRAM = 0o755, 0o644, 0o755


@dataclass(frozen=True, slots=True)
class Addition:
    """The file ``source`` of the checkout at ``place`` in the image, or (``link``) a symbolic link that it asks for."""

    source: Path
    place: str
    link: str = ""


def additions(root: Path, place: str = "") -> Iterator[Addition]:
    """All files below ``root`` (or the one file ``root``), each with its place; caches of Python stay out."""
    if not root.is_dir():
        yield Addition(root, place)
        return
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_symlink():
            raise BuildError(f"{path} is a symbolic link\nremedy: name it in a .links file: not every copy keeps links")
        if path.is_file() and "__pycache__" not in relative.parts:
            yield Addition(path, f"{place}/{relative}".lstrip("/"))


def links(listing: Path) -> Iterator[Addition]:
    """The symbolic links that a file names, one a line: PATH TARGET."""
    for line in listing.read_text().splitlines() if listing.exists() else ():
        if line and not line.startswith("#"):
            place, _, target = line.partition(" ")
            yield Addition(listing, place, target)


def extract(tar: Path, pattern: str, target: Path) -> None:
    """Extract the members whose path matches, regular files and directories only."""
    shutil.rmtree(target, ignore_errors=True)
    wanted = re.compile(pattern)
    with tarfile.open(tar) as packages:
        for member in packages:
            if wanted.fullmatch(member.name.removeprefix("./")) and (member.isfile() or member.isdir()):
                packages.extract(member, target, set_attrs=False)


def left_out(path: str, profile: str) -> bool:
    """Whether a package's file does not go into an image of this profile."""
    if _LEFT_OUT.fullmatch(path):
        return True
    folder, _, name = path.rpartition("/")
    if profile != "production":
        return False
    if folder in ("usr/bin", "usr/sbin"):
        return re.fullmatch(PRODUCTION_PROGRAMS, name) is None
    return re.fullmatch(PRODUCTION_LEFT_OUT, path) is not None


def write(
    packages: Path, profile: str, extra: list[Addition], data: dict[str, bytes], empty: Iterable[str], target: Path
) -> None:
    """The image's tree. ``extra`` and ``data`` (path -> content) replace what packages have at the same path.

    ``empty``: directories to be there.
    """
    placed = {each.place for each in extra} | data.keys()
    with tarfile.open(packages) as old, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new:
        present = set()
        for member in old:
            path = member.name.removeprefix("./").rstrip("/")
            if path in placed or left_out(path, profile):
                continue
            present.add(path)
            member.mtime = EPOCH
            member.pax_headers = {name: value for name, value in member.pax_headers.items() if name != "mtime"}
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
        writer = _Writer(new, present)
        for each in sorted(extra, key=lambda each: each.place):
            writer.add(each)
        for path, content in sorted(data.items()):
            writer.file(path, content, _FILE)
        for path in empty:
            writer.parents(f"{path}/")


class _Writer:
    """Adds files of the checkout, owned by root, with their parents."""

    def __init__(self, tar: tarfile.TarFile, present: set[str]) -> None:
        self._tar = tar
        self._present = present

    def add(self, each: Addition) -> None:
        """One file or symbolic link. Of its mode only the executable bit is kept: the rest is the checkout's umask."""
        if each.link:
            self.parents(each.place)
            info = self._info(each.place, 0o777)
            info.type, info.linkname = tarfile.SYMTYPE, each.link
            self._tar.addfile(info)
        else:
            mode = _PROGRAM if each.source.stat().st_mode & 0o100 else _FILE
            self.file(each.place, each.source.read_bytes(), mode)

    def file(self, path: str, content: bytes, mode: int) -> None:
        """A regular file."""
        self.parents(path)
        info = self._info(path, mode)
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content))

    def parents(self, path: str) -> None:
        """The directories above ``path``, where they are missing."""
        parts = path.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            parent = "/".join(parts[:count])
            if parent not in self._present:
                self._present.add(parent)
                info = self._info(parent, _DIRECTORY)
                info.type = tarfile.DIRTYPE
                self._tar.addfile(info)

    def _info(self, path: str, mode: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(f"./{path}")
        info.mode, info.mtime = mode, EPOCH
        return info
