"""A vTPM that went and is back before its receipt has come (server/following.py)."""

from __future__ import annotations

import threading
import uuid
from types import SimpleNamespace
from typing import Any, cast

import pytest

from manager_vm.errors import ConfigError, StateError
from manager_vm.protocol.lifecycle import State
from manager_vm.server import following
from manager_vm.server.following import Following
from manager_vm.server.parking import Parkings
from manager_vm.store.records import Contents, VtpmRecord
from manager_vm.wire import ticket as tickets
from manager_vm.wire.admin import Request
from manager_vm.wire.ticket import Ticket

VM = str(uuid.UUID(int=1 << 64))
BACK = Ticket(str(uuid.UUID(int=2 << 64)), "v", 2, "ab" * 16, VM, "here", "")  # it names no address to pull from


class Manifest:
    """What the manager knows: this vTPM has gone to another one, which has not confirmed it yet."""

    def __init__(self) -> None:
        gone = VtpmRecord(BACK.vtpm, "v", State.GONE, 5000, "blob", bytes(32), {}, {}, vm=VM)
        self.contents = Contents(1, b"", b"", vtpms={BACK.vtpm: gone})

    def confirmed(self) -> None:
        self.contents = Contents(2, b"", b"")


def redeem(manifest: Manifest, channel: object = "") -> Any:
    local = cast(Any, SimpleNamespace(manifest=manifest))
    giver = SimpleNamespace(parkings=Parkings(cast(Any, None)))
    moving = cast(Any, SimpleNamespace(giver=giver, ahead=SimpleNamespace(take=lambda ticket: None)))
    verbs = Following(local, cast(Any, None), moving).host_link(lambda request: None)
    return verbs(Request(1, "redeem", {"ticket": tickets.pack(BACK), "vm": VM, "channel": channel}))


def test_a_ticket_that_comes_back_before_the_receipt_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_RECEIPT", 20.0)
    manifest = Manifest()
    receipt = threading.Timer(0.3, manifest.confirmed)
    receipt.start()
    with pytest.raises(StateError, match="names no address"):  # so it would be pulled now
        redeem(manifest)
    receipt.join()


def test_without_any_receipt_the_reason_is_named_and_nothing_is_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_RECEIPT", 0.2)
    with pytest.raises(StateError, match="nobody has confirmed it yet"):
        redeem(Manifest())


@pytest.mark.parametrize("channel", ["ivshmem", "unix:/v", "shim:", "x", 7])
def test_a_vm_with_a_ticket_comes_at_no_channel_but_a_shim_s(channel: object) -> None:
    manifest = Manifest()
    manifest.confirmed()
    with pytest.raises(ConfigError, match=r"is no (shim's )?channel"):
        redeem(manifest, channel)
    with pytest.raises(StateError, match="names no address"):
        redeem(manifest, "shim:v")
