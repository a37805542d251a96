"""Flax NNX modules as pure functions of nested dicts; only here are modules split and merged."""

import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxrec.typing import Params


class Functional(NamedTuple):
    """A module as pure functions; pass it to jit, grad, shard_map or pmap code of your own.

    Attributes:
      init: `init(key) -> params`, a nested dict with string keys and arrays at its leaves.
      apply: `apply(params, *args, method="__call__", **kwargs)` calls the module's method. Dropout
        runs only when `key=` is passed; without a key it is evaluation.
      bind: `bind(params) -> module`, for code that calls several methods on the same parameters,
        inside or outside of jit.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[..., Any]
    bind: Callable[[Params], Any]


def functional(make: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """Turns a module into pure functions.

    Args:
      make: builds the module, as in `lambda rngs: SASRec(config, rngs=rngs)`. It is traced for
        shapes only, so no parameter is allocated before `init`.

    Raises:
      ValueError: when the module holds state that is not a parameter (such as batch statistics or
        random streams): it would be frozen silently.
    """
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(jax.random.key(0))))
    graph, state = nnx.split(abstract)
    flat = nnx.to_flat_state(state)
    strangers = [
        _name(path)
        for path, leaf in flat
        if not issubclass(getattr(leaf, "type", object), nnx.Param)
    ]
    if strangers:
        raise ValueError(
            f"{type(abstract).__name__} holds state that is not a parameter: "
            f"{', '.join(strangers)}. Keep random streams and statistics out of the module; pass "
            "keys at call."
        )
    paths = {_name(path): path for path, _ in flat}

    def init(key: jax.Array) -> Params:
        # rbg or threefry: a key array is all that a module's initialisers need
        module = make(nnx.Rngs(params=key))
        values = nnx.to_flat_state(nnx.split(module)[1])
        return _nest({_name(path): leaf.get_value() for path, leaf in values})

    def bind(params: Params) -> Any:
        leaves = _flatten(params)
        if leaves.keys() != paths.keys():
            missing = sorted(paths.keys() - leaves.keys())
            extra = sorted(leaves.keys() - paths.keys())
            raise ValueError(
                f"these are not parameters of {type(abstract).__name__}: "
                f"missing {missing or 'none'}, unknown {extra or 'none'}."
            )
        filled = [(path, leaf.replace(leaves[_name(path)])) for path, leaf in flat]
        return nnx.merge(graph, nnx.from_flat_state(filled))

    def apply(params: Params, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        return getattr(bind(params), method)(*args, **kwargs)

    return Functional(init, apply, bind)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _nest(flat: dict[str, Any]) -> Params:
    tree: Params = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _flatten(tree: Params, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class _CallableModule(types.ModuleType):
    """Lets `jaxrec.functional(...)` work once importing this file has put it over the function."""

    def __call__(self, make: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
        return functional(make)


sys.modules[__name__].__class__ = _CallableModule
