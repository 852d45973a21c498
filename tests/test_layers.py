"""The architecture as a test: who may import whom, and where dangerous or private modules may be used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("manager_vm", "guest_frontend", "image")

# a module may import its own layer and those below it
LAYERS = (
    {"manager_vm.__main__"},
    {"manager_vm.daemon"},
    {"manager_vm.boot"},
    {"manager_vm.provision", "manager_vm.recover", "manager_vm.platform"},
    {"manager_vm.server"},
    {"manager_vm.vtpm"},
    {"manager_vm.keys"},
    {"manager_vm.store", "manager_vm.vchan", "manager_vm.net"},
    {"manager_vm.protocol", "manager_vm.trust"},
    {"manager_vm.wire", "manager_vm.crypto", "manager_vm.config", "manager_vm.packages", "manager_vm.systemd"},
    {"manager_vm.errors"},
)
ALLOWED = {
    "guest_frontend": {
        "guest_frontend",
        "manager_vm.errors",
        "manager_vm.wire",
        "manager_vm.protocol",
        "manager_vm.vchan",
    },
    "manager_vm.ctl": {
        "manager_vm.ctl",
        "manager_vm.errors",
        "manager_vm.wire",
        "manager_vm.config",
        "manager_vm.packages",
        "manager_vm.trust",
    },
    "image": {
        "image",
        "manager_vm.errors",
        "manager_vm.wire",
        "manager_vm.config",
        "manager_vm.packages",
        "manager_vm.ctl.client",
        "manager_vm.trust",
        "manager_vm.crypto",
        "manager_vm.protocol.tunnel",
        "manager_vm.vchan.emulator",
    },
}
ONLY_IN = {
    "subprocess": ("manager_vm.vtpm.swtpm", "image"),
    "msgpack": ("manager_vm.wire", "manager_vm.store"),
    "pyroute2": ("manager_vm.net",),
    "tpm2_pytss": ("manager_vm.keys.hwtpm", "guest_frontend.tcti"),
    "cryptography": ("manager_vm.crypto", "manager_vm.keys", "manager_vm.trust"),
}


def modules() -> dict[str, Path]:
    """Module name -> file, of the product."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str) -> Iterator[str]:
    """Every module that ``source`` imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def below(name: str, prefix: str) -> bool:
    """Whether ``name`` is ``prefix`` or in it."""
    return name == prefix or name.startswith(prefix + ".")


def layer(name: str) -> int | None:
    """Index of the layer a manager module is in."""
    return next((i for i, row in enumerate(LAYERS) if any(below(name, prefix) for prefix in row)), None)


def violations(name: str, source: str) -> list[str]:
    """What module ``name`` with this source imports although it must not."""
    found = []
    for target in imports(source):
        mine, other = layer(name), layer(target)
        if mine is not None and other is not None and other < mine:
            found.append(f"{name} imports {target}, which is above it")
        for package, allowed in ALLOWED.items():
            product = any(below(target, each) for each in PACKAGES) and target not in (
                "manager_vm",
                "image",
                "guest_frontend",
            )
            if below(name, package) and product and not any(below(target, each) for each in allowed):
                found.append(f"{name} imports {target}, which {package} must not")
        for module, places in ONLY_IN.items():
            if below(target, module) and not any(below(name, place) for place in places):
                found.append(f"{name} imports {module}, which belongs in {', '.join(places)}")
    return found


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_what_its_layer_allows(name: str) -> None:
    assert violations(name, modules()[name].read_text()) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("manager_vm.wire.tpm", "from manager_vm.vtpm import run"),
        ("manager_vm.protocol.lifecycle", "import manager_vm.store.atomic"),
        ("guest_frontend.link", "from manager_vm.crypto import Key"),
        ("manager_vm.ctl.main", "def f():\n    from manager_vm.vtpm.registry import Registry"),
        ("manager_vm.server.links", "import subprocess"),
        ("manager_vm.server.links", "from msgpack import packb"),
    ],
)
def test_the_checker_finds_a_forbidden_import(name: str, source: str) -> None:
    assert violations(name, source) != []


def test_every_manager_module_has_a_layer_or_a_list() -> None:
    homeless = [
        n for n in modules() if n.startswith("manager_vm.") and layer(n) is None and not below(n, "manager_vm.ctl")
    ]
    assert homeless == []


def test_no_two_modules_import_each_other_in_a_cycle() -> None:
    known = modules()
    graph = {name: {t for t in imports(path.read_text()) if t in known and t != name} for name, path in known.items()}
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    assert graph == {}


def test_an_image_is_built_and_measured_with_the_standard_library_alone() -> None:
    known, seen, todo = modules(), set[str](), ["image.builder.__main__", "image.measure"]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            targets = {each for target in imports(known[name].read_text()) for each in _packages_of(target)}
            todo += targets & known.keys()
            assert not {target for target in targets if target.split(".")[0] in ("cryptography", "msgpack")}, name
    assert "manager_vm.trust.pcrs" in seen and "manager_vm.trust.signing" not in seen


def _packages_of(name: str) -> set[str]:
    """The module and the packages that are imported with it."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
