"""What a recovery leaves in the manifest: who can make one, what was made, which platforms are not ours any more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recovery:
    """To whom each commit wraps its keys.

    ``statement``: the authority's newest about that, b"" if it never said anything. ``off``: to nobody all the same.
    """

    statement: bytes = b""
    off: bool = False


@dataclass(frozen=True, slots=True)
class Recovered:
    """One recovery, kept for ever: nothing can prove that the disk which it began with was the newest.

    Of a vTPM also one that was taken back from a destination that an admin has declared dead: what became of it there
    nobody knows. ``old``: Name of the SRK of the platform before; of the AK of the destination. ``order``: SHA-256 of
    the authority's order (its payload); id of the move.
    ``time``: seconds since 1970, of the host's clock.
    """

    old: bytes
    order: bytes
    time: int


@dataclass(frozen=True, slots=True)
class RevokedPlatform:
    """A platform that no vTPM may go to, or come from. ``srk``, ``ak``: Names; the AK's is b"" if it was not enrolled.

    Not its EK: a TPM that was cleared keeps that, and can be the next platform.
    """

    srk: bytes
    ak: bytes = b""
