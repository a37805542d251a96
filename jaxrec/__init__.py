"""jaxrec: recommender models on JAX, from raw logs to trained and measured recommenders.

Importing the package has no side effects: no flags are read and no backend starts.
Names resolve on first use, so `import jaxrec` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrec.functional import Functional, functional

__version__ = "0.1.0"

_MODULES = (
    *("compression", "config", "data", "distillation", "evaluation", "export", "finetuning"),
    *("layers", "losses", "metrics", "models"),
    *("objectives", "ops", "optim", "sampling", "training", "typing"),
)

__all__ = ["Functional", "functional"]


def __getattr__(name: str) -> Any:
    if name in ("Functional", "functional"):
        return getattr(importlib.import_module("jaxrec.functional"), name)
    if name in _MODULES:
        return importlib.import_module(f"jaxrec.{name}")
    raise AttributeError(f"module 'jaxrec' has no attribute {name!r}")
