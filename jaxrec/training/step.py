"""The training step: one jitted function of (state, batch), for any model and objective."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec.functional import Functional
from jaxrec.objectives import Objective
from jaxrec.optim import Touched, put_touched, take_touched
from jaxrec.typing import Batch, Params

type Tables = dict[str, tuple[str, ...]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that a step changes; a pytree.

    Attributes:
      step: () int32, steps done.
      params: the model's parameters.
      optimizer: the Optax state.
      average: running average of the parameters, or an empty dict without one.
    """

    step: jax.Array
    params: Params
    optimizer: Any
    average: Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What a step reports; stays on the device until it is asked for.

    Attributes:
      loss: () float32, weighted mean over the batch's examples.
      examples: () float32, sum of the examples' weights.
      overflow: () int32, distinct rows beyond the capacity of the touched-rows step; 0 is right.
    """

    loss: jax.Array
    examples: jax.Array
    overflow: jax.Array


jax.tree_util.register_dataclass(StepMetrics)

type Step = Callable[[TrainState, Batch, Any], tuple[TrainState, StepMetrics]]


def init_state(
    model: Functional, optimizer: optax.GradientTransformation, seed: int, *, average: bool = False
) -> TrainState:
    """Returns the state before the first step; parameters and slots are born in one jitted call."""

    def init(key: jax.Array) -> TrainState:
        params = model.init(key)
        copy = jax.tree.map(jnp.copy, params) if average else {}
        return TrainState(
            step=jnp.int32(0), params=params, optimizer=optimizer.init(params), average=copy
        )

    return jax.jit(init)(jax.random.key(seed))


@jax.jit
def all_finite(params: Params) -> jax.Array:
    """Returns () bool: whether no parameter is infinite or not a number."""
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]).all()


def make_step(
    model: Functional,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    average: float = 0.0,
    capacity: int = 0,
) -> Step:
    """Returns `step(state, batch, statistics) -> (state, metrics)`, jitted; state is donated.

    Where the objective names its items and a batch cannot touch every row of a table, the step
    works on the touched rows alone: see `jaxrec.optim.touched`. Otherwise the slice would be the
    table itself and the step is the dense one.

    Args:
      model: the model as pure functions.
      objective: what is minimised.
      optimizer: any Optax transform.
      seed: the step's key is fold_in(key(seed), step).
      accumulate: parts that a batch is computed in. The result is that of the whole batch, but for
        the in-batch softmax, whose negatives are those of a part.
      average: decay of the running average of the parameters; 0 keeps none.
      capacity: distinct rows of a table that a batch may touch; 0 allows for all of its ids.
    """

    def total_loss(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return objective.loss(model.bind(params), batch, key)

    gradient = jax.value_and_grad(total_loss, has_aux=True)

    def step(state: TrainState, batch: Batch, statistics: Any) -> tuple[TrainState, StepMetrics]:
        draw_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        parts = _split(batch, accumulate)
        draw = jax.vmap(objective.draw, in_axes=(0, None, 0))
        parts = draw(parts, statistics, jax.random.split(draw_key, accumulate))
        touched = {}
        tables = model.bind(state.params).tables
        if not objective.whole_catalogue:
            touched = _touched(parts, state.params, tables, capacity)
        for name, rows in touched.items():
            parts = _renumber(parts, tables[name], rows)
        params = take_touched(state.params, touched)
        slots = take_touched(state.optimizer, touched)

        def part(carry: Any, xs: Any) -> tuple[Any, None]:
            (total, weight), grads = gradient(params, *xs)
            return jax.tree.map(jnp.add, carry, (total, weight, grads)), None

        xs = (parts, jax.random.split(loss_key, accumulate))
        if accumulate == 1:
            (total, weight), grads = gradient(params, *jax.tree.map(lambda x: x[0], xs))
        else:
            start = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
            (total, weight, grads), _ = jax.lax.scan(part, start, xs)
        scale = 1 / jnp.where(weight > 0, weight, 1)
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        updates, slots = optimizer.update(grads, slots, params)
        params = put_touched(state.params, optax.apply_updates(params, updates), touched)
        over = [jnp.maximum(t.count - len(t.rows), 0) for t in touched.values()]
        averaged = state.average
        if average:
            # Early on the average follows the parameters, as nothing older is worth keeping.
            done = state.step.astype(jnp.float32)
            keep = jnp.minimum(average, (done + 1) / (done + 10))
            averaged = jax.tree.map(lambda a, p: a + (1 - keep) * (p - a), averaged, params)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            optimizer=put_touched(state.optimizer, slots, touched),
            average=averaged,
        )
        metrics = StepMetrics(
            loss=total * scale, examples=weight, overflow=sum(over, start=jnp.int32(0))
        )
        return new_state, metrics

    return jax.jit(step, donate_argnums=0)


def _split(batch: Batch, parts: int) -> Batch:
    return jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)


def _touched(parts: Batch, params: Params, tables: Tables, capacity: int) -> dict[str, Touched]:
    touched = {}
    for name, fields in tables.items():
        num_rows = params[name]["table"].shape[0]
        ids = [jnp.ravel(getattr(parts, f)) for f in fields if getattr(parts, f) is not None]
        size = min(capacity or math.inf, sum(map(len, ids)))
        # Row 0 is always there: padding must have a place in the slice.
        if ids and size + 1 < num_rows:
            joined = jnp.concatenate([jnp.zeros(1, jnp.int32), *ids])
            touched[name] = Touched.of(joined, num_rows, int(size) + 1)
    return touched


def _renumber(batch: Batch, fields: tuple[str, ...], touched: Touched) -> Batch:
    ids = {f: getattr(batch, f) for f in fields}
    return batch.replace(**{f: touched.renumber(x) for f, x in ids.items() if x is not None})
