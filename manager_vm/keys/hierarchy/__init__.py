"""Key hierarchies: what vouches for the AKs of vTPMs. One module for each, all behind one interface (HIERARCHIES.md).

A group has one hierarchy. ``of`` gives it; what it issues is verified by third parties with ``trust/vak``.
"""

from __future__ import annotations

from manager_vm.keys.hierarchy import ak_vak, ak_vek, ek, independent, sk
from manager_vm.keys.hierarchy.interface import Hardware, Hierarchy, Move, Subject
from manager_vm.trust.group import Hierarchy as Kind

__all__ = ["ALL", "Hardware", "Hierarchy", "Kind", "Move", "Subject", "of"]

ALL: tuple[Hierarchy, ...] = (sk.BySk(), ak_vek.OverVek(), ak_vak.OverVak(), independent.Outside(), ek.ByEk())


def of(kind: Kind) -> Hierarchy:
    """The hierarchy of this kind."""
    return next(each for each in ALL if each.kind is kind)
