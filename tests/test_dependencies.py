"""pyproject.toml, requirements.lock and the imports of the code agree."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
# The others are named alike.
MODULES = {"absl-py": "absl", "faiss-cpu": "faiss", "orbax-checkpoint": "orbax"}
MODULES |= {"prometheus-client": "prometheus_client"}
HEAVY = {"duckdb", "faiss", "matplotlib", "onnxruntime", "pyspark"}
EXTRAS = ("ann", "export", "onnx", "serve", "spark")
BY_OTHERS = {"faiss", "flatbuffers", "httptools"}  # imported by name, by jax, by uvicorn
PARTS = {"pydantic_core"}  # comes with pydantic, in the one version that fits
SOURCES = [*(ROOT / "jaxrec").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]


def declared(texts: list[str]) -> list[Requirement]:
    return [Requirement(text) for text in texts]


def modules_of(texts: list[str]) -> set[str]:
    return {MODULES.get(one.name, one.name) for one in declared(texts)}


def locked() -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^\s;]+)", LOCK, re.MULTILINE))


def imported(path: Path, *, deferred: bool) -> set[str]:
    """Top-level names of third-party modules, with or without imports inside functions."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if deferred else tree.body
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in names}
    neighbours = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    return tops - set(sys.stdlib_module_names) - neighbours - {"jaxrec"}


def test_dependencies_are_what_the_code_imports() -> None:
    found = set().union(*(imported(path, deferred=True) for path in SOURCES))
    extras = PROJECT["optional-dependencies"]
    optional = modules_of([text for extra in EXTRAS for text in extras[extra]]) - BY_OTHERS
    assert found - PARTS - {"matplotlib"} == modules_of(PROJECT["dependencies"]) | optional


def test_what_extras_hold_is_tested() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = {text for extra in EXTRAS if extra != "spark" for text in extras[extra]}
    assert wanted <= set(extras["dev"])


def test_heavy_packages_are_imported_where_they_are_needed() -> None:
    found = set().union(*(imported(path, deferred=False) for path in SOURCES))
    assert not found & HEAVY


def test_the_lock_satisfies_every_fence() -> None:
    pins = locked()
    texts = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    for requirement in declared(texts):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), (
            f"{requirement} is not what requirements.lock has: run make lock"
        )


def test_every_pin_has_a_hash() -> None:
    pins = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(pins) == len(locked())
    assert all("--hash=sha256:" in pin for pin in pins)


def test_the_lock_names_no_place() -> None:
    assert not re.search(r"://|^-|@ ", LOCK, re.MULTILINE)


def test_the_lock_holds_no_accelerator_packages() -> None:
    assert not [name for name in locked() if re.match(r"nvidia|jax-cuda|libtpu|cuda", name)]


def test_the_package_needs_the_python_it_says() -> None:
    assert PROJECT["requires-python"] == ">=3.12"
    assert (ROOT / ".python-version").read_text().strip() == "3.12"
