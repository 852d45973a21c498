"""root.img: the tree as erofs, and its dm-verity tree appended to the same file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from image.builder.steps import EPOCH
from image.builder.tools import Tools
from manager_vm.errors import BuildError

BLOCK = 4096
# fixed, so that equal trees give equal images; the root hash, not these, is what is trusted
_UUID = "9b8c7a66-3f0e-4d51-8a1b-7674706d0001"
_VERITY_UUID = "9b8c7a66-3f0e-4d51-8a1b-7674706d0002"
_SALT = "7674706d" * 8
_REMEDY = "remove build/cache/tools and try again; is the disk full?"


@dataclass(frozen=True, slots=True)
class Verity:
    """What the kernel needs to open the root: the root hash (hex) and where the hash tree begins (bytes)."""

    root_hash: str
    hash_offset: int


def make(tools: Tools, step: str, folder: Path, tar: str, image: str) -> Verity:
    """Write ``image`` from ``tar``, both in ``folder``."""
    options = [f"-T{EPOCH}", f"-U{_UUID}", "-zlz4hc,9", "-C65536"]
    tools.run(step, ["mkfs.erofs", "--quiet", *options, "--tar=f", f"/mnt/{image}", f"/mnt/{tar}"], folder, _REMEDY)
    size = (folder / image).stat().st_size
    if size % BLOCK:
        raise BuildError(f"{image} has {size} bytes, no multiple of {BLOCK}\nremedy: report this")
    where = [f"--hash-offset={size}", f"--data-blocks={size // BLOCK}", f"/mnt/{image}", f"/mnt/{image}"]
    options = [f"--salt={_SALT}", f"--uuid={_VERITY_UUID}", f"--data-block-size={BLOCK}", f"--hash-block-size={BLOCK}"]
    said = tools.run(step, ["veritysetup", "format", *options, *where], folder, _REMEDY)
    found = re.search(r"Root hash:\s+([0-9a-f]{64})", said)
    if found is None:
        raise BuildError(f"veritysetup does not say the root hash of {image}\nremedy: {_REMEDY}")
    return Verity(found[1], size)
