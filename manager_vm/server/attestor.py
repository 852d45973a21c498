"""Makes evidence, one at a time for the whole manager: a commit never waits for more than one at the hardware TPM."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from manager_vm.errors import EvidenceError, NoEvidenceError, StateError, VtpmManagerError
from manager_vm.keys import evidence
from manager_vm.keys.evidence import Subject, Voucher
from manager_vm.protocol.limit import Limit
from manager_vm.store.manifest import Manifest
from manager_vm.trust.bundle import History
from manager_vm.vtpm.registry import Registry
from manager_vm.wire.quote import QuoteBegin, QuoteRefused, Refusal

log = logging.getLogger(__name__)

BURST, INTERVAL = 4, 5.0  # questions of a vTPM at once; seconds until one more is allowed
_MOST_WAITING = 16
_PATIENCE = 90.0  # seconds for an operator's

Answer = bytes | QuoteRefused


class Attestor:
    """Thread-safe. ``close`` ends what is waiting; what is being made is finished."""

    def __init__(self, manifest: Manifest, registry: Registry, voucher: Voucher) -> None:
        self._manifest = manifest
        self._registry = registry
        self._voucher = voucher
        self._worker = ThreadPoolExecutor(1, "evidence")
        self._operators = Limit(BURST, INTERVAL)
        self._waiting = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Idempotent."""
        self._worker.shutdown(cancel_futures=True)

    def vouch(self, name: str, question: QuoteBegin, public: bytes, done: Callable[[Answer], None]) -> None:
        """Make the evidence for a guest's quote; ``done`` gets it, on another thread, or why there is none."""
        with self._lock:
            self._demand_room()
            self._worker.submit(self._vouch, name, question, public, done)
            self._waiting += 1

    def platform(self, name: str, nonce: bytes, group: str | None = None) -> bytes:
        """The evidence about a vTPM that an operator asks for."""
        with self._lock:
            if not self._operators.allows(time.monotonic()):
                raise NoEvidenceError(f"too many questions for evidence; again in {INTERVAL:.0f} s", Refusal.LATER)
            self._demand_room()
            made = self._worker.submit(self._platform, name, nonce, group)
            self._waiting += 1
        try:
            return made.result(_PATIENCE)
        except TimeoutError:
            raise NoEvidenceError("the hardware TPM is busy; try again later", Refusal.BUSY) from None

    def _demand_room(self) -> None:
        if self._waiting >= _MOST_WAITING:
            raise NoEvidenceError("too many vTPMs ask for evidence at once; ask again", Refusal.LATER)

    def _begun(self) -> None:
        with self._lock:
            self._waiting -= 1

    def _vouch(self, name: str, question: QuoteBegin, public: bytes, done: Callable[[Answer], None]) -> None:
        self._begun()
        try:
            answer: Answer = evidence.linked_quote(self._voucher, self._subject(name), question, public)
        except VtpmManagerError as error:
            answer = refusal(question, error)
            if answer.reason in (Refusal.HARDWARE, Refusal.NOT_ENROLLED):
                log.warning("vTPM %s: no evidence: %s", name, error)
        except Exception:  # whoever asked must get an answer, else it could never ask again
            log.exception("vTPM %s: no evidence", name)
            answer = QuoteRefused(question.token, Refusal.HARDWARE, "a defect of the manager; see its log")
        done(answer)

    def _platform(self, name: str, nonce: bytes, group: str | None) -> bytes:
        self._begun()
        return evidence.platform_quote(self._voucher, self._subject(name, group), nonce)

    def _subject(self, name: str, group: str | None = None) -> Subject:
        record = self._registry.record(name, group)
        ca = self._manifest.contents.issuer(record)
        history = History(record.generation, len(record.recovered), record.reverted, record.keep)
        return Subject(record.uuid, record.ek_names, record.certificates, ca, history)


def refusal(question: QuoteBegin, error: VtpmManagerError) -> QuoteRefused:
    """What a guest is told about an error."""
    if isinstance(error, NoEvidenceError):
        return QuoteRefused(question.token, Refusal(error.reason or Refusal.HARDWARE), str(error))
    if isinstance(error, EvidenceError | StateError):  # not enrolled; no signing key is left
        text = "this platform cannot vouch for vTPMs: its operator has to have it enrolled"
        return QuoteRefused(question.token, Refusal.NOT_ENROLLED, text)
    return QuoteRefused(question.token, Refusal.HARDWARE, "the manager cannot make evidence now; its log says why")
