"""Parks under way, whose tickets are out already (MIGRATION.md, section 13).

Where managers have agreed ahead the VM does not wait for the disk and the hardware TPM: a ticket only names a park, and
whoever shows it waits for that. From the start on the vTPM executes nothing; if the park fails it goes on as it was.
"""

from __future__ import annotations

import logging
import os
import threading

from manager_vm.errors import MigrationError, VtpmManagerError
from manager_vm.store.records import VtpmRecord
from manager_vm.vtpm.registry import Registry
from manager_vm.wire.migration import Cause
from manager_vm.wire.ticket import PARK_SIZE, Ticket

log = logging.getLogger(__name__)


class Parking:
    """Begins with its making, which returns when the vTPM is still, or has failed. Thread-safe.

    ``ticket``: what the park is for. ``error``: why it came to nothing, None as long as it has not.
    """

    def __init__(self, registry: Registry, name: str, ticket: str) -> None:
        self.name = name
        self.ticket = ticket
        self.error: VtpmManagerError | None = None
        self._still = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(registry,), name=f"park {name}", daemon=True)
        self._thread.start()
        self._still.wait()

    def wait(self) -> None:
        """Until the park is durable, or has come to nothing."""
        self._thread.join()

    def _run(self, registry: Registry) -> None:
        try:
            registry.stop(self.name, ticket=self.ticket, still=self._still.set)
            log.info("vTPM %s: parked, its VM has a ticket for it", self.name)
        except VtpmManagerError as error:
            self.error = error
            log.error("vTPM %s: it cannot be parked for its VM's ticket: %s", self.name, error)
        finally:
            self._still.set()


class Parkings:
    """Those of all vTPMs. Thread-safe."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._last: dict[str, Parking] = {}  # by uuid: under way, or failed
        self._lock = threading.Lock()

    def begin(self, record: VtpmRecord) -> Parking:
        """For a new ticket."""
        parking = Parking(self._registry, record.name, os.urandom(PARK_SIZE).hex())
        with self._lock:
            self._last[record.uuid] = parking
        return parking

    def settle(self, ticket: Ticket) -> None:
        """Wait for a park that is under way. MigrationError if this ticket's has failed: its VM has it in vain."""
        failed = self.last(ticket.vtpm)
        if failed is not None and failed.ticket == ticket.park:
            raise MigrationError(f"the vTPM could not be parked for this ticket: {failed.error}", Cause.FAULT.word)

    def last(self, uuid: str) -> Parking | None:
        """Waits for a park that is under way; the last one if it has failed."""
        with self._lock:
            parking = self._last.get(uuid)
        if parking is None:
            return None
        parking.wait()
        if parking.error is not None:
            return parking
        with self._lock:
            if self._last.get(uuid) is parking:
                del self._last[uuid]
        return None

    def close(self) -> None:
        """What is under way is finished."""
        with self._lock:
            parkings = list(self._last.values())
        for each in parkings:
            each.wait()
