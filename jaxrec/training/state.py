"""What a training step changes, and how it is born: on one device, on a mesh, or partly in RAM."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxrec.functional import Functional
from jaxrec.ops.keys import Stream, root, stream
from jaxrec.optim import table_of, with_float32_slots
from jaxrec.paths import divide, unite
from jaxrec.sharding import Layout, shardings
from jaxrec.typing import Batch, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that a step changes; a pytree.

    Attributes:
      step: () int32, steps done.
      params: the model's parameters.
      optimizer: the Optax state.
      average: running average of the trained parameters, or an empty dict without one.
    """

    step: jax.Array
    params: Params
    optimizer: Any
    average: Params

    @property
    def used(self) -> Params:
        """The parameters to measure and to use: the average where there is one."""
        return unite(self.params, self.average)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What a step reports; stays on the device until it is asked for.

    Attributes:
      loss: () float32, weighted mean over the batch's examples.
      examples: () float32, sum of the examples' weights.
      overflow: () int32, distinct rows beyond the capacity of the touched-rows step; 0 is right.
      slow: () bool, whether rows were wanted too unevenly for the fast exchange.
    """

    loss: jax.Array
    examples: jax.Array
    overflow: jax.Array
    slow: jax.Array


type Step = Callable[[TrainState, Batch, Any], tuple[TrainState, StepMetrics]]


def init_state(
    model: Functional,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    average: bool = False,
    table_dtype: str = "float32",
    trained: Collection[str] | None = None,
    mesh: Mesh | None = None,
    layout: Layout = Layout(),  # noqa: B008 - a frozen value
) -> TrainState:
    """Returns the state before the first step; parameters and slots are born in one jitted call.

    With a mesh they are born where they belong: no device holds more than its part. Tables that
    are split get rows of zeros at their end, so that all parts are equal; nothing looks at them.
    The values do not depend on the mesh.

    Args:
      model: the model as pure functions.
      optimizer: any Optax transform.
      seed: of the parameters.
      average: whether a running average is kept.
      table_dtype: of embedding tables; their optimiser slots are float32 in any case.
      trained: paths of the parameters that are trained, and have optimiser slots; None means all.
      mesh, layout: where everything goes; see `jaxrec.training.planning`.
    """
    init = _initializer(model, optimizer, average, table_dtype, trained, mesh, layout)
    key = stream(root(seed), Stream.INITIAL)
    if mesh is None:
        return jax.jit(init)(key)
    born = shardings(jax.eval_shape(init, key), mesh, layout)
    return jax.jit(init, out_shardings=born)(key)


def abstract_state(
    model: Functional,
    optimizer: optax.GradientTransformation,
    *,
    average: bool = False,
    table_dtype: str = "float32",
    trained: Collection[str] | None = None,
    mesh: Mesh | None = None,
    layout: Layout = Layout(),  # noqa: B008 - a frozen value
) -> TrainState:
    """Returns shapes and dtypes of `init_state`, on a mesh with shardings; allocates nothing."""
    init = _initializer(model, optimizer, average, table_dtype, trained, mesh, layout)
    shapes = jax.eval_shape(init, root(0))
    if mesh is None:
        return shapes
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        shardings(shapes, mesh, layout),
    )


def _initializer(
    model: Functional,
    optimizer: optax.GradientTransformation,
    average: bool,
    table_dtype: str,
    trained: Collection[str] | None,
    mesh: Mesh | None,
    layout: Layout,
) -> Callable[[jax.Array], TrainState]:
    parts = mesh.shape[layout.table_axis] if mesh is not None and layout.table_axis else 1

    def place(path: Any, leaf: jax.Array) -> jax.Array:
        name = table_of(path)
        if name is None:
            return leaf
        missing = -leaf.shape[0] % parts if layout.placement(name) == "row" else 0
        return jnp.pad(leaf, ((0, missing), (0, 0))).astype(table_dtype)

    def init(key: jax.Array) -> TrainState:
        params = jax.tree_util.tree_map_with_path(place, model.init(key))
        moving, _ = divide(params, trained)
        copy = jax.tree.map(_copy, moving) if average else {}
        return TrainState(
            step=jnp.int32(0),
            params=params,
            optimizer=with_float32_slots(optimizer).init(moving),
            average=copy,
        )

    return init


def _copy(param: jax.Array) -> jax.Array:
    """Returns the start of a running average; bfloat16 could not move in small steps."""
    return param.astype(jnp.float32) if param.dtype == jnp.bfloat16 else jnp.copy(param)


def all_finite(params: Params) -> bool:
    """Returns whether no parameter is infinite or not a number."""
    leaves = jax.tree.leaves(params)
    on_host = [x for x in leaves if isinstance(x, np.ndarray)]
    rows = 2**20  # at a time, as the comparison makes arrays of its own
    if not all(np.isfinite(x[i : i + rows]).all() for x in on_host for i in range(0, len(x), rows)):
        return False
    on_device = [x for x in leaves if not isinstance(x, np.ndarray)]
    return not on_device or bool(_all_finite(on_device))


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]).all()
