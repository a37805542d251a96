"""Transforms for training that goes on from a trained model: how far and in what order it moves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec.typing import Params

type Layers = Sequence[Sequence[str]]


class StartState(NamedTuple):
    """The parameters that training began with; mirrors the parameters."""

    start: Any


def add_l2_to_start(weight: float) -> optax.GradientTransformation:
    """Adds weight * (parameters - start) to gradients: L2-SP (arXiv 1802.01483).

    The gradient of weight / 2 * |parameters - start| ** 2, where the start is the parameters given
    to `init`; see `with_start`. It takes the memory of the parameters once more. Lazy for tables: a
    row is pulled back in the steps that touch it, and rests in others.
    """

    def init(params: Params) -> StartState:
        return StartState(jax.tree.map(jnp.copy, params))

    def update(
        updates: Any, state: StartState, params: Params | None = None
    ) -> tuple[Any, StartState]:
        if params is None:
            raise ValueError(optax.NO_PARAMS_MSG)
        pulled = jax.tree.map(lambda g, p, s: g + weight * (p - s), updates, params, state.start)
        return pulled, state

    return optax.GradientTransformation(init, update)


def with_start(state: Any, params: Params) -> Any:
    """Returns an optimiser's state in which training begins with these parameters.

    For `add_l2_to_start`, when parameters are replaced after `init`. Any other state stays as it
    is. Arrays are copies, of the dtypes and in the places of those that were there.

    Args:
      state: of any Optax transform.
      params: the parameters that the transform was made for.
    """

    def is_start(part: Any) -> bool:
        return isinstance(part, StartState)

    def begin(part: Any) -> Any:
        return StartState(jax.tree.map(_copied, part.start, params)) if is_start(part) else part

    return jax.tree.map(begin, state, is_leaf=is_start)


def _copied(old: Any, param: Any) -> Any:
    if isinstance(old, np.ndarray):
        return np.array(param, old.dtype)
    return jnp.copy(param).astype(old.dtype)


def scale_by_layer(layers: Layers, decay: float) -> optax.GradientTransformation:
    """Multiplies updates by decay ** (layers above): lower layers move less (arXiv 1801.06146).

    Args:
      layers: from input to output, the beginnings of paths, as in `jaxrec.Functional`. Parameters
        of no layer count as of the top one.
      decay: the factor from a layer to the one below.
    """

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> Any:
        def scale(path: Any, value: jax.Array) -> jax.Array:
            return value * jnp.asarray(decay ** layers_above(path, layers), value.dtype)

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class UnfreezeState(NamedTuple):
    """Steps done: () int32."""

    steps: jax.Array


def unfreeze_layers(layers: Layers, every: int) -> optax.GradientTransformation:
    """Holds layers still until their turn: the top one moves from the start (arXiv 1801.06146).

    In step t, from 0, the layers with at most t // every layers above them move, and the updates of
    the others are 0. Put after an optimiser, whose moments thus follow the gradients of frozen
    layers and are no strangers to them when they begin to move.

    Args:
      layers: as for `scale_by_layer`.
      every: steps until the next layer begins to move.
    """

    def init(params: Params) -> UnfreezeState:
        return UnfreezeState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: UnfreezeState, params: Any = None) -> Any:
        def hold(path: Any, value: jax.Array) -> jax.Array:
            moves = state.steps >= layers_above(path, layers) * every
            return jnp.where(moves, value, jnp.zeros_like(value))

        held = jax.tree_util.tree_map_with_path(hold, updates)
        return held, UnfreezeState(optax.safe_increment(state.steps))

    return optax.GradientTransformation(init, update)


def layers_above(path: Any, layers: Layers) -> int:
    """Returns how many layers lie above that of a parameter; 0 when no layer names it."""
    name = "/".join(str(getattr(entry, "key", "")) for entry in path) + "/"
    for number, layer in enumerate(layers):
        if any(name.startswith(f"{start}/") for start in layer):
            return len(layers) - 1 - number
    return 0
