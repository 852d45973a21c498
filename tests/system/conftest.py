"""Fixtures: saved VMs (once for each image build), a lab with a manager for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from image.host.host import Host
from image.host.saved import Saved
from tests.system import vms


@pytest.fixture(scope="session")
def saved_manager() -> Saved:
    return vms.saved_manager()


@pytest.fixture(scope="session")
def saved_guest() -> Saved:
    return vms.saved_guest()


@pytest.fixture(scope="session")
def saved_peer(saved_manager: Saved) -> Saved:
    return vms.saved_peer(saved_manager)


@pytest.fixture
def rack(saved_manager: Saved, saved_peer: Saved, saved_guest: Saved) -> Iterator[vms.Rack]:
    with vms.rack(saved_manager, saved_peer, saved_guest) as found:
        yield found


@pytest.fixture
def lab(saved_manager: Saved, saved_guest: Saved) -> Iterator[vms.Lab]:
    with vms.short_directory() as directory, Host(directory, vms.IMAGES, firmware=True) as host:
        host.start_manager(saved_manager)
        yield vms.Lab(host, saved_guest)
