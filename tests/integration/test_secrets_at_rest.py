"""What lies on the state disk is useless without this hardware TPM, and older copies are useless even with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from manager_vm.crypto import Key
from manager_vm.errors import IntegrityError
from manager_vm.keys import approvals
from manager_vm.keys.anchor import NvAnchor
from manager_vm.keys.hwtpm import auths
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.keys.keyslot import Keyslot
from manager_vm.store import sealed
from manager_vm.vtpm.standin import Standin
from tests.integration.conftest import Make
from tests.integration.harness import Manager


@contextmanager
def opened(manager: Manager) -> Iterator[tuple[Key, Key]]:
    """The root key and the newest erase secret, as the stopped manager's hardware TPM gives them to its image."""
    standin = Standin(manager.directory / "hwtpm", "swtpm")
    tpm = Connection(standin)
    try:
        slot = Keyslot(manager.state / "keyslot", tpm)
        found = approvals.load(manager.state / "approvals", slot.read().authority)
        root = slot.open(found.approvals)
        yield root, NvAnchor(tpm, auths.derive(root, slot.read().srk)).read()[1]
    finally:
        tpm.close()
        standin.close()


def test_no_key_of_the_manager_is_in_any_file_of_the_host(make: Make, tmp_path: Path) -> None:
    manager, secrets = make(), tmp_path / "secrets"
    manager.program = ["-m", "tests.integration.spying", str(manager.directory), str(secrets)]
    manager.start()
    manager.add("a", "b")
    manager.guest("a").run("tpm2_createek", "-G", "ecc", "-c", "ek.ctx")
    manager.ctl("stop", "a")
    manager.ctl("start", "a")
    manager.stop()
    keys = {bytes.fromhex(line) for line in secrets.read_text().split()}
    assert len(keys) > 20
    with opened(manager) as (root, erase):
        assert {root.reveal(), erase.reveal()} <= keys  # the spy knows what it should
    own = manager.directory / "hwtpm"  # the TPM itself: what it keeps is its own
    files = [path for path in manager.directory.parent.rglob("*") if path.is_file() and own not in path.parents]
    assert manager.state / "manifest" in files and len(files) > 5
    for path in files:
        data = path.read_bytes()
        found = [key for key in keys if key in data or key.hex().encode() in data]
        assert not found, path


def test_an_older_copy_of_the_disk_cannot_be_decrypted_with_everything_else_as_it_is_now(make: Make) -> None:
    manager = make().start()
    manager.add("a")
    older = (manager.state / "manifest").read_bytes()
    manager.ctl("detach", "a")
    manager.ctl("stop", "a")
    manager.ctl("destroy", "a", "--yes")
    manager.stop()
    with opened(manager) as (root, erase):
        store = sealed.store_key(root, erase)
        newest = sealed.open_with((manager.state / "manifest").read_bytes(), store)
        assert newest.vtpms == {}
        with pytest.raises(IntegrityError, match="the manifest's key table fails its authentication"):
            sealed.open_with(older, store)
