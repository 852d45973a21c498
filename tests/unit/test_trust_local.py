"""trust.local: one authority in a directory, however many come at once, and never one that others could change."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from manager_vm.errors import ConfigError
from manager_vm.trust import approval, local, operator, policy
from manager_vm.trust.operator import Role

FILES = {"authority.key", "authority.pub", "authority.pem", "operator.key", "operators/local.json"}


def test_an_authority_is_made_once_with_an_enrolled_admin(tmp_path: Path) -> None:
    made = local.open_or_make(tmp_path / "authority")
    files = {str(path.relative_to(made.directory)) for path in made.directory.rglob("*") if path.is_file()}
    assert files == FILES
    assert stat.S_IMODE(made.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((made.directory / "operator.key").stat().st_mode) == 0o600
    found = operator.verify(made.enrolment, made.public)
    assert (found.role, found.key.id) == (Role.ADMIN, made.operator.public.id)
    assert local.open_or_make(tmp_path / "authority").public.id == made.public.id
    assert [path.name for path in tmp_path.iterdir()] == ["authority"]


def test_many_who_come_at_once_get_the_same_authority(tmp_path: Path) -> None:
    found: list[str] = []
    start = threading.Barrier(8)

    def come() -> None:
        start.wait()
        made = local.open_or_make(tmp_path / "new" / "authority")
        found.append(f"{made.public.id} {made.operator.public.id} {operator.verify(made.enrolment, made.public).name}")

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["authority"]


@pytest.mark.parametrize("mode", [0o701, 0o750, 0o777])
def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    local.open_or_make(tmp_path / "authority").directory.chmod(mode)
    with pytest.raises(ConfigError, match="must be a directory of this user with mode 0700"):
        local.open_or_make(tmp_path / "authority")
    assert local.operator_key(tmp_path / "m") is None


def test_a_link_or_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "b").write_text("")
    (tmp_path / "c").symlink_to(tmp_path / "nowhere")
    for name in "abc":
        with pytest.raises(ConfigError, match="must be a directory of this user"):
            local.open_or_make(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    made = local.open_or_make(tmp_path / "authority")
    os.chown(made.directory, 65534, 65534)
    with pytest.raises(ConfigError, match="must be a directory of this user"):
        local.open_or_make(made.directory)
    os.chown(made.directory, 0, 0)
    os.chown(made.directory / local.OPERATOR_KEY, 65534, 65534)
    assert local.operator_key(tmp_path / "m") is None


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    made = local.open_or_make(tmp_path / "authority")
    for name in ("operators/local.json", "authority.pub", "operator.key"):
        (made.directory / name).unlink()
    with pytest.raises(ConfigError, match=r"local\.json"):
        assert made.enrolment
    with pytest.raises(ConfigError, match=r"authority\.pub"):
        assert made.public
    with pytest.raises(ConfigError, match=r"operator\.key"):
        assert made.operator


def test_where_no_authority_can_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make an authority"):
        local.open_or_make(tmp_path / "file" / "authority")


def test_the_key_of_a_manager_is_in_its_directory_or_beside_it(tmp_path: Path) -> None:
    beside, manager = tmp_path / "authority", tmp_path / "m"
    assert local.operator_key(manager) is None
    local.open_or_make(beside)
    assert local.operator_key(manager) == beside / "operator.key"
    local.open_or_make(manager / "authority")
    assert local.operator_key(manager) == manager / "authority" / "operator.key"


def test_the_same_pcrs_are_approved_once(tmp_path: Path) -> None:
    made = local.open_or_make(tmp_path / "authority")
    values = {pcr: bytes([pcr]) * 32 for pcr in policy.BOUND_PCRS}
    first = made.approve("one", values)
    other = made.approve("two", values | {4: bytes(32)})
    assert made.approve("one", values) == first != other
    assert [approval.verify(data, made.public).number for data in (first, other)] == [0, 1]
