"""The packages of an image as one tar, Python compiled ahead, compared with the lock."""

from __future__ import annotations

from pathlib import Path

from image.builder import lock, tools
from image.builder.kinds import SUITE, Kind
from image.builder.steps import Builder, key_of
from image.builder.tools import VERSIONS, bootstrap

# PEP 552: an import reads no source and compares no time stamp, which would be wrong (all are the same in an image)
_COMPILE = (
    'chroot "$1" python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.*'
)


def make(builder: Builder, kind: Kind, profile: str, *, update_lock: bool) -> Path:
    """The tar; made anew only when the package list or the profile changed."""
    step, layout = f"packages of {kind.name} {profile}", builder.layout
    tar = layout.cache / f"{kind.name}-{profile}.tar"
    versions = tar.with_suffix(".versions")
    wanted = kind.packages_of(profile)
    key = key_of([SUITE, _COMPILE, Path(tools.__file__).read_text(), *wanted])
    if not builder.is_fresh(step, key, tar, versions):
        builder.begin(step)
        bootstrap(builder, step, wanted, tar, [VERSIONS.format(versions), _COMPILE])
        builder.done(step, key)
    compare(builder, f"{kind.name}-{profile}", versions.read_text(), profile, update_lock=update_lock)
    return tar


def compare(builder: Builder, name: str, versions: str, profile: str, *, update_lock: bool) -> None:
    """Compare what was installed with the lock ``name``, or make that lock."""
    found = lock.of_debs(builder.layout.debs, versions)
    path = builder.layout.locks / f"{name}.lock"
    if update_lock:
        path.write_text(lock.dump(found))
    lock.check(path, found, profile)
