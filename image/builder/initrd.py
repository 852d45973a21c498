"""The initrd: busybox, veritysetup, a few kernel modules and ``init``, as a cpio archive made here (kernel
Documentation/driver-api/early-userspace/buffer-format.rst, "newc")."""

from __future__ import annotations

import gzip
import lzma
import re
from dataclasses import dataclass, field
from pathlib import Path

from image.builder.kinds import INITRD_MODULES
from image.builder.steps import EPOCH
from manager_vm.errors import BuildError

INIT = Path(__file__).with_name("init")
_PROGRAMS = ("usr/sbin/veritysetup",)
_BUSYBOX = "usr/bin/busybox"
_APPLETS = ("sh", "mount", "cat", "sleep", "insmod", "switch_root")
_DIRECTORIES = ("bin", "dev", "proc", "sys", "run", "root", "modules")
_DIRECTORY, _FILE, _LINK = 0o040755, 0o100755, 0o120777


@dataclass
class Archive:
    """Entries by path; parents come first because paths are sorted."""

    entries: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def directory(self, path: str) -> None:
        """A directory and its parents."""
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            self.entries.setdefault("/".join(parts[:count]), (_DIRECTORY, b""))

    def file(self, path: str, data: bytes) -> None:
        """An executable file."""
        if "/" in path:
            self.directory(path.rsplit("/", 1)[0])
        self.entries[path] = (_FILE, data)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self.entries[path] = (_LINK, target.encode())

    def pack(self) -> bytes:
        """The archive, compressed."""
        items = [*sorted(self.entries.items()), ("TRAILER!!!", (0, b""))]
        packed = b"".join(_entry(number, path, mode, data) for number, (path, (mode, data)) in enumerate(items))
        return gzip.compress(packed, 9, mtime=EPOCH)


def make(tools: Path, modules: Path, libraries: list[str]) -> bytes:
    """``tools``: the tools root. ``modules``: a kernel's /lib/modules/VERSION. ``libraries``: what programs need."""
    archive = Archive()
    for path in _DIRECTORIES:
        archive.directory(path)
    archive.file("init", INIT.read_bytes())
    archive.file("bin/busybox", (tools / _BUSYBOX).read_bytes())
    for applet in _APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    for path in _PROGRAMS:
        archive.file(f"bin/{path.rsplit('/', 1)[1]}", (tools / path).read_bytes())
    for path in libraries:
        archive.file(path.lstrip("/"), _inside(tools, path).read_bytes())
    order = module_order(modules)
    for path in order:
        archive.file(f"modules/{_module_name(path)}", _decompressed(modules / path))
    archive.file("modules/order", "".join(f"{_module_name(path)}\n" for path in order).encode())
    return archive.pack()


def libraries_of(listing: str) -> list[str]:
    """Absolute paths in the output of ldd(1)."""
    return sorted(set(re.findall(r"(/\S+) \(0x", listing)))


def module_order(modules: Path) -> list[str]:
    """Files to load, each after those it needs; BuildError if a module is neither there nor built in."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    paths = {_module_name(path).removesuffix(".ko"): path for path in needs}
    built_in = {_module_name(path).removesuffix(".ko") for path in (modules / "modules.builtin").read_text().split()}
    order: list[str] = []
    for name in INITRD_MODULES:
        if name in paths:
            # modules.dep lists what a module needs, the last to be loaded first
            order += [path for path in [*reversed(needs[paths[name]]), paths[name]] if path not in order]
        elif name not in built_in:
            raise BuildError(
                f"the kernel has no module {name}\nremedy: look at INITRD_MODULES in image/builder/kinds.py"
            )
    return order


def _module_name(path: str) -> str:
    """The file's name, uncompressed, as the kernel spells it."""
    return path.rsplit("/", 1)[-1].removesuffix(".xz").replace("-", "_")


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _inside(root: Path, path: str) -> Path:
    """A file of another root, symbolic links followed there."""
    found = root / path.lstrip("/")
    while found.is_symlink():
        target = found.readlink()
        found = root / str(target).lstrip("/") if target.is_absolute() else found.parent / target
    return found


def _entry(number: int, path: str, mode: int, data: bytes) -> bytes:
    name = path.encode() + b"\0"
    fields = (number + 1, mode, 0, 0, 1, EPOCH if mode else 0, len(data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
