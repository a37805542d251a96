"""Time of one optimiser step on an embedding table: touched rows against the dense step.

Prints one JSON object for each table size: the touched-rows step of jaxrec and, where it fits in
memory, the step that plain JAX and Optax do. Both are the same gradient of the same loss.

  python benchmarks/embedding_update.py --rows=100000,1000000,8000000
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _report import emit, seconds_of
from absl import app, flags

from jaxrec.optim import Touched, put_touched, take_touched

_ROWS = flags.DEFINE_list("rows", ["100000", "1000000", "8000000"], "Rows of the table.")
_WIDTH = flags.DEFINE_integer("width", 64, "Width of a row.", lower_bound=1)
_IDS = flags.DEFINE_integer("ids", 8192, "Ids a step, Zipf-distributed with repeats.")
_REPEATS = flags.DEFINE_integer("repeats", 30, "Timed steps.", lower_bound=1)
_DENSE_ROWS = flags.DEFINE_integer("dense_rows", 1_000_000, "Largest table for the dense step.")
_OPTIMIZER = flags.DEFINE_enum("optimizer", "adagrad", ["adagrad", "sgd", "adam"], "Of Optax.")


def _loss(params: Any, ids: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(params["items"]["table"][ids] - target))


def _step(
    touched_rows: bool, optimizer: Any, params: Any, slots: Any, ids: Any, target: Any
) -> Any:
    whole, whole_slots, touched = params, slots, {}
    if touched_rows:
        touched = {"items": Touched.of(ids, params["items"]["table"].shape[0], ids.size)}
        params, slots = take_touched(params, touched), take_touched(slots, touched)
        ids = touched["items"].renumber(ids)
    gradient = jax.grad(_loss)(params, ids, target)
    updates, slots = optimizer.update(gradient, slots, params)
    params = optax.apply_updates(params, updates)
    return put_touched(whole, params, touched), put_touched(whole_slots, slots, touched)


def _time(touched_rows: bool, num_rows: int) -> float:
    optimizer = getattr(optax, _OPTIMIZER.value)(0.01)
    shape = (num_rows, _WIDTH.value)
    params = {"items": {"table": jax.jit(lambda: jnp.full(shape, 0.1, jnp.float32))()}}
    slots = jax.jit(optimizer.init)(params)
    step = jax.jit(functools.partial(_step, touched_rows, optimizer), donate_argnums=(0, 1))
    random = np.random.default_rng(0)
    # Zipf with exponent 1.05 over shuffled rows, so that hot rows do not lie together.
    weights = np.arange(1, num_rows + 1) ** -1.05
    cumulative = np.cumsum(weights / weights.sum())
    shuffled = random.permutation(num_rows).astype(np.int32)
    ids = [
        jnp.asarray(shuffled[np.searchsorted(cumulative, random.random(_IDS.value)) % num_rows])
        for _ in range(8)
    ]
    target = jnp.zeros((_IDS.value, _WIDTH.value))
    state, count = [params, slots], iter(range(10**9))
    del params, slots

    def work() -> Any:
        state[:] = step(*state, ids[next(count) % len(ids)], target)
        return state

    return 1e3 * seconds_of(work, _REPEATS.value, warmup=3)


def main(_: list[str]) -> None:
    smallest = None
    for num_rows in map(int, _ROWS.value):
        touched_ms = _time(True, num_rows)
        smallest = smallest or touched_ms
        figures = {
            "optimizer": _OPTIMIZER.value,
            "rows": num_rows,
            "width": _WIDTH.value,
            "ids": _IDS.value,
            "step_ms": touched_ms,
            "growth": touched_ms / smallest,
        }
        if num_rows <= _DENSE_ROWS.value:
            dense_ms = _time(False, num_rows)
            figures |= {"dense_optax_ms": dense_ms, "times_faster": dense_ms / touched_ms}
        emit("embedding_update", figures)


if __name__ == "__main__":
    app.run(main)
