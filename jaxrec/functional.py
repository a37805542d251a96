"""Flax NNX modules as pure functions of nested dicts; only here are modules split and merged."""

import functools
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxrec.ops.keys import root
from jaxrec.paths import flatten, nest
from jaxrec.typing import Params


class Functional(NamedTuple):
    """A module as pure functions; pass it to jit, grad, shard_map or pmap code of your own.

    Attributes:
      init: `init(key) -> params`, a nested dict with string keys and arrays at its leaves.
      apply: `apply(params, *args, method="__call__", **kwargs)` calls the module's method. Dropout
        runs only when `key=` is passed; without a key it is evaluation.
      bind: `bind(params, key=None) -> module`, for code that calls several methods on the same
        parameters, inside or outside of jit. The key is for what is random about the parameters
        themselves (see `reparametrise`); modules have nothing of the kind.
      tables: by name of an embedding table, the batch fields that index it.
      layers: from input to output, the beginnings of the paths of each layer's parameters; empty
        when the module does not say.
      frozen: paths of parameters that training leaves as they are, such as those of a trunk under
        adapters.
      given: those of them that were never learned, such as what is known of items: another run
        has its own.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[..., Any]
    bind: Callable[..., Any]
    tables: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})
    layers: tuple[tuple[str, ...], ...] = ()
    frozen: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()

    @property
    def shapes(self) -> Params:
        """What `init` returns, with a `jax.ShapeDtypeStruct` in place of each array."""
        return _shapes(self.init)


@functools.lru_cache(maxsize=32)  # tracing an initialisation takes as long as tracing a model
def _shapes(init: Callable[[jax.Array], Params]) -> Params:
    return jax.eval_shape(init, root(0))


def functional(make: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """Turns a module into pure functions.

    Args:
      make: builds the module, as in `lambda rngs: SASRec(config, rngs=rngs)`. It is traced for
        shapes only, so no parameter is allocated before `init`.

    Raises:
      ValueError: when the module holds state that is not a parameter (such as batch statistics or
        random streams): it would be frozen silently.
    """
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(root(0))))
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
        return nest({_name(path): leaf.get_value() for path, leaf in values})

    def bind(params: Params, key: jax.Array | None = None) -> Any:
        leaves = flatten(params)
        if leaves.keys() != paths.keys():
            missing = sorted(paths.keys() - leaves.keys())
            extra = sorted(leaves.keys() - paths.keys())
            raise ValueError(
                f"these are not parameters of {type(abstract).__name__}: "
                f"missing {missing or 'none'}, unknown {extra or 'none'}."
            )
        filled = [(path, leaf.replace(leaves[_name(path)])) for path, leaf in flat]
        return nnx.merge(graph, nnx.from_flat_state(filled))

    made = _of(init, bind, getattr(abstract, "tables", {}), _layers(abstract, paths))
    given = frozenset(getattr(abstract, "given", ()))
    return made._replace(frozen=given, given=given)


def reparametrise(
    model: Functional,
    init: Callable[[jax.Array], Params],
    expand: Callable[[Params, jax.Array | None], Params],
    *,
    frozen: Iterable[str] = (),
) -> Functional:
    """Returns the model as a function of other parameters, such as adapters or codes.

    Args:
      model: the model.
      init: `init(key)` gives the new parameters.
      expand: `expand(params, key)` gives those of the model; the key is None in evaluation. It is
        part of every compiled call, so it should cost little beside the model.
      frozen: paths of the new parameters that training leaves as they are.
    """

    def bind(params: Params, key: jax.Array | None = None) -> Any:
        return model.bind(expand(params, key))

    made = _of(init, bind, model.tables, model.layers)
    return made._replace(frozen=frozenset(frozen), given=model.given)


def functional_of(config: Any) -> Functional:
    """Returns the model of a config as pure functions.

    A config has `build(rngs)`, which returns a module, or, when it changes the model of another
    config, `functional()`.
    """
    if hasattr(config, "functional"):
        return config.functional()
    return functional(lambda rngs: config.build(rngs))


def _of(init: Any, bind: Any, tables: Any, layers: Any) -> Functional:
    def apply(params: Params, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        return getattr(bind(params), method)(*args, **kwargs)

    return Functional(init, apply, bind, tables, layers)


def _layers(module: Any, paths: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """Returns what the module says of its layers, without the beginnings that no path has.

    Parameters that it does not speak of, such as heads that were put on it, are the last layer.
    """
    layers = getattr(module, "layers", ())
    if not (isinstance(layers, tuple) and all(isinstance(layer, tuple) for layer in layers)):
        return ()  # a list of submodules by this name
    there = [
        tuple(start for start in layer if any(f"{path}/".startswith(f"{start}/") for path in paths))
        for layer in layers
    ]
    spoken_of = {start.partition("/")[0] for layer in there for start in layer}
    others = {path.partition("/")[0] for path in paths} - spoken_of
    there.append(tuple(sorted(others)) if spoken_of else ())
    return tuple(layer for layer in there if layer)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


class _CallableModule(types.ModuleType):
    """Lets `jaxrec.functional(...)` work once importing this file has put it over the function."""

    def __call__(self, make: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
        return functional(make)


sys.modules[__name__].__class__ = _CallableModule
