#!/usr/bin/python3 -IS
"""Make the state disk fit to mount. A blank disk (all zero) is formatted; anything else is checked, enlarged to the
disk's size, and never formatted: a damaged disk must be looked at by somebody, not made anew.

Standard library only, and no shell: the production image has none.
"""

import subprocess
import sys

_CHUNK = 1 << 20
_CORRECTED = 1  # exit code of e2fsck(8) up to which all is well
_NOTHING_FOUND = 2  # exit code of blkid(8)


class Refused(Exception):
    """The disk is left as it is; the message names cause and remedy."""


def prepare(disk: str) -> None:
    """Format or check ``disk``."""
    kind = kind_of(disk)
    if kind == "ext4":
        check(disk)
    elif kind:
        raise Refused(f"it holds {kind!r}, not ext4. Attach the manager's own state disk, or a blank one")
    elif not is_blank(disk):
        raise Refused("it is neither blank nor ext4. Attach the manager's own state disk, or a blank one")
    else:
        say("blank: formatted as ext4")
        run("mkfs.ext4", "-q", "-L", "vtpm-state", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk)


def kind_of(disk: str) -> str:
    """What blkid(8) finds, "" for nothing."""
    done = subprocess.run(["blkid", "-p", "-o", "value", "-s", "TYPE", disk], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, _NOTHING_FOUND):
        raise Refused("blkid cannot tell what it holds. Attach the manager's own state disk, or a blank one")
    return done.stdout.strip()


def check(disk: str) -> None:
    """e2fsck(8); then the file system takes what the host has added to the disk."""
    status = subprocess.run(["e2fsck", "-f", "-p", disk]).returncode
    if status > _CORRECTED:
        raise Refused(f"e2fsck ended with {status}. Repair a copy of the disk by hand, or restore a backup")
    if subprocess.run(["resize2fs", disk]).returncode:
        say("its file system cannot be enlarged; it is used as it is")


def is_blank(disk: str) -> bool:
    """Whether every byte is zero; an empty disk is not blank but no disk."""
    try:
        with open(disk, "rb", buffering=0) as file:
            size = file.seek(0, 2)
            file.seek(0)
            while chunk := file.read(_CHUNK):
                if chunk.count(0) != len(chunk):
                    return False
            return size > 0
    except OSError:
        raise Refused("it cannot be read to its end. Repair the disk, or restore a backup") from None


def run(*argv: str) -> None:
    """A program that must succeed."""
    if subprocess.run(argv).returncode:
        raise Refused(f"{argv[0]} failed. Attach another disk")


def say(text: str) -> None:
    """To the journal and the console."""
    print(f"vtpm-manager: state disk: {text}", flush=True)


if __name__ == "__main__":
    try:
        prepare(sys.argv[1])
    except Refused as error:
        say(f"refused: {error}")
        sys.exit(1)
