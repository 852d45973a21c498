"""Every exception of the product. The class tells the caller what to do; the message names cause and remedy.

Each class carries ``exit_code`` (what ``vtpmctl`` exits with) and a stable ``name`` (its class name),
which travels over the admin protocol, so that a client raises the same class again.
TPM response codes are payload and never exceptions.
"""

from __future__ import annotations


class VtpmManagerError(Exception):
    """Base of all errors of the product."""

    exit_code = 1


class ConfigError(VtpmManagerError):
    """The configuration or the command line cannot be used: the operator must change it."""

    exit_code = 3


class UnreachableError(VtpmManagerError):
    """Nobody answers at the other end of a link: start it, or name another one; retry is safe."""

    exit_code = 4


class ProtocolError(VtpmManagerError):
    """The rules of a protocol were broken; the connection at hand is closed, nothing else is touched."""

    exit_code = 5


class LocalProtocolError(ProtocolError):
    """We broke the rules: a defect of this program."""


class RemoteProtocolError(ProtocolError):
    """The other end broke the rules: its data is dropped and its connection closed."""


class TrustError(VtpmManagerError):
    """Something that must be proven was not. Never retried automatically."""

    exit_code = 6


class UnsealError(TrustError):
    """The root key cannot be released on this platform in this state."""


class NoKeyslotError(TrustError):
    """No keyslot of this manifest belongs to this platform."""


class IntegrityError(TrustError):
    """Stored or received data fails its authentication: it was changed or belongs elsewhere."""


class RollbackError(TrustError):
    """Stored data is authentic but not the newest: an older disk or a lost anchor."""


class TakenError(TrustError):
    """The place of this manager in the hardware TPM belongs to another copy of it: this one must end."""


class EvidenceError(TrustError):
    """Attestation evidence does not prove what policy demands."""


class NoEvidenceError(EvidenceError):
    """A guest's or operator's question for evidence is refused; ``reason``: ``wire.quote.Refusal``."""

    def __init__(self, message: str, reason: int = 0) -> None:
        super().__init__(message)
        self.reason = reason


class HardwareTpmError(VtpmManagerError):
    """The hardware TPM answered with an error response code ``rc`` (TPM 2.0 Part 2, 6.6)."""

    exit_code = 7

    def __init__(self, message: str, rc: int = 0) -> None:
        super().__init__(message)
        self.rc = rc


class StoreError(VtpmManagerError):
    """The state disk cannot be read or written (full, missing, read-only, in use by another manager)."""

    exit_code = 8


class HostError(VtpmManagerError):
    """A program of the host side (QEMU, swtpm as hardware TPM) failed; the message names its log."""

    exit_code = 9


class BuildError(VtpmManagerError):
    """A step of the image build failed; the message names the step, its log and the remedy."""

    exit_code = 9


class VtpmError(VtpmManagerError):
    """Base of errors about one vTPM."""

    exit_code = 10


class UnknownVtpmError(VtpmError):
    """No vTPM has this name."""

    exit_code = 11


class BusyError(VtpmError):
    """The vTPM or channel is in use, or the name is taken; free it first."""

    exit_code = 12


class StateError(VtpmError):
    """The vTPM's state does not allow this verb; the message names the verb that does."""

    exit_code = 13


class SwtpmError(VtpmError):
    """A swtpm process failed, is missing, or is too old."""

    exit_code = 14


class SwtpmRefusedError(SwtpmError):
    """swtpm works, but answered control command ``what`` with an error: what it was given is not good."""

    def __init__(self, message: str, what: str = "") -> None:
        super().__init__(message)
        self.what = what


class QuarantinedError(VtpmError):
    """The vTPM's state is damaged: it is kept untouched until an operator decides."""

    exit_code = 15


class BoundError(VtpmError):
    """The vTPM belongs to another VM: attach it for that one, or have an operator bind it anew."""

    exit_code = 16


class MigrationError(VtpmManagerError):
    """Base of errors of a move. ``cause``: the word of ``wire.migration.Cause``, "" where there is none."""

    exit_code = 20

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class RefusedError(MigrationError):
    """The other side refused the move before it began; nothing was changed."""

    exit_code = 21


class AbortedError(MigrationError):
    """The move had begun and was given up before its point of no return; the source goes on."""

    exit_code = 22


class HandoverUnconfirmedError(MigrationError):
    """The source has given the vTPM up and the destination has not confirmed yet: resend, never restart."""

    exit_code = 23


def _tree(base: type[VtpmManagerError]) -> list[type[VtpmManagerError]]:
    return [base] + [leaf for child in base.__subclasses__() for leaf in _tree(child)]


BY_NAME: dict[str, type[VtpmManagerError]] = {cls.__name__: cls for cls in _tree(VtpmManagerError)}
