"""The appliance's network: addresses and routes of its cards, through the kernel's netlink (rtnetlink(7))."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import TYPE_CHECKING

from manager_vm.errors import ConfigError, StateError

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_MAC = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MOST = 8  # addresses of one card
_GLOBAL = 0  # RT_SCOPE_UNIVERSE
_MAIN = 254  # RT_TABLE_MAIN


@dataclass(frozen=True, slots=True)
class Network:
    """What one card has: its MAC address, addresses with their prefixes, where all else is reached (None: nowhere)."""

    mac: str
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    gateway: IPv4Address | IPv6Address | None


def parse(mac: str, addresses: list[str], gateway: str) -> Network:
    """``addresses``: "10.0.0.7/24" and the like. ConfigError for what is none."""
    if not _MAC.fullmatch(mac.lower()):
        raise ConfigError(f"{mac[:40]!r} is no MAC address: use six bytes in hex, 52:54:00:12:34:56")
    if not addresses or len(addresses) > _MOST:
        raise ConfigError(f"name 1 to {_MOST} addresses")
    try:
        if not all("/" in each for each in addresses):
            raise ValueError("an address has no prefix")
        found = tuple(ip_interface(each) for each in addresses)
        beyond = ip_address(gateway) if gateway else None
    except ValueError as error:
        raise ConfigError(f"{error}; use ADDRESS/PREFIX, as in 10.0.0.7/24, and a gateway without prefix") from None
    if beyond is not None and not beyond.is_link_local and not any(beyond in each.network for each in found):
        raise ConfigError(f"the gateway {beyond} is in no network of this card")
    return Network(mac.lower(), found, beyond)


class Cards:
    """The cards that were set up since this process began."""

    def __init__(self) -> None:
        self._known: dict[str, Network] = {}

    @property
    def addresses(self) -> list[str]:
        """Where other machines reach this one."""
        return [str(each.ip) for network in self._known.values() for each in network.addresses]

    def set_up(self, network: Network) -> None:
        """Give a card exactly this; StateError where it cannot be. The same again changes nothing."""
        from pyroute2 import IPRoute  # here: it takes seconds where the processor is emulated

        with _explained("set up the network card"), IPRoute() as kernel:
            _set_up(kernel, network)
        self._known = {**self._known, network.mac: network}  # whoever reads meanwhile has the one or the other


def _set_up(kernel: IPRoute, network: Network) -> None:
    index = _card(kernel, network.mac)
    kernel.link("set", index=index, state="up")
    there = _addresses(kernel, index)
    for old in set(there) - set(network.addresses):
        kernel.addr("del", index=index, address=str(old.ip), prefixlen=old.network.prefixlen)
    for new in set(network.addresses) - set(there):
        kernel.addr("add", index=index, address=str(new.ip), prefixlen=new.network.prefixlen)
    _route(kernel, index, network.gateway)


def _card(kernel: IPRoute, mac: str) -> int:
    found = kernel.link_lookup(address=mac)
    if not found:
        raise StateError(f"this VM has no network card with the MAC address {mac}; plug it, and repeat the request")
    return int(found[0])


def _addresses(kernel: IPRoute, index: int) -> list[IPv4Interface | IPv6Interface]:
    found = (each for each in kernel.get_addr(index=index) if each["scope"] == _GLOBAL)
    return [ip_interface(f"{each.get_attr('IFA_ADDRESS')}/{each['prefixlen']}") for each in found]


def _route(kernel: IPRoute, index: int, gateway: IPv4Address | IPv6Address | None) -> None:
    """The default route over this card: this one, and no other."""
    for route in kernel.get_routes(oif=index):
        known = route.get_attr("RTA_GATEWAY")
        if route["dst_len"] == 0 and route["table"] == _MAIN and known and known != str(gateway):
            kernel.route("del", dst="default", gateway=known, oif=index)
    if gateway is not None:
        kernel.route("replace", dst="default", gateway=str(gateway), oif=index)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise StateError(f"cannot {what}: {error}") from None
