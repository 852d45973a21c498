"""server.relocate_rules: who can be a receiver."""

from __future__ import annotations

from dataclasses import replace

import pytest

from manager_vm.errors import MigrationError
from manager_vm.server import relocate_rules as rules
from manager_vm.store.records import Contents
from manager_vm.store.relocation import MOST_WORDS
from manager_vm.trust.relocation import Order

ORDER = Order(manager="ab" * 32, relocations=0, source="a", destination="b", issued="", digest=bytes(32))
RECEIVER = Contents(1, b"certificate", b"key")


def test_no_word_is_ever_dropped_so_a_receiver_that_keeps_too_many_makes_no_place() -> None:
    words = {f"{number:032x}": (b"attested", b"signature") for number in range(MOST_WORDS)}
    kept = dict(list(words.items())[1:])
    rules.demand_empty(replace(RECEIVER, released=kept), ORDER)
    with pytest.raises(MigrationError, match="use another platform"):
        rules.demand_empty(replace(RECEIVER, released=words), ORDER)
