"""The layers of the package: imports go down only, and importing does nothing but define."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "jaxrec").rglob("*.py"))
LAYERS = (
    ("typing", "config", "memory", "paths", "columns", "ids"),
    ("ops", "data"),
    ("layers", "losses", "metrics", "optim", "sampling"),
    ("models", "objectives", "functional", "sharding"),
    (
        *("training", "evaluation", "finetuning", "compression", "distillation"),
        *("export", "serving", "testing"),
    ),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# Parts that work on finished runs: they train, and measure what came of it.
ON_RUNS = ("compression", "distillation", "finetuning")
DRAWN = {("config", "typing"), ("ids", "typing"), ("paths", "typing"), ("training", "evaluation")}
DRAWN |= {(part, below) for part in ON_RUNS for below in ("training", "evaluation")}
DRAWN |= {("compression", "distillation")}
DRAWN |= {("export", "training"), ("export", "evaluation"), ("serving", "export")}
DRAWN |= {("testing", "training"), ("testing", "export")}
# Slow to import or optional: inside the functions that need them.
HEAVY = {"matplotlib", "duckdb", "pyspark", "faiss", "onnxruntime"}
# What a part knows nothing of; data has no device code.
STRANGERS = {
    "data": {"jax", "flax", "optax", "orbax"},
    "layers": {"optax", "orbax"},
    "models": {"optax", "orbax"},
    "evaluation": {"flax", "optax", "orbax"},
    "serving": {"flax", "optax", "orbax"},
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that an import statement in the tree names, with what it takes from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def outside_functions(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when the module is imported."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, kinds):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def part_of(name: str) -> str | None:
    """The part of the package that a dotted name lies in."""
    words = name.split(".")
    return words[1] if words[0] == "jaxrec" and len(words) > 1 else None


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_down(file: Path) -> None:
    here = file.relative_to(ROOT / "jaxrec").parts[0].removesuffix(".py")
    if here == "__init__":
        return
    assert here in LEVEL, f"{here} has no place in the picture of layers"
    for name in imports(ast.parse(file.read_text())):
        there = part_of(name)
        if there is None or there == here or (here, there) in DRAWN:
            continue
        assert there in LEVEL, f"{name} has no place in the picture of layers"
        assert LEVEL[there] < LEVEL[here], f"{here} (layer {LEVEL[here]}) imports {name}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_modules_keep_to_their_means(file: Path) -> None:
    tree = ast.parse(file.read_text())
    everywhere = {name.split(".")[0] for name in imports(tree)}
    assert "absl" not in everywhere, "flags are for scripts"
    at_import = {n.split(".")[0] for node in outside_functions(tree) for n in imports(node)}
    assert not at_import & HEAVY
    here = file.relative_to(ROOT / "jaxrec").parts[0]
    assert not everywhere & STRANGERS.get(here, set())


def test_only_functional_splits_and_merges_modules() -> None:
    for file in FILES:
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Call)
        }
        lifted = {"nnx.jit", "nnx.grad", "nnx.value_and_grad", "nnx.scan", "nnx.Optimizer"}
        assert not calls & lifted, name_of(file)
        if file.name != "functional.py":
            assert not calls & {"nnx.split", "nnx.merge"}, name_of(file)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_every_module_starts_no_backend_and_reads_no_flags() -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in FILES
    ]
    out = run(
        "import importlib\n"
        "from absl import flags\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "from jax._src import xla_bridge\n"
        "owners = flags.FLAGS.flags_by_module_dict()\n"
        "print(len(xla_bridge._backends), [n for n in owners if n.startswith('jaxrec')],"
        " flags.FLAGS.is_parsed())"
    )
    assert out.split("\n")[-2] == "0 [] False"


def test_importing_the_package_is_light_and_its_parts_come_on_first_use() -> None:
    out = run(
        "import sys, jaxrec\n"
        "print('jax' in sys.modules, 'pandas' in sys.modules)\n"
        "print(jaxrec.functional.__module__, jaxrec.losses.__name__)\n"
    )
    assert out == "False False\njaxrec.functional jaxrec.losses\n"


@pytest.mark.parametrize("module", ["jaxrec.export", "jaxrec.serving.server"])
def test_artefacts_are_opened_and_served_without_what_makes_them(module: str) -> None:
    out = run(
        f"import sys, {module}\n"
        "makers = ('flax', 'optax', 'orbax', 'pandas', 'jaxrec.training', 'jaxrec.functional')\n"
        "print([name for name in makers if name in sys.modules])\n"
    )
    assert out == "[]\n"


def test_a_part_that_does_not_exist_is_no_attribute() -> None:
    import jaxrec

    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = jaxrec.nothing
