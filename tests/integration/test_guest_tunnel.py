"""The key for the memory of a guest that moves with its vTPM (MIGRATION.md, section 12): two ``dev`` managers."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from guest_frontend.link import Link
from image.host.links import Beside
from manager_vm.ctl.client import Client
from manager_vm.errors import AbortedError, ConfigError, MigrationError, RefusedError, StateError
from manager_vm.trust.signing import SigningKey
from manager_vm.wire import tpm
from tests.integration import raw
from tests.integration.harness import Manager, until
from tests.integration.site import Site, address
from tests.integration.test_binding import OURS, refusal
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


def begin(site: Site, ordered: bytes) -> Beside:
    """A move that waits for its guest."""

    def request() -> None:
        with site.a.admin() as client:
            client.call("migrate", name="v", order=ordered, to=address(site.b), with_guest=True)

    moving = Beside(request)
    until(lambda: host(site.a, "guest_ready", name="v")["ready"] or moving.over, what="it waits for the guest")
    assert not moving.over, moving.error
    return moving


def test_a_vtpm_serves_until_its_host_holds_it_and_moves_when_its_guest_stands_still(site: Site) -> None:
    for verb in ("guest_hold", "guest_stopped"):
        with pytest.raises(StateError, match="waits for its guest"):
            host(site.a, verb, name="v")
    assert not host(site.a, "guest_ready", name="v")["ready"]
    moving = begin(site, site.order(site.a, site.b).read_bytes())
    extended = site.a.guest("v").extend(16)
    with closing(Link(site.a.channel("v"))) as link:
        link.open(5.0)
        host(site.a, "guest_hold", name="v")
        assert raw.rc(link.execute(raw.pcr_read(16))) == tpm.RC.TPM_RC_RETRY
    assert site.a.show("v")["state"] == "running" and not moving.over
    host(site.a, "guest_stopped", name="v")
    moving.join()
    assert moving.error is None and site.a.ctl("list") == []
    site.b.ctl("attach", "v", "--vm", OURS)
    assert site.b.guest("v").pcr(16) == extended


def test_a_vtpm_whose_guest_does_not_stop_goes_on(site: Site) -> None:
    extended = site.a.guest("v").extend(16)
    moving = begin(site, site.order(site.a, site.b).read_bytes())
    host(site.a, "guest_hold", name="v")
    host(site.a, "guest_stopped", name="v", stands=False)
    moving.join()
    assert isinstance(moving.error, AbortedError) and "given up the move of the guest" in str(moving.error)
    assert site.a.guest("v").pcr(16) == extended and site.b.ctl("list") == []
    assert not host(site.a, "guest_ready", name="v")["ready"]


def test_a_guest_moves_between_hosts_of_this_machine_only_and_else_nothing_moves(site: Site) -> None:
    order = str(site.order(site.a, site.b))
    for args, why in (
        (("migrate", "v", "--to", address(site.b), "--order", order, "--with-guest"), "directory of a host"),
        (("migrate", "v", "--to", str(site.b.directory), "--with-guest", "--dry-run"), "no --dry-run"),
        (("migrate", "v", "--to", str(site.b.directory), "--with-guest"), "no program that runs a host's VMs"),
        (("resume-guest", "v"), "no program that runs a host's VMs"),
    ):
        code, name, text = refusal(site.a, *args)
        assert (code, name) == (ConfigError.exit_code, "ConfigError") and why in text
    assert site.a.show("v")["state"] == "running" and site.a.ctl("migrations") == []
