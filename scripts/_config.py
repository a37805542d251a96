"""Configs from the command line: --config=FILE and --config.path.to.field=value."""

import importlib.util
import sys
import traceback
from pathlib import Path

from jaxrec.config import override_all
from jaxrec.training import ExperimentConfig
from jaxrec.typing import UserError


def take_overrides() -> list[tuple[str, str]]:
    """Takes --config.a.b=v and --config.a.b v out of sys.argv, before absl sees them."""
    rest, overrides, words = [], [], iter(sys.argv)
    for word in words:
        name = word.lstrip("-")
        if not (word.startswith("-") and name.startswith("config.")):
            rest.append(word)
            continue
        path, equals, value = name.removeprefix("config.").partition("=")
        overrides.append((path, value if equals else next(words, "")))
    sys.argv[:] = rest
    return overrides


def load_config(path: str, overrides: list[tuple[str, str]]) -> ExperimentConfig:
    """Runs get_config() of a config file and applies the overrides together.

    Raises:
      UserError: when the file is absent, fails or has no get_config, or an override does not fit.
    """
    file = Path(path)
    if not file.is_file():
        there = sorted(str(p) for p in Path("configs").glob("*.py"))
        raise UserError(f"--config={path} does not exist. There are: {', '.join(there) or 'none'}.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"--config={path} defines no get_config().")
        config = module.get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(_where_it_failed(path, error)) from error
    if not isinstance(config, ExperimentConfig):
        raise UserError(
            f"get_config() of --config={path} must return an ExperimentConfig; it returned "
            f"{type(config).__name__}."
        )
    return override_all(config, overrides)


def _where_it_failed(path: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == Path(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    what = " ".join(str(error).split()) or "no message"
    return f"--config={path} fails in line {line or 1}: {type(error).__name__}: {what}."
