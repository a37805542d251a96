"""Configs: frozen dataclasses that can be overridden by path, saved as JSON and read back.

A config is data with types: overrides are checked against them, and a misspelt field is an error
that names the closest one. Saved configs carry the import path of each dataclass.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib
import json
import types
import typing
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.typing import UserError


def to_dict(config: Any) -> Any:
    """Returns a JSON-ready form of a config; each dataclass says what it is under `type`."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        kind = type(config)
        fields = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": f"{kind.__module__}.{kind.__qualname__}", **fields}
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return config


def from_dict(tree: Any) -> Any:
    """Inverse of `to_dict`; lists become tuples.

    Raises:
      UserError: when a type cannot be found, does not have a saved field or refuses its values.
    """
    if isinstance(tree, list):
        return tuple(from_dict(value) for value in tree)
    if not isinstance(tree, dict):
        return tree
    values = {key: from_dict(value) for key, value in tree.items() if key != "type"}
    if "type" not in tree:
        return values
    module, _, name = str(tree["type"]).rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise UserError(
            f"the saved config names {tree['type']!r}, which is not installed here."
        ) from None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise UserError(f"the saved config names {tree['type']!r}, which is not a config class.")
    for key in values:
        _field(kind, key, key)
    try:
        return kind(**values)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"the saved config of {tree['type']} does not fit: {error}") from None


def save(config: Any, path: str | Path) -> None:
    """Writes a config as JSON, whole or not at all."""
    write_whole(path, json.dumps(to_dict(config), indent=2) + "\n")


def write_whole(path: str | Path, text: str) -> None:
    """Writes a text file that appears whole or, when writing fails, stays as it was."""
    with whole_file(path) as partial:
        partial.write_text(text)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` once all went well."""
    partial = Path(path).with_name(Path(path).name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Writes a .npy file that is there whole or not at all."""
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, array)


def load(path: str | Path) -> Any:
    """Reads what `save` wrote. Raises UserError when the file is absent or damaged."""
    try:
        return from_dict(json.loads(Path(path).read_text()))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist. A workdir is made by scripts/train.py --workdir=DIR."
        ) from None
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}).") from None


def override[T](config: T, path: str, text: str) -> T:
    """Returns the config with the field at a dotted path set from text; see `override_all`."""
    return override_all(config, [(path, text)])


def override_all[T](config: T, changes: Sequence[tuple[str, str]]) -> T:
    """Returns the config with fields set from text, all at once: only the outcome must be valid.

    Args:
      config: a frozen dataclass, with dataclasses inside.
      changes: pairs of a dotted path, such as "optimizer.learning_rate", and the value as typed on
        a command line: 1e-3, true, none, 10,20 or a word. Of two for one path the last counts.

    Raises:
      UserError: for a field that does not exist (the closest one is named), a value that does not
        have the field's type, or values that the config refuses.
    """
    return _override(config, [(path.split("."), text, path) for path, text in changes])


def _override(config: Any, changes: Sequence[tuple[list[str], str, str]]) -> Any:
    values: dict[str, Any] = {}
    inner: dict[str, list[tuple[list[str], str, str]]] = {}
    for (key, *below), text, path in changes:
        hint, current = _field(type(config), key, path), getattr(config, key)
        group = dataclasses.is_dataclass(current)
        if below and not group:
            raise UserError(
                f"config.{path}: nothing lies below {path.removesuffix('.' + '.'.join(below))!r}, "
                f"which is the value {current!r}."
            )
        if group and not below:
            names = ", ".join(f.name for f in dataclasses.fields(current))
            raise UserError(f"config.{path} is a group; set one of its fields: {names}.")
        if below:
            inner.setdefault(key, []).append((below, text, path))
        else:
            values[key] = _parse(text, hint, path)
    values |= {key: _override(getattr(config, key), below) for key, below in inner.items()}
    try:
        return dataclasses.replace(config, **values)
    except UserError:
        raise
    except ValueError as error:
        said = ", ".join(f"config.{path}={text}" for _, text, path in changes)
        raise UserError(f"{said}: {error}") from None


def _field(kind: Any, name: str, path: str) -> Any:
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    if name in names:
        return hints[name]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    raise UserError(
        f"config.{path}: {kind.__module__}.{kind.__qualname__} has no field {name!r}. "
        f"Did you mean {close[0]!r}? It has: {', '.join(names)}."
        if close
        else f"config.{path}: {kind.__module__}.{kind.__qualname__} has no fields."
    )


def _parse(text: str, hint: Any, path: str) -> Any:
    lowered = text.strip().lower()
    value: Any
    if lowered in ("true", "false"):
        value = lowered == "true"
    elif lowered in ("none", "null"):
        value = None
    else:
        value = _literal(text)
    fitted = _fit(value, hint)
    if fitted is _MISFIT:
        fitted = _fit(text, hint)
    if Ellipsis in typing.get_args(hint) and isinstance(value, str) and "," in value:
        # Words side by side are no literal.
        fitted = _fit([_literal(word.strip()) for word in value.split(",")], hint)
    if fitted is _MISFIT:
        raise UserError(f"config.{path} wants {_spell(hint)}; got {text!r}.")
    return fitted


def _literal(text: str) -> Any:
    """Returns the Python literal that the text is, or the text."""
    with warnings.catch_warnings():
        # Words such as 5in or C:\\data are no business of the parser's.
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return text


_MISFIT = object()


def _fit(value: Any, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        choices = (_fit(value, arg) for arg in args)
        return next((fit for fit in choices if fit is not _MISFIT), _MISFIT)
    if origin is typing.Literal:
        return value if any(value == a and type(value) is type(a) for a in args) else _MISFIT
    if origin is tuple:
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        kinds = args[:1] * len(values) if Ellipsis in args else args
        if len(kinds) != len(values):
            return _MISFIT
        fits = tuple(_fit(v, kind) for v, kind in zip(values, kinds, strict=True))
        return _MISFIT if _MISFIT in fits else fits
    if hint in (None, type(None)):
        return None if value is None else _MISFIT
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1023 else _MISFIT
    if hint in (bool, int, float, str, dict) or origin is dict:
        return value if type(value) is (origin or hint) else _MISFIT
    return _MISFIT


def _spell(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) else str(hint)
