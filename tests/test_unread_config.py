"""No dead options: every field of every config is read somewhere."""

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "jaxrec").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])
# What runs tell and data hold; nobody sets these.
RESULTS = {"Batch", "Manifest", "TrainState", "StepMetrics", "Evaluation"}


def configs() -> Iterator[type]:
    """Every frozen dataclass that is made by keyword: how configs are written here."""
    for file in sorted((ROOT / "jaxrec").rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            options = getattr(kind, "__dataclass_params__", None)
            if kind.__module__ != name or options is None or kind.__name__ in RESULTS:
                continue
            if options.frozen and options.kw_only:
                yield kind


def attributes_read() -> set[str]:
    """Names read from some object, checks in `__post_init__` left out."""
    found: set[str] = set()
    for file in FILES:
        pending: list[ast.AST] = [ast.parse(file.read_text())]
        while pending:
            node = pending.pop()
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                continue
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            pending += ast.iter_child_nodes(node)
    return found


CONFIGS = list(configs())
READ = attributes_read()


def test_the_configs_of_every_part_are_found() -> None:
    names = {kind.__name__ for kind in CONFIGS}
    assert names >= {"Config", "OptimizerConfig", "TrainingConfig", "EvaluationConfig", "BCE"}
    assert names >= {"ExperimentConfig", "MeshConfig", "SequenceData", "PairData", "Recipe"}


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_field_is_read(kind: type) -> None:
    unread = {field.name for field in dataclasses.fields(kind)} - READ
    assert not unread, f"nothing reads {sorted(unread)} of {kind.__name__}"
