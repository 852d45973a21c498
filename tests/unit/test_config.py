"""config: what a configuration file may say, and errors that name the file and the key."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from manager_vm import config
from manager_vm.errors import ConfigError

MINIMAL = """
[manager]
state_dir = "/var/lib/vtpm"
run_dir = "/run/vtpm"
admin = "unix:/run/vtpm/admin.sock"
host_link = "virtio-serial:org.example.host"
"""


def written(directory: Path, text: str) -> Path:
    """A configuration file."""
    path = directory / "manager.toml"
    path.write_text(text)
    return path


def test_a_minimal_file_gets_the_defaults(tmp_path: Path) -> None:
    loaded = config.load(written(tmp_path, MINIMAL))
    assert (loaded.state_dir, loaded.run_dir) == (Path("/var/lib/vtpm"), Path("/run/vtpm"))
    assert (loaded.admin, loaded.host_link) == ("unix:/run/vtpm/admin.sock", "virtio-serial:org.example.host")
    assert (loaded.swtpm, loaded.uid_base, loaded.strict, loaded.own_host) == ("swtpm", 200_000, True, False)
    with pytest.raises(FrozenInstanceError):
        loaded.strict = False  # type: ignore[misc]


def test_every_key_can_be_set(tmp_path: Path) -> None:
    text = MINIMAL + 'swtpm = "/opt/swtpm"\nuid_base = 0\ncommand_deadline = 5\nmax_vtpms = 3\nvtpm_memory_mib = 64\n'
    loaded = config.load(written(tmp_path, text + "strict = false\nown_host = true\n"))
    assert (loaded.swtpm, loaded.uid_base, loaded.command_deadline) == ("/opt/swtpm", 0, 5)
    assert (loaded.max_vtpms, loaded.vtpm_memory_mib, loaded.strict, loaded.own_host) == (3, 64, False, True)


def test_a_missing_file_names_itself_and_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"manager\.toml does not exist; name the configuration with --config"):
        config.load(tmp_path / "manager.toml")


@pytest.mark.parametrize("text", ["", "[other]\n", "manager", "[manager\n", "\0"])
def test_a_file_without_a_manager_table_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"manager\.toml is not a TOML file with a \[manager\] table"):
        config.load(written(tmp_path, text))


def test_a_file_that_is_no_text_or_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "binary", tmp_path):
        with pytest.raises(ConfigError, match="is not a TOML file"):
            config.load(path)


def test_an_unknown_key_is_an_error_that_names_it_and_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"manager\.toml: unknown key 'sate_dir'; known are admin, .*, state_dir, "):
        config.load(written(tmp_path, MINIMAL + 'sate_dir = "/x"\n'))


@pytest.mark.parametrize("key", ["state_dir", "run_dir", "admin", "host_link"])
def test_a_missing_key_is_an_error_that_names_it(tmp_path: Path, key: str) -> None:
    text = "\n".join(line for line in MINIMAL.splitlines() if not line.startswith(key))
    with pytest.raises(ConfigError, match=f"a key is missing.*{key}"):
        config.load(written(tmp_path, text))


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("max_vtpms", '"many"', "str"),
        ("max_vtpms", "1.5", "float"),
        ("max_vtpms", "true", "bool"),
        ("command_deadline", "false", "bool"),
        ("strict", "1", "int"),
        ("strict", '"yes"', "str"),
        ("swtpm", "3", "int"),
        ("swtpm", "[]", "list"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_that_names_key_and_type(
    tmp_path: Path, key: str, value: str, kind: str
) -> None:
    with pytest.raises(ConfigError, match=rf"manager\.toml: {key} has the wrong type \({kind}\)"):
        config.load(written(tmp_path, MINIMAL + f"{key} = {value}\n"))


@pytest.mark.parametrize("root", [True, False])
def test_a_manager_in_one_process_has_everything_below_its_directory(root: bool) -> None:
    made = config.for_dev(Path("/srv/a"), root=root)
    assert (made.state_dir, made.run_dir) == (Path("/srv/a/state"), Path("/srv/a"))
    assert (made.admin, made.host_link) == ("unix:/srv/a/admin.sock", "unix:/srv/a/host.sock")
    assert made.authority_dir == Path("/srv/authority")
    assert (made.uid_base != 0) is root
    assert (made.strict, made.own_host) == (False, True)
