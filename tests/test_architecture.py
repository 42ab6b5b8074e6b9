"""The rules of docs/design.md and docs/architecture.md that a machine can check."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from architecture import LAYERS, PACKAGE, ROOT, modules

MODULES = modules()
TESTS = ROOT / "tests"
TEST_FILES = sorted(TESTS.rglob("test_*.py"))
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


@cache
def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def part(path: Path) -> str:
    """`models` for models/loading.py, `weights` for weights.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path):
    if path == PACKAGE / "__init__.py":
        return  # the public names, imported on use
    own = RANK[part(path)]
    for name in imports(path):
        if name.startswith("modelassay.") and (other := name.split(".")[1]) in RANK:
            below = RANK[other] < own or other == part(path)
            assert below, f"{part(path)} imports {other}"


def users_of(library: str) -> set[str]:
    files = [*MODULES, ROOT / "app.py"]
    return {
        str(path.relative_to(ROOT))
        for path in files
        if any(name == library or name.startswith(f"{library}.") for name in imports(path))
    }


def test_each_outside_system_has_one_door():
    assert all("/ui/" in path for path in users_of("gradio"))
    assert users_of("spaces") == {"app.py", "src/modelassay/ui/zero.py"}
    assert all("/hub/" in path for path in users_of("huggingface_hub"))
    assert users_of("mcp") == {"src/modelassay/audit/server.py"}
    assert users_of("fastapi") == {"src/modelassay/serving/app.py"}
    assert users_of("prometheus_client") == {"src/modelassay/serving/metrics.py"}


def test_no_pickle_and_no_remote_code():
    assert users_of("pickle") == set()
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert "torch.load(" not in text, path
        assert "trust_remote_code=True" not in text, path


def test_modules_stay_small():
    for path in MODULES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, path


def test_every_part_has_a_place_in_the_layers():
    parts = {part(path) for path in MODULES} - {"__init__"}
    assert parts <= set(RANK), "add it to LAYERS in scripts/architecture.py"


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_tests_share_helpers_through_support_alone(path):
    files = {file.stem for file in TEST_FILES} | {"conftest"}
    assert not {name for name in imports(path) if files & set(name.split("."))}


def test_the_tests_of_a_package_stand_in_a_folder_of_its_name():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    folders = {path.name for path in TESTS.iterdir() if any(path.glob("test_*.py"))}
    assert folders <= packages | {"benchmarks", "examples"}
