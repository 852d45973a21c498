"""image/build without building: the initrd's archive, the tree of an image, the bookkeeping of steps, what goes in."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import stat
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.builder import initrd, steps, tree
from image.builder.initrd import Archive
from image.builder.kinds import KINDS, PROFILES
from image.builder.steps import EPOCH, Builder, Layout
from image.builder.tree import Addition
from manager_vm.errors import BuildError

ROOT = Path(__file__).parents[2]

# -- the initrd's archive (cpio(5), "New ASCII Format") -----------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One member of a cpio archive."""

    inode: int
    mode: int
    owner: tuple[int, int]
    links: int
    mtime: int
    data: bytes


def unpacked(packed: bytes) -> dict[str, Entry]:
    """A cpio archive, read strictly: alignment, one trailer, nothing behind it; members in order."""
    archive = io.BytesIO(gzip.decompress(packed))
    found: dict[str, Entry] = {}
    while True:
        assert archive.tell() % 4 == 0
        head = archive.read(110)
        assert head[:6] == b"070701"
        fields = [int(head[at : at + 8], 16) for at in range(6, 110, 8)]
        inode, mode, uid, gid, links, mtime, size, *devices, name_size, check = fields
        assert (devices, check) == ([0] * 4, 0)
        name = archive.read(name_size)
        assert name.endswith(b"\0") and name.count(b"\0") == 1
        assert archive.read(-archive.tell() % 4).strip(b"\0") == b""
        data = archive.read(size)
        assert len(data) == size
        assert archive.read(-archive.tell() % 4).strip(b"\0") == b""
        if name == b"TRAILER!!!\0":
            assert archive.read() == data == b""
            return found
        assert name[:-1].decode() not in found
        found[name[:-1].decode()] = Entry(inode, mode, (uid, gid), links, mtime, data)


def test_an_archive_has_what_was_put_in_with_types_modes_and_one_time() -> None:
    archive = Archive()
    archive.file("bin/busybox", b"\x7fELF")
    archive.link("bin/sh", "busybox")
    archive.directory("dev")
    found = unpacked(archive.pack())
    assert {name: (oct(entry.mode), entry.data) for name, entry in found.items()} == {
        "bin": ("0o40755", b""),
        "bin/busybox": ("0o100755", b"\x7fELF"),
        "bin/sh": ("0o120777", b"busybox"),
        "dev": ("0o40755", b""),
    }
    assert {(entry.owner, entry.links, entry.mtime) for entry in found.values()} == {((0, 0), 1, EPOCH)}
    assert len({entry.inode for entry in found.values()}) == len(found)


names = st.text("abcxyz-_.0189", min_size=1, max_size=9).filter(lambda name: name not in (".", ".."))
files = st.dictionaries(st.lists(names, min_size=1, max_size=4).map("/".join), st.binary(max_size=40), max_size=8)


@given(files)
def test_an_archive_of_any_lengths_reads_back_with_parents_before_their_children(some: dict[str, bytes]) -> None:
    plain = {path: data for path, data in some.items() if not any(each.startswith(f"{path}/") for each in some)}
    archive = Archive()
    for path, data in plain.items():
        archive.file(path, data)
    found = unpacked(archive.pack())
    assert {path: entry.data for path, entry in found.items() if stat.S_ISREG(entry.mode)} == plain
    seen: set[str] = set()
    for path in found:
        assert "/" not in path or path.rsplit("/", 1)[0] in seen
        seen.add(path)


def test_equal_archives_are_equal_bytes_whatever_the_order_they_were_filled_in() -> None:
    one, other = Archive(), Archive()
    for archive, order in ((one, ("a/x", "b")), (other, ("b", "a/x"))):
        for path in order:
            archive.file(path, path.encode())
    assert one.pack() == other.pack()
    assert int.from_bytes(one.pack()[4:8], "little") == EPOCH  # in the header of gzip (RFC 1952)


# -- the initrd's modules and libraries -----------------------------------------------------------------------


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A kernel's modules: some with others below them, some built in."""
    path = tmp_path / "modules"
    path.mkdir()
    lines = [
        "kernel/drivers/block/virtio_blk.ko.xz: kernel/virtio/virtio_ring.ko.xz kernel/virtio/virtio.ko.xz",
        "kernel/virtio/virtio_ring.ko.xz: kernel/virtio/virtio.ko.xz",
        "kernel/virtio/virtio.ko.xz:",
        "kernel/md/dm-verity.ko: kernel/md/dm-bufio.ko kernel/md/dm-mod.ko",
        "kernel/md/dm-bufio.ko: kernel/md/dm-mod.ko",
        "kernel/md/dm-mod.ko:",
        "kernel/net/other.ko.xz:",
    ]
    (path / "modules.dep").write_text("".join(f"{line}\n" for line in lines))
    (path / "modules.builtin").write_text("kernel/fs/erofs/erofs.ko\nkernel/virtio/virtio-pci.ko\n")
    return path


def want(monkeypatch: pytest.MonkeyPatch, *wanted: str) -> None:
    """INITRD_MODULES."""
    monkeypatch.setattr(initrd, "INITRD_MODULES", wanted)


def test_each_module_comes_once_behind_those_it_needs_and_what_is_built_in_does_not(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want(monkeypatch, "virtio_pci", "virtio_ring", "virtio_blk", "dm_verity", "erofs")
    assert [path.rsplit("/", 1)[1] for path in initrd.module_order(modules)] == [
        "virtio.ko.xz",
        "virtio_ring.ko.xz",
        "virtio_blk.ko.xz",
        "dm-mod.ko",
        "dm-bufio.ko",
        "dm-verity.ko",
    ]


def test_a_module_that_the_kernel_does_not_have_is_an_error_that_names_it(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want(monkeypatch, "virtio_blk", "crc32c_generic")
    with pytest.raises(BuildError, match=r"the kernel has no module crc32c_generic\nremedy: .*INITRD_MODULES"):
        initrd.module_order(modules)


def test_libraries_are_the_absolute_paths_that_ldd_found_each_once() -> None:
    listing = """\
\tlinux-vdso.so.1 (0x00007ffd4b9f2000)
\tlibcryptsetup.so.12 => /lib/x86_64-linux-gnu/libcryptsetup.so.12 (0x00007f0c2e600000)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0c2e400000)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0c2e400000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f0c2e7a0000)
"""
    assert initrd.libraries_of(listing) == [
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib/x86_64-linux-gnu/libcryptsetup.so.12",
        "/lib64/ld-linux-x86-64.so.2",
    ]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A tools root in which a library is a chain of links, one of them absolute."""
    root = tmp_path / "tools"
    for path in ("usr/bin/busybox", "usr/sbin/veritysetup", "usr/lib/libc-2.41.so", "usr/lib/real/ld.so"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    (root / "lib").symlink_to("usr/lib")
    (root / "usr/lib/libc.so.6").symlink_to("/usr/lib/libc.so")
    (root / "usr/lib/libc.so").symlink_to("libc-2.41.so")
    return root


def test_the_initrd_has_init_its_programs_their_libraries_and_the_modules_in_order(
    tools: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want(monkeypatch, "virtio_blk", "dm_verity", "erofs")
    for path in initrd.module_order(modules):
        (modules / path).parent.mkdir(parents=True, exist_ok=True)
        data = f"code of {path}".encode()
        (modules / path).write_bytes(lzma.compress(data) if path.endswith(".xz") else data)
    found = unpacked(initrd.make(tools, modules, ["/lib/libc.so.6", "/lib/real/ld.so"]))
    assert found["init"].data == (ROOT / "image/builder/init").read_bytes()
    assert found["bin/busybox"].data == b"usr/bin/busybox"
    for applet in ("sh", "mount", "cat", "sleep", "insmod", "switch_root"):  # what init calls
        assert (found[f"bin/{applet}"].data, stat.S_ISLNK(found[f"bin/{applet}"].mode)) == (b"busybox", True)
    assert found["bin/veritysetup"].data == b"usr/sbin/veritysetup"
    assert found["lib/libc.so.6"].data == b"usr/lib/libc-2.41.so"
    assert found["lib/real/ld.so"].data == b"usr/lib/real/ld.so"
    order = found["modules/order"].data.decode().split()
    assert order == ["virtio.ko", "virtio_ring.ko", "virtio_blk.ko", "dm_mod.ko", "dm_bufio.ko", "dm_verity.ko"]
    assert found["modules/virtio_blk.ko"].data == b"code of kernel/drivers/block/virtio_blk.ko.xz"
    assert found["modules/dm_mod.ko"].data == b"code of kernel/md/dm-mod.ko"
    assert {f"modules/{name}" for name in order} <= found.keys()
    assert {"dev", "proc", "sys", "run", "root"} <= found.keys()


# -- the tree of an image -------------------------------------------------------------------------------------

Member = tuple[str, bytes | None]  # path, content of a file or None for a directory
PACKAGES: list[Member] = [
    ("etc", None),
    ("etc/plain.conf", b"of a package"),
    ("etc/kept.conf", b"of a package"),
    ("usr", None),
    ("usr/bin", None),
    ("usr/bin/tool", b"tool"),
]


def packages(path: Path, members: list[Member], mtime: float = 1_000_000_000.5) -> Path:
    """A tar as mmdebstrap makes it: names begin with "./", times are not round."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for index, (name, content) in enumerate(members):
            info = tarfile.TarInfo(f"./{name}")
            info.mtime = mtime + index
            info.mode, info.uid, info.gid = (0o755 if content is None else 0o640), 3, 4
            info.type, info.size = (tarfile.DIRTYPE, 0) if content is None else (tarfile.REGTYPE, len(content))
            tar.addfile(info, io.BytesIO(content or b""))
    return path


class Tree:
    """The written tree: members by path, in order; contents of regular files."""

    def __init__(self, path: Path) -> None:
        self.members: dict[str, tarfile.TarInfo] = {}
        self.content: dict[str, bytes] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                assert name not in self.members, f"{name} is there twice"
                self.members[name] = member
                if member.isreg() and (file := tar.extractfile(member)) is not None:
                    self.content[name] = file.read()


def written(
    directory: Path,
    extra: list[Addition] | None = None,
    data: dict[str, bytes] | None = None,
    empty: tuple[str, ...] = (),
    members: list[Member] | None = None,
) -> Tree:
    """The tree that comes of packages and additions."""
    tar = packages(directory / "packages.tar", PACKAGES if members is None else members)
    tree.write(tar, "debug", extra or [], data or {}, empty, directory / "tree.tar")
    return Tree(directory / "tree.tar")


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """An overlay with a replaced file, a new one, and a masked unit."""
    root = tmp_path / "overlay"
    (root / "etc/new/deep").mkdir(parents=True)
    (root / "etc/plain.conf").write_bytes(b"of the overlay")
    (root / "etc/new/deep/file").write_bytes(b"new")
    (tmp_path / "overlay.links").write_text("# a masked unit\netc/new/masked.service /dev/null\n")
    return root


def test_an_overlays_file_takes_the_place_of_a_packages(tmp_path: Path, overlay: Path) -> None:
    made = written(tmp_path, list(tree.additions(overlay)))
    assert made.content["etc/plain.conf"] == b"of the overlay"
    assert made.content["etc/kept.conf"] == b"of a package"
    assert made.content["usr/bin/tool"] == b"tool"
    assert (made.members["usr/bin/tool"].mode, made.members["usr/bin/tool"].uid) == (0o640, 3)


def test_data_takes_the_place_of_a_packages_file_and_is_no_program(tmp_path: Path) -> None:
    made = written(tmp_path, data={"usr/bin/tool": b"compiled", "usr/lib/x/y.pyc": b"code"})
    assert (made.content["usr/bin/tool"], made.content["usr/lib/x/y.pyc"]) == (b"compiled", b"code")
    assert made.members["usr/bin/tool"].mode == 0o644


def test_a_masked_unit_is_a_link_to_dev_null(tmp_path: Path, overlay: Path) -> None:
    extra = [*tree.additions(overlay), *tree.links(tmp_path / "overlay.links")]
    member = written(tmp_path, extra).members["etc/new/masked.service"]
    assert (member.issym(), member.linkname, member.mode) == (True, "/dev/null", 0o777)


def test_parents_are_made_once_before_their_children_and_not_where_packages_have_them(
    tmp_path: Path, overlay: Path
) -> None:
    data = {"etc/new/deep/other": b"", "var/lib/x": b""}
    made = written(tmp_path, list(tree.additions(overlay)), data, ("var/lib/state", "etc/new"))
    seen: set[str] = set()
    for path in made.members:
        assert "/" not in path or path.rsplit("/", 1)[0] in seen, path
        seen.add(path)
    new = {path for path, member in made.members.items() if member.isdir() and member.uid == 0}
    assert new == {"etc/new", "etc/new/deep", "var", "var/lib", "var/lib/state"}
    assert {made.members[path].mode for path in new} == {0o755}


@pytest.mark.parametrize(
    ("mode", "kept"),
    [(0o600, 0o644), (0o666, 0o644), (0o444, 0o644), (0o700, 0o755), (0o777, 0o755), (0o4755, 0o755), (0o611, 0o644)],
)
def test_of_a_files_mode_its_owners_executable_bit_is_kept_and_it_belongs_to_root(
    tmp_path: Path, mode: int, kept: int
) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"")
    source.chmod(mode)
    member = written(tmp_path, [Addition(source, "usr/bin/mine")]).members["usr/bin/mine"]
    assert member.mode == kept
    assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")


LEFT_OUT = """
boot/vmlinuz-6.12 dev/null proc/1 run/lock tmp/x var/cache/apt/x var/log/dpkg.log var/lib/apt/lists/x
usr/share/man/man1/ls.1.gz usr/share/locale/de/x usr/share/info/dir usr/share/bash-completion/completions/x
usr/lib/python3.13/test/support/x.py usr/lib/python3.13/idlelib/x.py usr/lib/python3.9/ensurepip/x
initrd.img initrd.img.old vmlinuz vmlinuz.old etc/resolv.conf etc/hostname etc/machine-id etc/fstab
var/lib/dbus/machine-id
"""
STAYS = """
boot dev var/log tmp usr/share/man usr/share/doc/swtpm/copyright usr/lib/python3/dist-packages/test/x.py
usr/lib/python3.13/unittest/x.py etc/hostname.d etc/fstab.orig usr/lib/modules/6.12/kernel/x.ko var/lib/dbus/x
usr/boot/x home/tmp/x
"""


def test_what_an_appliance_does_not_need_is_gone_and_nothing_else(tmp_path: Path) -> None:
    made = written(tmp_path, members=[(path, b"") for path in f"{LEFT_OUT} {STAYS}".split()])
    assert list(made.members) == STAYS.split()


def test_an_overlay_may_bring_what_is_left_out_of_packages(tmp_path: Path) -> None:
    source = tmp_path / "machine-id"
    source.write_bytes(b"uninitialized\n")
    made = written(tmp_path, [Addition(source, "etc/machine-id")], members=[("etc", None), ("etc/machine-id", b"1234")])
    assert made.content == {"etc/machine-id": b"uninitialized\n"}


def test_two_runs_are_equal_bytes_although_all_times_differ(tmp_path: Path, overlay: Path) -> None:
    results = []
    for mtime in (1_600_000_000.25, 1_700_000_001.75):
        tar = packages(tmp_path / "packages.tar", PACKAGES, mtime)
        for path in [overlay, *overlay.rglob("*")]:
            os.utime(path, (mtime, mtime))
        extra = [*tree.additions(overlay), *tree.links(tmp_path / "overlay.links")]
        tree.write(tar, "debug", extra, {"etc/about.json": b"{}"}, ("var/lib/state",), tmp_path / "tree.tar")
        results.append((tmp_path / "tree.tar").read_bytes())
        made = Tree(tmp_path / "tree.tar")
        assert {member.mtime for member in made.members.values()} == {EPOCH}
        extra.reverse()
        tree.write(tar, "debug", extra, {"etc/about.json": b"{}"}, ("var/lib/state",), tmp_path / "tree.tar")
        results.append((tmp_path / "tree.tar").read_bytes())
    assert len(set(results)) == 1


def test_additions_are_all_files_below_a_folder_without_pythons_caches(tmp_path: Path) -> None:
    root = tmp_path / "package"
    (root / "sub/__pycache__").mkdir(parents=True)
    (root / "empty").mkdir()
    for path in ("a.py", "sub/b.py", "sub/__pycache__/b.cpython-313.pyc"):
        (root / path).write_bytes(b"")
    places = {each.place: each.source for each in tree.additions(root, "usr/lib/package")}
    assert places == {f"usr/lib/package/{path}": root / path for path in ("a.py", "sub/b.py")}
    assert [each.place for each in tree.additions(root)] == ["a.py", "sub/b.py"]
    assert list(tree.additions(root / "a.py", "usr/a.py")) == [Addition(root / "a.py", "usr/a.py")]


def test_a_symbolic_link_in_an_overlay_is_refused_for_not_every_copy_of_a_checkout_keeps_it(overlay: Path) -> None:
    (overlay / "etc/masked.service").symlink_to("/dev/null")
    with pytest.raises(BuildError, match=r"masked\.service is a symbolic link"):
        list(tree.additions(overlay))


def test_extracting_takes_matching_files_only_and_replaces_what_was_there(tmp_path: Path) -> None:
    members: list[Member] = [("boot", None), ("boot/vmlinuz-6.12", b"kernel"), ("boot/vmlinuz-6.12.sig", b"")]
    tar = packages(tmp_path / "packages.tar", members)
    target = tmp_path / "kernel"
    target.mkdir()
    (target / "old").touch()
    tree.extract(tar, r"boot/vmlinuz-[0-9.]+", target)
    found = sorted(path.relative_to(target) for path in target.rglob("*") if path.is_file())
    assert found == [Path("boot/vmlinuz-6.12")]
    assert (target / "boot/vmlinuz-6.12").read_bytes() == b"kernel"


# -- steps ----------------------------------------------------------------------------------------------------


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """A build in an empty checkout."""
    return Builder(Layout(tmp_path))


def test_a_step_is_fresh_when_it_was_done_with_this_key_and_its_outputs_are_there(builder: Builder) -> None:
    outputs = [builder.layout.cache / name for name in ("a.tar", "a.versions")]
    assert not builder.is_fresh("packages of a", "key")
    for path in outputs:
        path.touch()
    assert not builder.is_fresh("packages of a", "key", *outputs)
    builder.done("packages of a", "key")
    assert builder.is_fresh("packages of a", "key", *outputs)
    assert not builder.is_fresh("packages of a", "other", *outputs)
    assert not builder.is_fresh("packages of b", "key", *outputs)
    assert Builder(builder.layout).is_fresh("packages of a", "key", *outputs)
    outputs[1].unlink()
    assert not builder.is_fresh("packages of a", "key", *outputs)


def test_a_step_that_has_begun_is_not_done_until_it_says_so(
    builder: Builder, capsys: pytest.CaptureFixture[str]
) -> None:
    builder.done("tools root", "key")
    log = builder.layout.logs / "tools-root.log"
    log.write_text("of the last run")
    builder.begin("tools root")
    assert "s] tools root\n" in capsys.readouterr().out
    assert not builder.is_fresh("tools root", "key")
    assert not log.exists()
    builder.done("tools root", "key")
    assert builder.is_fresh("tools root", "key")


class FakeProgram:
    """Stands for ``subprocess.run``: says ``lines`` on stderr and ``out`` on stdout, ends with ``code``."""

    def __init__(self, code: int = 0, lines: int = 0, out: bytes = b"") -> None:
        self.code, self.lines, self.out = code, lines, out
        self.env: dict[str, str] = {}

    def run(self, argv: list[str], **how: Any) -> subprocess.CompletedProcess[bytes]:
        """Run it."""
        if self.code < 0:
            raise FileNotFoundError(argv[0])
        self.env = how["env"]
        how["stderr"].write(b"".join(b"line %d\n" % number for number in range(self.lines)))
        return subprocess.CompletedProcess(argv, self.code, self.out)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> FakeProgram:
    """Every program is this one."""
    fake = FakeProgram()
    monkeypatch.setattr(subprocess, "run", fake.run)
    return fake


def test_a_program_that_fails_is_an_error_with_step_log_its_end_and_the_remedy(
    builder: Builder, program: FakeProgram
) -> None:
    program.code, program.lines = 3, 100
    with pytest.raises(BuildError) as failed:
        builder.run("image of manager", ["mkfs.erofs", "x"], "is the disk full?")
    first, *shown, last = str(failed.value).splitlines()
    log = builder.layout.logs / "image-of-manager.log"
    assert first == f"step 'image of manager': mkfs.erofs ended with 3; the end of its log {log}:"
    assert shown == [f"line {number}" for number in range(100 - len(shown), 100)]
    assert 5 <= len(shown) <= 30
    assert last == "remedy: is the disk full?"
    assert log.read_text().startswith("\n$ mkfs.erofs x\nline 0\n")


def test_a_program_that_is_not_installed_is_an_error_with_a_remedy(builder: Builder, program: FakeProgram) -> None:
    program.code = -1
    with pytest.raises(BuildError, match=r"^step 'tools root': mmdebstrap is not installed\nremedy: "):
        builder.run("tools root", ["mmdebstrap"], "unused")


def test_a_program_that_succeeds_gives_its_output_and_each_adds_to_the_log(
    builder: Builder, program: FakeProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "1")
    program.lines, program.out = 1, b"Root hash: 00\n"
    assert builder.run("s", ["veritysetup"], "r") == "Root hash: 00\n"
    program.lines, program.out = 0, b""
    assert builder.run("s", ["ukify", "build"], "r", {"INITRD": "No"}) == ""
    log = builder.layout.logs / "s.log"
    assert log.read_text() == "\n$ veritysetup\nline 0\nRoot hash: 00\n\n$ ukify build\n"
    assert program.env.items() >= {"SOURCE_DATE_EPOCH": str(EPOCH), "INITRD": "No", "FROM_OUTSIDE": "1"}.items()


def test_a_key_is_that_of_the_parts_and_not_of_their_text(builder: Builder) -> None:
    assert steps.key_of(["a", "bc"]) == steps.key_of(iter(["a", "bc"]))
    assert len({steps.key_of(parts) for parts in (["ab", "c"], ["a", "bc"], ["abc"], ["bc", "a"], [], [""])}) >= 5


def test_a_key_of_files_changes_with_name_content_executable_bit_and_link_and_with_nothing_else(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"content")
    link.symlink_to("/dev/null")

    def key() -> str:
        return steps.key_of_files(tmp_path.rglob("*"), tmp_path)

    before = key()
    os.utime(file, (1, 1))
    file.chmod(0o640)
    (tmp_path / "folder").mkdir()
    assert key() == before == steps.key_of_files([link, file, tmp_path / "folder"], tmp_path)
    seen = {before}
    file.write_bytes(b"Content")
    seen.add(key())
    file.chmod(0o750)
    seen.add(key())
    link.unlink()
    link.symlink_to("/dev/full")
    seen.add(key())
    file.rename(tmp_path / "file2")  # sorted where it was
    seen.add(key())
    assert len(seen) == 5


def test_a_digest_of_a_file_of_several_pieces_is_that_of_the_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * (3 << 12) + b"rest"
    (tmp_path / "big").write_bytes(data)
    assert steps.sha256_of(tmp_path / "big") == hashlib.sha256(data).hexdigest()


# -- what goes into which image -------------------------------------------------------------------------------


def test_only_a_production_manager_has_no_agent_that_runs_commands() -> None:
    with_agent = {
        (kind, profile)
        for kind in KINDS
        for profile in PROFILES
        if "qemu-guest-agent" in KINDS[kind].packages_of(profile)
    }
    assert with_agent == {("manager", "debug"), ("guest", "debug"), ("guest", "production")}
    debug, production = (set(KINDS["manager"].packages_of(profile)) for profile in ("debug", "production"))
    assert debug - production == {"qemu-guest-agent"}
    assert production < debug


@pytest.mark.parametrize("kind", KINDS)
def test_packages_are_sorted_and_named_once(kind: str) -> None:
    for profile in PROFILES:
        asked = KINDS[kind].packages_of(profile)
        assert asked == sorted(set(asked))
        assert {"systemd", "python3", "linux-image-cloud-amd64"} <= set(asked)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_image_takes_of_the_checkout_is_there(kind: str) -> None:
    for path in (*KINDS[kind].code, *(source for source, _ in KINDS[kind].files)):
        assert (ROOT / path).exists(), path
    assert (ROOT / "image/overlay" / kind).is_dir()


def test_a_guests_image_has_nothing_that_makes_or_keeps_vtpms() -> None:
    assert "swtpm" not in KINDS["guest"].packages_of("debug")
    for part in ("store", "keys", "vtpm", "server", "crypto.py", "ctl"):
        assert not any(path.startswith(f"manager_vm/{part}") for path in KINDS["guest"].code)
    assert "manager_vm" not in KINDS["guest"].code


# -- the production profile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "usr/bin/sh",
        "usr/bin/bash",
        "usr/bin/dash",
        "usr/lib/klibc/bin/sh",
        "usr/bin/perl",
        "usr/bin/apt-get",
        "usr/bin/dpkg",
        "usr/sbin/agetty",
        "usr/sbin/sulogin",
        "usr/bin/su",
        "usr/bin/login",
        "usr/bin/passwd",
        "usr/lib/klibc/bin/cat",
        "var/lib/dpkg/info/bash.list",
        "usr/bin/busctl",
        "usr/sbin/sshd",
        "usr/bin/mawk",
    ],
)
def test_a_production_image_has_no_shell_and_nothing_to_log_in_with(path: str) -> None:
    assert tree.left_out(path, "production")
    assert not tree.left_out(path, "debug")


@pytest.mark.parametrize(
    "path",
    [
        "usr/bin/swtpm",
        "usr/bin/python3.13",
        "usr/bin/unshare",
        "usr/bin/setpriv",
        "usr/bin/prlimit",
        "usr/sbin/init",
        "usr/sbin/mkfs.ext4",
        "usr/sbin/e2fsck",
        "usr/sbin/resize2fs",
        "usr/bin/systemctl",
        "usr/bin/kmod",
        "usr/lib/systemd/systemd",
        "var/lib/dpkg/status",
        "usr/bin",
        "usr/lib/x86_64-linux-gnu/libtpms.so.0",
    ],
)
def test_a_production_image_has_what_the_manager_needs(path: str) -> None:
    assert not tree.left_out(path, "production")


def test_each_profile_has_a_place_of_its_own(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert layout.output("manager", "debug") != layout.output("manager", "production")
