"""Whether a model keeps apart the sequences that a packed row holds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.functional import Functional
from jaxrec.optim import table_of
from jaxrec.training.lookups import SomeRows, with_tables
from jaxrec.typing import Batch, Params, UserError

_ITEMS = 7


def check_segments(model: Functional) -> None:
    """Refuses a model whose vectors for one sequence of a packed row depend on another.

    One tiny row, with parameters made up at random and some rows in place of each table: of a
    billion items it costs what it costs of ten.

    Raises:
      UserError: says what the model does not look at.
    """
    shapes = model.shapes
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    rows = min((x.shape[0] for path, x in leaves if x.ndim and table_of(path)), default=_ITEMS)
    first, second, changed = ([1, 2, 3], [4, 5, 6], [3, 1, 4])
    history = [first + second, changed + second, first + changed]
    ids = 1 + np.array(history, np.int32) % max(1, min(rows, _ITEMS) - 1)
    segments = np.array([[1, 1, 1, 2, 2, 2]] * 3, np.int32)
    batch = Batch(history=ids, positives=ids, segments=segments, where=segments > 0)

    def vectors(params: Params) -> Any:
        return model.bind(params).user_vectors(batch)

    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    compiled = jax.jit(vectors, compiler_options=quickly)
    found = np.asarray(compiled(_made_up(shapes)), np.float32)
    size = max(float(np.abs(found).max()), 1e-30)
    gap = max(np.abs(found[1] - found[0])[3:].max(), np.abs(found[2] - found[0])[:3].max())
    if not gap <= 1e-2 * size:
        raise UserError(
            "batches are packed (config.data.targets='packed'), and the model mixes up the "
            "sequences of a row: what it says of one changes with the items of another. Have it "
            "look at batch.segments, or set config.data.targets='last' or 'all'. "
            "jaxrec.testing.check_model(config.model) says more."
        )


def _made_up(shapes: Params) -> Params:
    random = np.random.default_rng(0)

    def draw(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        drawn = random.standard_normal(leaf.shape, np.float32)
        # Kernels keep the size of what goes through them; scales are near 1.
        scaled = drawn / np.sqrt(leaf.shape[-2]) if leaf.ndim > 1 else 1 + 0.3 * drawn
        return scaled.astype(leaf.dtype)

    def some(name: str, leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        count = min(_ITEMS, leaf.shape[0])
        values = random.standard_normal((count, *leaf.shape[1:]), np.float32)
        ids = np.arange(count, dtype=np.int32)
        return SomeRows(ids, values.astype(leaf.dtype), num_rows=leaf.shape[0], name=name)

    return jax.tree.map(
        lambda leaf: draw(leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
        with_tables(shapes, some),
        is_leaf=lambda leaf: isinstance(leaf, SomeRows | jax.ShapeDtypeStruct),
    )
