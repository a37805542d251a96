"""Parameters by name: nested dicts as flat ones, patterns that choose some, trees cut in two.

The path of a parameter is its keys joined by slashes: "blocks/0/attention/project_in/kernel".
"""

import difflib
import fnmatch
from collections.abc import Collection, Iterable
from typing import Any

from jaxrec.typing import Params, UserError


def flatten(tree: Params, prefix: str = "") -> dict[str, Any]:
    """Returns {path: leaf} of a nested dict; whatever is no dict is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: dict[str, Any]) -> Params:
    """Returns the nested dict of {path: leaf}."""
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def divide(tree: Params, paths: Collection[str] | None) -> tuple[Params, Params]:
    """Returns what lies at these paths, and the rest; None stands for all paths."""
    if paths is None:
        return tree, {}
    flat = flatten(tree)
    chosen = {path: leaf for path, leaf in flat.items() if path in paths}
    return nest(chosen), nest({path: leaf for path, leaf in flat.items() if path not in paths})


def unite(*trees: Params) -> Params:
    """Returns one tree of all leaves; of two at one path, the later counts."""
    return nest({path: leaf for tree in trees for path, leaf in flatten(tree).items()})


def select(patterns: Iterable[str], paths: Iterable[str], *, option: str) -> frozenset[str]:
    """Returns the paths that some pattern matches.

    Args:
      patterns: whole paths, their beginnings ("blocks/0" is all that lies below), or globs in which
        * stands for anything ("*/kernel").
      paths: those to choose from.
      option: what the patterns were given as, for the error.

    Raises:
      UserError: for a pattern that matches nothing; names the nearest path.
    """
    paths, found = list(paths), set()
    for pattern in patterns:
        matches = [
            path
            for path in paths
            if path.startswith(f"{pattern.rstrip('/')}/") or fnmatch.fnmatchcase(path, pattern)
        ]
        if not matches:
            beginnings = {path[:i] for path in paths for i in _slashes(path)}
            near = difflib.get_close_matches(pattern, [*paths, *beginnings], n=1, cutoff=0.0)
            raise UserError(
                f"{option}: {pattern!r} matches no parameter. "
                + (f"Did you mean {near[0]!r}? " if near else "")
                + "Give a path, the beginning of one, or a glob such as '*/kernel'."
            )
        found.update(matches)
    return frozenset(found)


def _slashes(path: str) -> list[int]:
    return [i for i, letter in enumerate(path) if letter == "/"]
