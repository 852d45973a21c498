"""The manager's configuration: a frozen dataclass read from one TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from manager_vm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Config:
    """``[manager]`` of the TOML file; the names are the same.

    ``admin`` and ``host_link``: ``unix:PATH`` or ``virtio-serial:NAME``. ``uid_base``: the uids from there on belong to
    vTPMs, one each (0 = all run as the manager's own user, for a manager that is not root). ``command_deadline``:
    seconds after which a vTPM that does not answer is killed. ``strict``: refuse known-vulnerable swtpm and libtpms
    instead of warning. ``own_host``: this process is its own host side (``dev``): it names the running boot of
    every wired vTPM itself. ``authority_dir``: an authority of this machine, made if there is none, that the manager
    takes as its own when it has none (``dev``). ``migration``: "HOST:PORT" where other managers reach
    this one and bring vTPMs, "" = nowhere (port 0: a free one, which ``status`` shows). ``shims``: the carrier that the
    guests of QEMU shims share, a channel, "" = none. ``snapshots``: how many a vTPM may keep; 0: there is no
    way back to an earlier state of one on this manager. ``hwtpm``: the hardware TPM,
    ``device:PATH``, or ``swtpm:DIR`` for ``dev``'s stand-in.
    """

    state_dir: Path
    run_dir: Path
    admin: str
    host_link: str
    hwtpm: str = "device:/dev/tpmrm0"
    swtpm: str = "swtpm"
    uid_base: int = 200_000
    command_deadline: float = 120.0
    max_vtpms: int = 1000
    vtpm_memory_mib: int = 256
    strict: bool = True
    own_host: bool = False
    authority_dir: Path | None = None
    migration: str = ""
    shims: str = ""
    snapshots: int = 8


def load(path: Path) -> Config:
    """Read the TOML file; ConfigError names the file and the key."""
    try:
        table = tomllib.loads(path.read_text())["manager"]
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; name the configuration with --config") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError) as error:
        raise ConfigError(f"{path} is not a TOML file with a [manager] table: {error}") from None
    return _from_table(table, path)


def for_dev(directory: Path, *, root: bool) -> Config:
    """The configuration of ``python -m manager_vm dev DIR``: everything below ``directory``."""
    return Config(
        state_dir=directory / "state",
        run_dir=directory,
        admin=f"unix:{directory / 'admin.sock'}",
        host_link=f"unix:{directory / 'host.sock'}",
        hwtpm=f"swtpm:{directory / 'hwtpm'}",
        uid_base=200_000 if root else 0,
        strict=False,
        own_host=True,
        authority_dir=directory.parent / "authority",
        migration="127.0.0.1:0",
        shims=f"unix:{directory / 'shims.sock'}",
    )


def _from_table(table: dict[str, Any], path: Path) -> Config:
    types = {field.name: _TYPES[str(field.type)] for field in fields(Config)}
    for key, value in table.items():
        if key not in types:
            raise ConfigError(f"{path}: unknown key {key!r}; known are {', '.join(sorted(types))}")
        if not isinstance(value, types[key]) or (isinstance(value, bool) and bool not in types[key]):
            raise ConfigError(f"{path}: {key} has the wrong type ({type(value).__name__})")
    values: dict[str, Any] = {key: Path(value) if key.endswith("_dir") else value for key, value in table.items()}
    try:
        return Config(**values)
    except TypeError as error:
        raise ConfigError(f"{path}: a key is missing: {error}") from None


_TYPES: dict[str, tuple[type, ...]] = {
    "Path": (str,),
    "Path | None": (str,),
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}
