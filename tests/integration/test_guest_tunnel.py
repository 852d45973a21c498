"""The key for the memory of a guest that moves with its vTPM (MIGRATION.md, section 12): two ``dev`` managers."""

from __future__ import annotations

from typing import Any

import pytest

from manager_vm.ctl.client import Client
from manager_vm.errors import MigrationError, RefusedError, StateError
from manager_vm.trust.signing import SigningKey
from tests.integration.harness import Manager
from tests.integration.site import Site, address
from tests.integration.test_binding import OURS
from tests.integration.test_binding import site as site


def host(manager: Manager, verb: str, **args: Any) -> Any:
    """A request of the manager's host."""
    with Client.connect(manager.directory / "host.sock") as client:
        return client.call(verb, **args)


def test_both_hosts_get_one_key_once_and_the_order_still_moves_the_vtpm(site: Site) -> None:
    ordered = site.order(site.a, site.b)
    uuid = site.a.show("v")["uuid"]
    with pytest.raises(StateError, match="no guest comes here"):
        host(site.b, "guest_tunnel_take", vtpm=uuid)
    keys = []
    for _ in range(2):
        key = host(site.a, "guest_tunnel", name="v", order=ordered.read_bytes(), to=address(site.b))["tunnel"]
        assert host(site.b, "guest_tunnel_take", vtpm=uuid) == {"tunnel": key}
        with pytest.raises(StateError, match="taken already"):
            host(site.b, "guest_tunnel_take", vtpm=uuid)
        keys.append(key)
    assert len(set(keys)) == 2 and {len(key) for key in keys} == {32}
    assert site.a.show("v")["state"] == "running" and site.b.ctl("list") == []
    assert site.a.ctl("migrations") == [] and site.b.ctl("migrations") == []
    assert site.migrate(site.a, site.b, given=ordered)["state"] == "done"
    assert site.b.show("v")["vm"] == OURS


def test_no_key_is_agreed_on_without_an_order_for_just_this_move(site: Site) -> None:
    ordered, uuid, to = site.order(site.a, site.b), site.a.show("v")["uuid"], address(site.b)
    forged = site.order(site.a, site.b, key=SigningKey.create()).read_bytes()
    with pytest.raises(MigrationError, match="order is not good"):
        host(site.a, "guest_tunnel", name="v", order=forged, to=to)
    ordered = site.order(site.a, site.b)
    good = ordered.read_bytes()
    site.a.ctl("create", "w")
    with pytest.raises(MigrationError, match="the order is for uuid"):
        host(site.a, "guest_tunnel", name="w", order=good, to=to)
    with pytest.raises(RefusedError, match="here is"):  # the order's destination is not where it asks
        host(site.a, "guest_tunnel", name="v", order=good, to=address(site.a))
    site.migrate(site.a, site.b)
    site.migrate(site.b, site.a)
    with pytest.raises(MigrationError, match="generation"):
        host(site.a, "guest_tunnel", name="v", order=good, to=to)
    with pytest.raises(StateError):
        host(site.b, "guest_tunnel_take", vtpm=uuid)
