"""packages: Debian's version order and known-vulnerable programs; image/builder: the package lock, the mirror."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.builder import lock
from image.builder.mirror import entries, mirror
from image.builder.steps import sha256_of
from manager_vm.errors import BuildError
from manager_vm.packages import MINIMUM, installed, known_vulnerable, sort_key

# each is below the next one, as "dpkg --compare-versions" says
VERSIONS = """
0~~ 0~ 0 0.0.1 0.1~rc1 0.1~rc1+b1 0.1 0.1-0ubuntu1 0.1-1~bpo11+1 0.1-1 0.1-1+b1 0.1-1.1 0.1-2 0.1-10 0.1a 0.1a-1 0.1b
0.1+dfsg-1 0.1.0 0.1.0+git20240101 0.2 0.9.2-3.1+deb12u1~exp1 0.9.2-3.1+deb12u1 0.9.2-3.1+deb12u2 0.9.2-3.2 0.9.10 1.0~~
1.0~ 1.0~beta1 1.0 1.0-1 1.00.1 1.1-1-1 1.1-1-2 2.41-12+deb13u5 2.41-12+deb13u10 10 20240101 1:0.1 1:1.2:3-1 1:1.2:4-1
1:9 2:0
"""
ASCENDING = VERSIONS.split()
EQUAL = [("1.0", "1.0-0"), ("0:1.0", "1.0"), ("1.01", "1.1"), ("1.0-01", "1.0-1"), ("1a", "1a0"), ("2:1.0", "02:1.0")]

STATUS = """\
Package: libtpms0
Status: install ok installed
Version: 0.9.2-3.1
Description: TPM emulation library
 with a line: that looks like a field
Conffiles:
 /etc/libtpms.conf 0123456789abcdef

Package: swtpm
Status: deinstall ok config-files
Version: 0.7.1-1

Package: half
Status: install ok half-installed
Version: 1

Package: held
Version: 1:2.0-3
Status: hold ok installed
"""


@pytest.mark.parametrize(("lower", "higher"), list(pairwise(ASCENDING)))
def test_versions_are_ordered_as_debian_orders_them(lower: str, higher: str) -> None:
    assert sort_key(lower) < sort_key(higher)


def test_the_order_of_versions_is_total() -> None:
    assert all(sort_key(lower) < sort_key(higher) for lower, higher in combinations(ASCENDING, 2))


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_versions_that_debian_calls_equal_are_equal(one: str, other: str) -> None:
    assert sort_key(one) == sort_key(other)


def test_installed_is_what_dpkg_has_installed_and_nothing_else(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(STATUS)
    assert installed(status) == {"libtpms0": "0.9.2-3.1", "held": "1:2.0-3"}


def test_a_system_without_dpkg_has_nothing_installed(tmp_path: Path) -> None:
    assert installed(tmp_path / "missing") == {}


@pytest.mark.parametrize("version", ["0.9.2-3.1", "0.9.2-3.1+deb12u1~1", "0.9.0", "0.9.2"])
def test_a_libtpms_below_the_fix_is_known_to_be_vulnerable(version: str) -> None:
    (sentence,) = known_vulnerable({"libtpms0": version, "other": "1"})
    assert f"libtpms0 {version}" in sentence
    assert "CVE-2025-49133" in sentence
    assert MINIMUM["libtpms0"][0] in sentence


@pytest.mark.parametrize("version", ["0.9.2-3.1+deb12u1", "0.9.2-3.2", "0.10.0-1", "1:0.1"])
def test_a_fixed_libtpms_and_one_that_is_not_there_are_no_complaint(version: str) -> None:
    assert known_vulnerable({"libtpms0": version}) == []
    assert known_vulnerable({"swtpm": "0.1"}) == []


# -- the package lock of an image -----------------------------------------------------------------------------

LOCK: lock.Lock = {"libc6": ("2.41-12", "amd64", "ab" * 32), "adduser": ("1:3.152", "all", "cd" * 32)}
words = st.text("abcdefghijklmnopqrstuvwxyz0123456789.+~:-", min_size=1, max_size=20)


@given(st.dictionaries(words, st.tuples(words, words, words)))
def test_a_lock_survives_its_text(some: lock.Lock) -> None:
    assert lock.load(lock.dump(some)) == some


def test_a_lock_is_one_sorted_line_a_package_and_may_have_comments() -> None:
    text = f"adduser 1:3.152 all {'cd' * 32}\nlibc6 2.41-12 amd64 {'ab' * 32}\n"
    assert lock.dump(LOCK) == text
    assert lock.load("# made by the build\n\n" + text) == LOCK


def test_every_difference_is_named_and_equality_is_none() -> None:
    assert lock.differences(LOCK, dict(LOCK)) == []
    found = {"libc6": ("2.41-13", "amd64", "ab" * 32), "new": ("1", "all", "ef" * 32)}
    assert lock.differences(LOCK, found) == [
        "adduser: locked 1:3.152, found absent",
        "libc6: locked 2.41-12, found 2.41-13",
        "new: locked absent, found 1",
    ]
    assert len(lock.differences(LOCK, {**LOCK, "libc6": ("2.41-12", "amd64", "ff" * 32)})) == 1


def test_a_lock_has_the_digest_of_each_package_file(tmp_path: Path) -> None:
    (tmp_path / "adduser_1%3a3.152_all.deb").write_bytes(b"package")
    found = lock.of_debs(tmp_path, "adduser 1:3.152 all\nlibc6 2.41-12 amd64\n")
    digest = sha256_of(tmp_path / "adduser_1%3a3.152_all.deb")
    assert found == {"adduser": ("1:3.152", "all", digest), "libc6": ("2.41-12", "amd64", "-")}


def test_production_demands_the_locked_packages_and_debug_reports_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VTPM_IMAGE_LOCK", raising=False)
    path = tmp_path / "packages.lock"
    with pytest.raises(BuildError, match="does not exist yet"):
        lock.check(path, LOCK, "production")
    path.write_text(lock.dump(LOCK))
    lock.check(path, LOCK, "production")
    with pytest.raises(BuildError, match=r"1 packages differ.*libc6[^\n]*\nremedy"):
        lock.check(path, {"adduser": LOCK["adduser"]}, "production")
    assert capsys.readouterr().out == ""
    lock.check(path, {"adduser": LOCK["adduser"]}, "debug")
    assert "libc6: locked 2.41-12, found absent" in capsys.readouterr().out


# -- the mirror -----------------------------------------------------------------------------------------------

ONE_LINE = """\
# deb http://commented.example/debian trixie main
deb-src http://source.example/debian trixie main
deb http://security.example/debian-security trixie-security main
deb http://contrib.example/debian trixie contrib
deb cdrom:[Debian 13]/ trixie main
deb [arch=amd64 signed-by=/etc/apt/key.gpg] http://mirror.example/debian/ trixie main contrib
"""
DEB822 = """\
# the archive
Types: deb
URIs: http://mirror.example/debian/
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: trixie-security
Components: main
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt configuration without sources."""
    monkeypatch.delenv("VTPM_DEBIAN_MIRROR", raising=False)
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_security_archives_source_lines_and_other_components_are_left_out() -> None:
    found = entries(ONE_LINE.replace("deb cdrom:[Debian 13]/ trixie main\n", ""), deb822=False)
    assert found == [("http://mirror.example/debian/", ["trixie"])]
    assert entries(DEB822, deb822=True) == [("http://mirror.example/debian/", ["trixie", "trixie-updates"])]


@pytest.mark.parametrize(
    ("name", "text"),
    [("sources.list", ONE_LINE), ("sources.list.d/a.list", ONE_LINE), ("sources.list.d/debian.sources", DEB822)],
)
def test_the_mirror_is_that_of_apt_in_either_format(apt: Path, name: str, text: str) -> None:
    (apt / name).write_text(text)
    assert mirror(apt) == "http://mirror.example/debian"


@pytest.mark.parametrize(
    "uri", ["http://other.example/ubuntu", "file:/srv/debian", "http://mirror.example/debian trixie-"]
)
def test_other_archives_are_no_mirror(apt: Path, uri: str) -> None:
    (apt / "sources.list").write_text(
        f"deb {uri} trixie-backports main\n" if "mirror" in uri else f"deb {uri} trixie main\n"
    )
    with pytest.raises(BuildError, match="VTPM_DEBIAN_MIRROR"):
        mirror(apt)


def test_a_file_that_apt_would_not_read_is_not_read(apt: Path) -> None:
    (apt / "sources.list.d" / "old.list.save").write_text(ONE_LINE)
    with pytest.raises(BuildError, match="no Debian mirror"):
        mirror(apt)


def test_the_environment_overrides_the_mirror(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (apt / "sources.list").write_text(ONE_LINE)
    monkeypatch.setenv("VTPM_DEBIAN_MIRROR", "http://mine.example/debian/")
    assert mirror(apt) == "http://mine.example/debian"
