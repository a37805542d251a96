"""The training step: one function of (state, batch), for any model, objective and set of devices.

The step is written for one device that knows the names of the axes around it. The same function
runs alone, under `jax.shard_map` (with check_vma=False) and under `jax.pmap`.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxrec.functional import Functional
from jaxrec.objectives import ALONE, Objective, Replica
from jaxrec.ops.keys import RowKey, Stream, nth, root, stream
from jaxrec.optim import (
    Touched,
    apply_updates,
    put_touched,
    table_of,
    take_touched,
    with_float32_slots,
)
from jaxrec.paths import divide, unite
from jaxrec.sharding import AXIS_RULES, Layout
from jaxrec.training.lookups import Reads, find_reads
from jaxrec.training.state import Step, StepMetrics, TrainState
from jaxrec.training.tables import (
    TableUse,
    Wanted,
    blocks_at_hand,
    fair_share,
    fetch_rows,
    find_rows,
    is_dense,
    overflow,
    rows_at_hand,
    sum_gradients,
    tables_of,
    touched_rows,
    wanted_rows,
)
from jaxrec.typing import Batch, Params


def make_step(
    model: Functional,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    average: float = 0.0,
    capacity: int = 0,
    trained: Collection[str] | None = None,
    mesh: Mesh | None = None,
    layout: Layout = Layout(),  # noqa: B008 - a frozen value
) -> Step:
    """Returns `step(state, batch, statistics) -> (state, metrics)`, jitted; state is donated.

    With a mesh, the state is that of `init_state` on this mesh, and the batch's rows are split over
    all its devices. The result does not depend on the mesh, but for the in-batch softmax with
    `accumulate`, a part of which is the first rows of every device. The other arguments are those
    of `make_replica_step`.
    """
    replica = make_replica_step(
        model,
        objective,
        optimizer,
        seed=seed,
        accumulate=accumulate,
        average=average,
        capacity=capacity,
        trained=trained,
        layout=layout,
    )
    if mesh is None or mesh.size == 1:
        return jax.jit(replica, donate_argnums=0)

    def step(state: TrainState, batch: Batch, statistics: Any) -> tuple[TrainState, StepMetrics]:
        specs = layout.specs(state)
        sharded = jax.shard_map(
            replica,
            mesh=mesh,
            in_specs=(specs, PartitionSpec(*AXIS_RULES["batch"]), PartitionSpec()),
            out_specs=(specs, PartitionSpec()),
            check_vma=False,  # sums over devices are written out, as under pmap
        )
        return sharded(state, batch, statistics)

    return jax.jit(step, donate_argnums=0)


def make_replica_step(
    model: Functional,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    average: float = 0.0,
    capacity: int = 0,
    trained: Collection[str] | None = None,
    layout: Layout = Layout(),  # noqa: B008 - a frozen value
) -> Step:
    """Returns the step as one device runs it: a plain function to jit, shard_map or pmap.

    Where the objective names its items and a batch cannot touch every row of a table, the step
    works on the touched rows alone: see `jaxrec.optim.touched`. Otherwise the slice would be the
    table itself and the step is the dense one. Tables that are split over devices are read and
    written through one exchange: see `jaxrec.training.tables`.

    Args:
      model: the model as pure functions.
      objective: what is minimised.
      optimizer: any Optax transform that works row by row; one that wants the norm of all gradients
        takes it as the extra argument `global_norm`.
      seed: of what the steps draw; see `jaxrec.ops.keys`.
      accumulate: parts that a batch is computed in. The result is that of the whole batch, but for
        the in-batch softmax, whose negatives are those of a part.
      average: decay of the running average of the parameters; 0 keeps none.
      capacity: distinct rows of a table that a device's rows of a batch may touch; 0 allows for all
        of their ids.
      trained: paths of the parameters that are trained, as `init_state` got them. The others have
        neither gradients nor optimiser slots.
      layout: the axes that the step runs under. Each device gets its own rows of the batch, and its
        blocks of tables where they are split.
    """
    draw = make_draw(objective, seed=seed, accumulate=accumulate, layout=layout)
    update = make_update(
        model,
        objective,
        optimizer,
        accumulate=accumulate,
        average=average,
        trained=trained,
        layout=layout,
    )
    tables = tables_of(model)

    def step(state: TrainState, batch: Batch, statistics: Any) -> tuple[TrainState, StepMetrics]:
        drawn = draw(state.step, batch, statistics)
        reads = reads_of(model, objective, state.params, drawn, layout)
        whole = objective.whole_catalogue
        wanted = wanted_rows(
            drawn.parts, state.params, tables, reads, layout, capacity, whole=whole
        )
        slow = _uneven(wanted, layout)
        if slow is None:
            new_state, loss, weight = update(state, drawn, wanted)
            slow = jnp.bool_(False)
        else:
            fast, safe = (
                functools.partial(update, drawn=drawn, wanted=wanted, shares=shares)
                for shares in (True, False)
            )
            new_state, loss, weight = lax.cond(slow, safe, fast, state)
        over = overflow(wanted)
        if layout.axes:
            over = lax.pmax(over, layout.axes)
        return new_state, StepMetrics(loss=loss, examples=weight, overflow=over, slow=slow)

    return step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A batch in parts, with everything that is random about a step.

    Attributes:
      parts: the batch, each field with a leading axis of parts, negatives and the like filled in.
      keys: for the loss of each part.
      rounding: the key of stochastic rounding.
    """

    parts: Batch
    keys: RowKey
    rounding: jax.Array


def make_draw(
    objective: Objective, *, seed: int, accumulate: int, layout: Layout
) -> Callable[[jax.Array, Batch, Any], Drawn]:
    """Returns `draw(step, batch, statistics)`, the half of a step that knows no parameters."""

    def draw(step: jax.Array, batch: Batch, statistics: Any) -> Drawn:
        key = nth(stream(root(seed), Stream.STEP), step)
        rows = len(jax.tree.leaves(batch)[0])
        size = rows // accumulate
        begin = lax.axis_index(layout.axes) * rows if layout.axes else jnp.int32(0)
        first = begin + jnp.arange(accumulate, dtype=jnp.int32) * size
        draw_keys, loss_keys = (
            RowKey(jnp.broadcast_to(stream(key, use), (accumulate,)), first)
            for use in (Stream.DRAW, Stream.LOSS)
        )
        parts = jax.tree.map(lambda x: x.reshape(accumulate, size, *x.shape[1:]), batch)
        parts = jax.vmap(objective.draw, in_axes=(0, None, 0))(parts, statistics, draw_keys)
        return Drawn(parts=parts, keys=loss_keys, rounding=stream(key, Stream.ROUNDING))

    return draw


def make_update(
    model: Functional,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int,
    average: float,
    trained: Collection[str] | None,
    layout: Layout,
) -> Callable[..., tuple[TrainState, jax.Array, jax.Array]]:
    """Returns `update(state, drawn, wanted, *, shares=True, slices={})`, the other half.

    It returns the new state, the loss and the sum of weights. `wanted` is what `wanted_rows` says;
    tables that are not in it are used as they are. `shares` is that of `find_rows`. `slices` says
    of which tables the state holds some rows alone, and which.
    """
    update_with_norm = with_float32_slots(optimizer).update
    bound_loss = _bound_loss(model, objective, layout)
    has_split_catalogue = (
        objective.whole_catalogue and _replica(tables_of(model), layout).catalogue_axis is not None
    )
    split = _split_tables(layout)

    def update(
        state: TrainState,
        drawn: Drawn,
        wanted: dict[str, Wanted],
        *,
        shares: bool = True,
        slices: Mapping[str, Touched] = types.MappingProxyType({}),
    ) -> tuple[TrainState, jax.Array, jax.Array]:
        lookups = find_rows(wanted, state.params, layout, shares=shares)
        touched = touched_rows(lookups)
        at_hand = {name: found.number for name, found in lookups.items()} | dict(slices)
        params, fixed = divide(take_touched(state.params, touched), trained)
        slots = take_touched(state.optimizer, touched)

        def fetch(params: Params) -> tuple[Params, Params]:
            return divide(fetch_rows(unite(params, fixed), lookups, layout), trained)

        rows, send_back, fixed_rows = jax.vjp(fetch, params, has_aux=True)

        def total_loss(arguments: Any, part: Batch, key: RowKey) -> tuple[jax.Array, jax.Array]:
            here = rows_at_hand(unite(arguments[0], fixed_rows), at_hand, split)
            blocks = unite(arguments[1], fixed) if len(arguments) > 1 else None
            return bound_loss(here, blocks, part, key)

        arguments = (rows, params) if has_split_catalogue else (rows,)
        sums, gradients = _gradients(total_loss, arguments, (drawn.parts, drawn.keys), accumulate)
        (grads,) = send_back(gradients[0])
        if has_split_catalogue:
            grads = jax.tree.map(jnp.add, grads, gradients[1])
        grads = sum_gradients(grads, layout)
        total, weight = lax.psum(sums, layout.axes) if layout.axes else sums
        scale = 1 / jnp.where(weight > 0, weight, 1)
        # In float32 from here on: a gradient of bfloat16 that is scaled is rounded once more.
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) * scale, grads)
        grads = _without_padding(grads, layout)
        norm = global_norm(grads, layout)
        updates, slots = update_with_norm(grads, slots, params, global_norm=norm)
        rounded = _rounded(params, updates, drawn.rounding, layout)
        before, fixed = divide(state.params, trained)
        params = put_touched(before, rounded, touched)
        new_state = TrainState(
            step=state.step + 1,
            params=unite(params, fixed),
            optimizer=put_touched(state.optimizer, slots, touched),
            average=_averaged(state, params, average),
        )
        return new_state, total * scale, weight

    return update


def reads_of(
    model: Functional, objective: Objective, params: Params, drawn: Drawn, layout: Layout
) -> dict[str, Reads]:
    """Returns what the objective's loss reads of each table of the model, by tracing it."""
    bound_loss = _bound_loss(model, objective, layout)

    def loss(noting: Params, part: Batch, key: RowKey) -> Any:
        return bound_loss(noting, params, part, key)

    # Of the whole tables: those at hand may be blocks of them.
    return find_reads(loss, model.shapes, drawn.parts, drawn.keys)


def step_kinds(
    model: Functional,
    objective: Objective,
    batches: Any,
    statistics: Any,
    *,
    capacity: int,
    accumulate: int,
) -> dict[str, str]:
    """Returns how a step updates each table: "dense", "touched rows", or either, by the batch.

    Nothing is computed. What is dense does not depend on the devices.

    Args:
      batches: training batches; those of several widths have `widths`.
      statistics: of the objective.
    """
    draw = make_draw(objective, seed=0, accumulate=accumulate, layout=Layout())
    drawn = jax.eval_shape(draw, jnp.int32(0), batches.batch(0), statistics)
    uses, found = tables_of(model), {}
    for name, reads in reads_of(model, objective, model.shapes, drawn, Layout()).items():
        kinds = set()
        for parts in _of_each_width(drawn.parts, getattr(batches, "widths", ())):
            dense = is_dense(
                parts,
                uses.get(name),
                reads,
                Layout(),
                capacity,
                whole=bool(objective.whole_catalogue),
            )
            kinds.add("dense" if dense else "touched rows")
        found[name] = " or ".join(sorted(kinds))
    return found


def _of_each_width(parts: Batch, widths: Sequence[int]) -> Iterator[Batch]:
    """Gives the shapes of a batch with histories of each of these widths."""
    for width in widths or (None,):
        if width is None or parts.history is None:
            yield parts
        else:
            shape = (*parts.history.shape[:-1], width)
            yield parts.replace(history=jax.ShapeDtypeStruct(shape, parts.history.dtype))


def _bound_loss(
    model: Functional, objective: Objective, layout: Layout
) -> Callable[[Params, Params | None, Batch, RowKey], tuple[jax.Array, jax.Array]]:
    """Returns the loss as a function of parameters, blocks of a split catalogue, batch and key."""
    replica = _replica(tables_of(model), layout) if objective.whole_catalogue else ALONE
    split = _split_tables(layout)

    def loss(
        params: Params, blocks: Params | None, part: Batch, key: RowKey
    ) -> tuple[jax.Array, jax.Array]:
        # What is random about parameters is the same for all rows of the batch.
        bound = model.bind(params, stream(key.key, Stream.PARAMETERS))
        catalogue = None
        if replica.catalogue_axis is not None and blocks is not None:
            catalogue = model.bind(blocks_at_hand(blocks, split), None)
        where = dataclasses.replace(replica, axes=layout.axes, catalogue=catalogue)
        return objective.loss(bound, part, key, where)

    return loss


def _split_tables(layout: Layout) -> frozenset[str]:
    return frozenset(
        name for name in layout.placements if layout.placement(name) in ("row", "column")
    )


def _without_padding(grads: Params, layout: Layout) -> Params:
    """Returns gradients with 0 for row 0 of every table, which is padding and stays 0.

    It comes first in a table, among touched rows, and in the first block of a table split by rows.
    """

    def clear(path: Any, gradient: jax.Array) -> jax.Array:
        name = table_of(path)
        if name is None:
            return gradient
        if layout.placement(name) != "row":
            return gradient.at[0].set(0)
        mine = lax.axis_index(layout.table_axis or "") == 0
        return gradient.at[0].multiply(jnp.where(mine, 0, 1).astype(gradient.dtype))

    return jax.tree_util.tree_map_with_path(clear, grads)


def _rounded(params: Params, updates: Params, key: jax.Array, layout: Layout) -> Params:
    """Returns params + updates, rounded in the same way on all devices that hold the same."""
    split = [name for name in params if name in _split_tables(layout)]
    whole = [name for name in params if name not in split]
    keys = {"whole": stream(key, Stream.WHOLE)}
    if split:
        device = lax.axis_index(layout.table_axis or "")
        keys["split"] = nth(stream(key, Stream.BLOCK), device)
    new: Params = {}
    for names, part in ((whole, "whole"), (split, "split")):
        if names:
            mine, change = ({n: tree[n] for n in names} for tree in (params, updates))
            new |= apply_updates(mine, change, keys[part])
    return new


def global_norm(gradients: Any, layout: Layout) -> jax.Array:
    """Returns () float32: the norm of all gradients, those that other devices hold included."""

    def squares(path: Any, gradient: jax.Array) -> jax.Array:
        square = jnp.sum(jnp.square(gradient.astype(jnp.float32)))
        if layout.placement(table_of(path)) == "replicated":
            return square
        return lax.psum(square, layout.table_axis)

    leaves = jax.tree.leaves(jax.tree_util.tree_map_with_path(squares, gradients))
    return jnp.sqrt(sum(leaves, start=jnp.float32(0)))


def _replica(tables: Mapping[str, TableUse], layout: Layout) -> Replica:
    """Returns what a loss over the whole catalogue must know of a catalogue that may be split."""
    rows = {name: use.num_rows for name, use in tables.items() if use.is_catalogue}
    placements = {layout.placement(name) for name in rows}
    if placements <= {"replicated"}:
        return ALONE
    assert placements == {"row"}, "the planner splits a whole catalogue by rows or not at all"
    return Replica(catalogue_axis=layout.table_axis, num_rows=next(iter(rows.values())))


def _uneven(wanted: dict[str, Wanted], layout: Layout) -> jax.Array | None:
    """Returns whether some owner is asked for more than a fair share; None when none can be."""
    checks = []
    for name, want in wanted.items():
        size = len(want.rows.rows)
        share = fair_share(size, layout)
        if layout.placement(name) == "row" and share < size:
            checks.append(want.most > share)
    if not checks:
        return None
    return lax.psum(jnp.stack(checks).any().astype(jnp.int32), layout.axes) > 0


def _gradients(
    loss: Callable[..., tuple[jax.Array, jax.Array]], arguments: Any, parts: Any, accumulate: int
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """Returns the sums over the parts of losses and weights, and the gradient of the former."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        return gradient(arguments, *jax.tree.map(lambda x: x[0], parts))

    def add(carry: Any, part: Any) -> tuple[Any, None]:
        more = gradient(arguments, *part)
        return jax.tree.map(lambda total, x: total + x.astype(total.dtype), carry, more), None

    # In float32, as a sum in bfloat16 stands still once it is 256 times what comes.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), arguments)
    sums, totals = lax.scan(add, ((jnp.float32(0), jnp.float32(0)), zeros), parts)[0]
    return sums, jax.tree.map(lambda total, x: total.astype(x.dtype), totals, arguments)


def _averaged(state: TrainState, params: Params, average: float) -> Params:
    if not average:
        return state.average
    # Early on the average follows the parameters, as nothing older is worth keeping.
    done = state.step.astype(jnp.float32)
    keep = jnp.minimum(average, (done + 1) / (done + 10))

    def follow(average: jax.Array, param: jax.Array) -> jax.Array:
        return average + (1 - keep) * (param.astype(average.dtype) - average)

    return jax.tree.map(follow, state.average, params)
