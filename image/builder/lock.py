"""The package lock of an image: package, version, architecture, SHA-256 of the .deb; one sorted line each."""

from __future__ import annotations

import os
from pathlib import Path

from image.builder.steps import sha256_of
from manager_vm.errors import BuildError

Lock = dict[str, tuple[str, str, str]]  # package -> version, architecture, SHA-256

_SHOWN = 20  # differences that a message names
_ABSENT = ("absent", "", "")


def load(text: str) -> Lock:
    """The lock in ``text``; empty lines and comments are skipped."""
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {name: (version, architecture, digest) for name, version, architecture, digest in lines}


def dump(lock: Lock) -> str:
    """The text of a lock."""
    return "".join(f"{name} {' '.join(fields)}\n" for name, fields in sorted(lock.items()))


def of_debs(debs: Path, versions: str) -> Lock:
    """The lock of installed packages: lines "package version architecture"; "-" where the .deb is not in ``debs``."""
    lock: Lock = {}
    for line in versions.splitlines():
        name, version, architecture = line.split()
        deb = debs / f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
        lock[name] = (version, architecture, sha256_of(deb) if deb.exists() else "-")
    return lock


def differences(locked: Lock, found: Lock) -> list[str]:
    """A sentence for each package that differs."""
    return [
        f"{name}: locked {locked.get(name, _ABSENT)[0]}, found {found.get(name, _ABSENT)[0]}"
        for name in sorted(locked.keys() | found.keys())
        if locked.get(name) != found.get(name)
    ]


def check(path: Path, found: Lock, profile: str) -> None:
    """Compare with the lock file: a difference is an error in production, a note in debug."""
    if os.environ.get("VTPM_IMAGE_LOCK") == "ignore":
        return
    remedy = "remedy: ./build.sh image --update-lock, look at git diff image/lock, commit"
    if not path.exists():
        text = f"{path} does not exist yet"
    elif different := differences(load(path.read_text()), found):
        more = f"; and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        text = f"{len(different)} packages differ from {path.name}: {'; '.join(different[:_SHOWN])}{more}"
    else:
        return
    if profile == "production":
        raise BuildError(f"{text}\n{remedy}")
    print(f"note: {text}", flush=True)
