"""One image from its parts: tree, root.img, initrd, unified kernel image, and what describes them."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from image import measure
from image.builder import initrd, packages, root, tree
from image.builder.kinds import CMDLINE, DIST, Kind
from image.builder.root import Verity
from image.builder.steps import Builder, key_of, key_of_files, sha256_of
from image.builder.tools import Tools
from manager_vm.errors import BuildError

_FILES = ("root.img", "uki.efi", "vmlinuz", "initrd.img", "cmdline")
_KERNEL = r"boot/vmlinuz-.*"
_MODULES = r"usr/lib/modules/[^/]+/(modules\.(dep|builtin)|kernel/.*)"
_STUB = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
_REMEDY = "remove build/cache/tools and try again; is the disk full?"


class ImageBuild:
    """Builds one kind in one profile."""

    def __init__(self, builder: Builder, tools: Tools, kind: Kind, profile: str) -> None:
        self._builder = builder
        self._tools = tools
        self._kind = kind
        self._profile = profile
        self._step = f"image of {kind.name} {profile}"

    def make(self, *, update_lock: bool) -> None:
        """All steps; those whose inputs have not changed are skipped."""
        tar = packages.make(self._builder, self._kind, self._profile, update_lock=update_lock)
        target = self._builder.layout.output(self._kind.name, self._profile)
        additions = self._additions()
        versions = tar.with_suffix(".versions").read_text()
        own = key_of_files(Path(__file__).parent.glob("*"), self._builder.layout.source)
        sources = key_of_files((each.source for each in additions), self._builder.layout.source)
        places = [each.place + each.link for each in additions]
        key = key_of([self._profile, versions, self._tools.versions(), own, sources, *places])
        if self._builder.is_fresh(self._step, key, *(target / name for name in (*_FILES, "image.json"))):
            self._builder.say(f"{self._step}: unchanged")
            self._predict(target)
            return
        self._builder.begin(self._step)
        # beside its target, so that finished files are renamed there
        target.mkdir(parents=True, exist_ok=True)
        for name in ("image.json", "pcrs.json"):
            (target / name).unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{self._kind.name}-") as folder:
            self._assemble(Path(folder), tar, additions)
            for name in (*_FILES, "image.json"):
                (Path(folder) / name).rename(target / name)
        self._builder.done(self._step, key)
        self._predict(target)
        self._builder.say(f"{self._step}: {target}")

    def _additions(self) -> list[tree.Addition]:
        """Overlays, modules, other files; a later one takes the place of an earlier one."""
        source = self._builder.layout.source
        found: list[tree.Addition] = []
        for name in ("common", self._kind.name):
            found += tree.additions(source / "image/overlay" / name)
            found += tree.links(source / "image/overlay" / f"{name}.links")
        for part in self._kind.code:
            found += [each for each in tree.additions(source / part, f"{DIST}/{part}") if each.source.suffix == ".py"]
        found += [tree.Addition(source / part, place) for part, place in self._kind.files]
        return list({each.place: each for each in found}.values())

    def _assemble(self, folder: Path, tar: Path, additions: list[tree.Addition]) -> None:
        about = {"kind": self._kind.name, "profile": self._profile}
        tree.extract(tar, f"{_KERNEL}|{_MODULES}", folder / "kernel")
        data = self._compiled(folder, additions) | {"etc/vtpm-image.json": (json.dumps(about) + "\n").encode()}
        tree.write(tar, self._profile, additions, data, self._kind.directories, folder / "tree.tar")
        verity = root.make(self._tools, self._step, folder, "tree.tar", "root.img")
        (folder / "cmdline").write_text(f"{CMDLINE} vm.roothash={verity.root_hash} vm.hashoffset={verity.hash_offset}")
        self._boot_files(folder)
        self._describe(folder, about, verity)

    def _compiled(self, folder: Path, additions: list[tree.Addition]) -> dict[str, bytes]:
        """Byte code of our own modules, made by the image's Python version."""
        sources = folder / "code"
        for each in additions:
            if each.source.suffix == ".py":
                (sources / each.place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(each.source, sources / each.place)
        where = ["-s", "/mnt/code", "-p", "/", "/mnt/code"]
        compile_all = ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", *where]
        self._tools.run(self._step, compile_all, folder, "a module does not compile; the log says which")
        return {str(path.relative_to(sources)): path.read_bytes() for path in sources.rglob("*.pyc")}

    def _boot_files(self, folder: Path) -> None:
        kernels = sorted((folder / "kernel/boot").glob("vmlinuz-*"))
        if len(kernels) != 1:
            raise BuildError(f"{len(kernels)} kernels are installed instead of one\nremedy: rm build/cache/*.tar")
        version = kernels[0].name.removeprefix("vmlinuz-")
        shutil.copyfile(kernels[0], folder / "vmlinuz")
        listing = self._tools.run(self._step, ["ldd", "/usr/sbin/veritysetup"], folder, _REMEDY)
        modules = folder / "kernel/usr/lib/modules" / version
        archive = initrd.make(self._tools.root, modules, initrd.libraries_of(listing))
        (folder / "initrd.img").write_bytes(archive)
        make_uki(self._tools, self._step, folder, version)

    def _describe(self, folder: Path, about: dict[str, str], verity: Verity) -> None:
        described = {
            **about,
            "root_hash": verity.root_hash,
            "sha256": {name: sha256_of(folder / name) for name in _FILES},
        }
        (folder / "image.json").write_text(json.dumps(described, indent=2) + "\n")

    def _predict(self, target: Path) -> None:
        """Write the expected PCR values each time: they depend on measure.py, which no image does."""
        pending = target / "pcrs.json.tmp"
        pending.write_text(measure.report(target))
        pending.rename(target / "pcrs.json")


def make_uki(tools: Tools, step: str, folder: Path, version: str) -> None:
    """``folder``/uki.efi from vmlinuz (of this kernel version), initrd.img and cmdline there."""
    argv = ["ukify", "build", "--linux=/mnt/vmlinuz", "--initrd=/mnt/initrd.img", "--cmdline=@/mnt/cmdline"]
    argv += [f"--uname={version}", f"--stub={_STUB}", "--os-release=@/usr/lib/os-release", "--output=/mnt/uki.efi"]
    tools.run(step, argv, folder, _REMEDY)
