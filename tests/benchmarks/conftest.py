"""Benchmarks as modules."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from absl import flags


@pytest.fixture(scope="session")
def benchmark() -> Callable[[str], Any]:
    """Imports a benchmark, without its flags: scripts use the same names, one process cannot."""

    def load(name: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
            module = importlib.import_module(name)
        for flag in list(flags.FLAGS.flags_by_module_dict().get(name, [])):
            if flag.name in flags.FLAGS:
                delattr(flags.FLAGS, flag.name)
        return module

    return load
