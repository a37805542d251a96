"""Imports keep to the picture in docs/design.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = (
    {"typing", "config", "memory"},
    {"ops", "data"},
    {"layers", "losses", "metrics", "optim", "sampling"},
    {"models", "objectives", "functional", "sharding"},
    {"evaluation", "training"},
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
SIDEWAYS = {("training", "evaluation"), ("config", "typing")}
FILES = sorted((ROOT / "jaxrec").rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "jaxrec").with_suffix("").parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Full dotted names, `from jaxrec import ops` as jaxrec.ops."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names_in(path: Path) -> set[str]:
    return set(imports(ast.parse(path.read_text(), str(path))))


def test_every_part_has_a_level() -> None:
    assert {part_of(path) for path in FILES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    here = part_of(path)
    if here == "__init__":
        return
    there = {name.split(".")[1] for name in names_in(path) if name.startswith("jaxrec.")}
    wrong = {
        part
        for part in there - {here}
        if LEVEL[part] >= LEVEL[here] and (here, part) not in SIDEWAYS
    }
    assert not wrong, f"{here} must not import {wrong}"


@pytest.mark.parametrize(
    ("part", "strangers"),
    [
        ("data", {"jax", "flax", "optax", "orbax"}),
        ("models", {"optax", "orbax"}),
        ("layers", {"optax", "orbax"}),
        ("evaluation", {"flax", "optax", "orbax"}),
    ],
)
def test_parts_know_nothing_of(part: str, strangers: set[str]) -> None:
    files = [path for path in FILES if part_of(path) == part]
    known = {name.partition(".")[0] for path in files for name in names_in(path)}
    assert not known & strangers


def test_modules_are_split_and_merged_in_one_file() -> None:
    users = {part_of(path) for path in FILES if {"nnx.split", "nnx.merge"} & attributes(path)}
    assert users == {"functional"}


def test_transforms_are_those_of_jax() -> None:
    lifted = {"nnx.jit", "nnx.grad", "nnx.value_and_grad", "nnx.scan", "nnx.Optimizer"}
    assert not {path for path in FILES if lifted & attributes(path)}


def attributes(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
