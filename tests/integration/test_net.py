"""The appliance's network through the kernel's netlink, in a network namespace of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from manager_vm import net
from manager_vm.errors import ConfigError
from tests.integration.harness import ROOT

CARD = "02:00:00:00:00:07"
PREPARED = f"""
import json
from pyroute2 import IPRoute
from manager_vm import net
from manager_vm.errors import VtpmManagerError
with IPRoute() as kernel:
    kernel.link("add", ifname="card", kind="veth", address="{CARD}", peer={{"ifname": "cable"}})
    kernel.link("set", index=kernel.link_lookup(ifname="cable")[0], state="up")
    kernel.link("set", index=kernel.link_lookup(ifname="lo")[0], state="up")

cards = net.Cards()


def routes():
    with IPRoute() as kernel:
        default = [each for each in kernel.get_routes() if each["dst_len"] == 0 and each["table"] == 254]
        return [each.get_attr("RTA_GATEWAY") for each in default if each.get_attr("RTA_GATEWAY")]


def said(mac, addresses, gateway=""):
    try:
        cards.set_up(net.parse(mac, addresses, gateway))
    except VtpmManagerError as error:
        return str(error)
    with IPRoute() as kernel:
        there = [each.get_attr("IFA_ADDRESS") for each in kernel.get_addr() if each["scope"] == 0]
    assert sorted(there) == sorted(cards.addresses)
    return [sorted(there), routes()]
"""


def inside(*steps: str) -> list[object]:
    """What each of ``said(...)`` says, in a network namespace with one card and nothing else."""
    program = PREPARED + "print(json.dumps([" + ", ".join(steps) + "]))"
    argv = ["unshare", "--net", sys.executable, "-c", program]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


def test_a_card_has_exactly_the_addresses_and_the_route_that_were_said_last() -> None:
    first = f'said("{CARD}", ["10.0.0.7/24", "fd00::7/64"], "10.0.0.1")'
    assert inside(
        first, first, f'said("{CARD.upper()}", ["10.0.1.7/24"], "10.0.1.1")', f'said("{CARD}", ["10.0.1.7/24"])'
    ) == [
        [["10.0.0.7", "fd00::7"], ["10.0.0.1"]],
        [["10.0.0.7", "fd00::7"], ["10.0.0.1"]],
        [["10.0.1.7"], ["10.0.1.1"]],
        [["10.0.1.7"], []],
    ]


def test_a_card_that_is_not_there_and_a_gateway_in_no_network_are_named_and_change_nothing() -> None:
    missing, unreachable, nothing = inside(
        'said("02:00:00:00:00:99", ["10.0.0.7/24"])',
        f'said("{CARD}", ["10.0.0.7/24"], "10.9.0.1")',
        "[cards.addresses, routes()]",
    )
    assert "no network card with the MAC address 02:00:00:00:00:99; plug it" in str(missing)
    assert unreachable == "the gateway 10.9.0.1 is in no network of this card"
    assert nothing == [[], []]


@pytest.mark.parametrize(
    ("mac", "addresses", "gateway"),
    [
        ("02:00:00:00:00", ["10.0.0.7/24"], ""),
        ("", ["10.0.0.7/24"], ""),
        (CARD, [], ""),
        (CARD, ["10.0.0.7/24"] * 9, ""),
        (CARD, ["10.0.0.7/33"], ""),
        (CARD, ["host.example"], ""),
        (CARD, ["10.0.0.7"], ""),
        (CARD, ["10.0.0.7/24"], "10.0.0.1/24"),
    ],
)
def test_what_is_no_address_is_refused_before_the_kernel_is_asked(mac: str, addresses: list[str], gateway: str) -> None:
    with pytest.raises(ConfigError):
        net.parse(mac, addresses, gateway)
