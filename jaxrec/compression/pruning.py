"""Pruning: structured, which makes arrays smaller, and by magnitude, which fills them with zeros.

A model config says what the axes of its parameters count (`jaxrec.models.axes`). Pruning chooses
which units of an axis stay and slices every array that has the axis; where an axis has directions,
it takes the principal ones of the tables and projects every array on them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.dataset import Dataset
from jaxrec.models.axes import Axes, Axis
from jaxrec.ops.keys import Stream, nth, root, stream
from jaxrec.paths import flatten, nest
from jaxrec.training import Experiment, ExperimentConfig, TrainState, load_trained, train
from jaxrec.typing import Params, UserError

type Scores = dict[str, np.ndarray]  # by name of an axis, (units,) how much each matters


def magnitudes(params: Params, axes: Axes) -> Scores:
    """Returns how large each unit is: its share of the squares of an array, over all arrays.

    By shares, a large array such as a table does not drown the others. Axes of directions have no
    units to choose from, and no scores.
    """
    leaves = flatten(params)

    def squares(path: str) -> np.ndarray:
        values = np.square(np.asarray(leaves[path], np.float32))
        return values / max(float(values.sum(dtype=np.float64)), 1e-30)

    return _by_unit(squares, axes)


def taylor(experiment: Experiment, params: Params, *, batches: int = 16) -> Scores:
    """Returns the first-order estimate of how the loss would change if a unit were zero.

    That is |sum of parameter x gradient| over all arrays that have the unit (arXiv 1611.06440), a
    mean over the experiment's first batches, without dropout.
    """
    leaves, axes = flatten(params), experiment.config.model.axes
    total: Scores = {}
    for gradients in _gradients(experiment, params, batches):
        slopes = flatten(gradients)

        def products(path: str, slopes: dict[str, Any] = slopes) -> np.ndarray:
            return np.asarray(leaves[path], np.float32) * np.asarray(slopes[path], np.float32)

        for name, values in _by_unit(products, axes).items():
            total[name] = total.get(name, np.zeros(len(values))) + np.abs(values) / batches
    return total


def _by_unit(values_of: Callable[[str], np.ndarray], axes: Axes) -> Scores:
    """Returns the sums of values of arrays by the units of each axis."""
    found: Scores = {}
    for path, of_array in axes.items():
        if not any(axis is not None and axis.kind == "units" for axis in of_array):
            continue  # such as a table
        values = values_of(path)
        for number, axis in enumerate(of_array):
            if axis is not None and axis.kind == "units":
                others = tuple(i for i in range(values.ndim) if i != number)
                sums, where = values.sum(others, dtype=np.float64), axis.units >= 0
                mine = np.bincount(axis.units[where], weights=sums[where])
                found[axis.name] = found.get(axis.name, np.zeros(len(mine))) + mine
    return found


def prune(
    params: Params,
    config: Any,
    counts: Mapping[str, int],
    scores: Scores | None = None,
) -> tuple[Any, Params]:
    """Returns a narrower config and its parameters, slices and projections of those that came.

    A unit that has no effect, such as a hidden unit or head whose outgoing weights are zero, is
    removed without a change of any output. A width of directions, such as `dim`, goes down to the
    principal directions of the rows of the tables, each row counted as of length 1; this is exact
    for a matrix factorisation whose rows lie in so few directions, up to rounding. A transformer's
    residual stream has norms, which take means over its coordinates, so there it is never exact
    (SliceGPT, arXiv 2401.15024, makes it so for norms without means and scales); train afterwards.
    Of blocks the first ones stay.

    Args:
      params: of `config`.
      config: a model config with `widths` and `axes`; see `jaxrec.models.axes.Narrowable`.
      counts: by field of the config, how many units stay, such as {"hidden": 128}.
      scores: how much units matter, as `taylor` says; `magnitudes` by default.

    Raises:
      UserError: for a config that has no such widths, a field that is none of them, or a count that
        is 0 or above the present one.
    """
    widths = widths_of(config)
    for field, count in counts.items():
        if field not in widths:
            raise UserError(
                f"{field!r} is no width of {type(config).__module__}; prune {', '.join(widths)}."
            )
        there = getattr(config, field)
        if not 1 <= count <= there:
            raise UserError(f"{field}={count} cannot be kept of {there}: keep 1 to {there}.")
    axes = config.axes
    scores = magnitudes(params, axes) if scores is None else scores
    narrower = config.narrowed(**counts)
    leaves = {path: leaf for path, leaf in flatten(params).items() if path in narrower.axes}
    for field, count in counts.items():
        for name in widths[field]:
            if name in scores:
                # Of equals the first stay; in their order, so that positions of fused kernels keep
                # theirs.
                kept = np.sort(np.argsort(-scores[name], kind="stable")[:count])
                _slice(leaves, axes, name, kept)
            elif count < getattr(config, field):
                _project(leaves, axes, name, count)
    return narrower, nest(leaves)


def widths_of(config: Any) -> dict[str, tuple[str, ...]]:
    """Returns `config.widths`; UserError for a config that has none."""
    if not hasattr(config, "widths"):
        raise UserError(
            f"{type(config).__module__}.{type(config).__name__} does not say what its axes count, "
            "so it cannot be pruned. Prune the model before it is changed in another way."
        )
    return config.widths


def _arrays(leaves: Params, axes: Axes, name: str) -> Iterator[tuple[str, int, Axis]]:
    """Gives path, number and axis of each array that has an axis of this name."""
    for path in leaves:
        for number, axis in enumerate(axes[path]):
            if axis is not None and axis.name == name:
                yield path, number, axis


def _slice(leaves: Params, axes: Axes, name: str, kept: np.ndarray) -> None:
    for path, number, axis in _arrays(leaves, axes, name):
        stays = np.flatnonzero(np.isin(axis.units, [*kept, -1]))
        leaves[path] = jnp.take(jnp.asarray(leaves[path]), stays, axis=number)


def _project(leaves: Params, axes: Axes, name: str, count: int) -> None:
    basis = _principal(leaves, axes, name)[:, :count]
    for path, number, axis in _arrays(leaves, axes, name):
        array = np.moveaxis(np.asarray(leaves[path], np.float32), number, -1)
        mapping = np.square(basis) if axis.kind == "scales" else basis
        found = array[..., : len(basis)] @ mapping.astype(np.float32)
        # What is not of the space, such as a bias in a table's last column, lies behind it.
        found = np.concatenate([found, array[..., len(basis) :]], axis=-1)
        leaves[path] = jnp.asarray(np.moveaxis(found, -1, number), leaves[path].dtype)


def _principal(leaves: Params, axes: Axes, name: str) -> np.ndarray:
    """Returns (D, D): an orthonormal basis in its columns, the tables' principal directions first.

    Rows of a table count as of length 1: a scorer by cosine does not ask how long they are, and
    elsewhere long ones would decide alone.
    """
    total: Any = 0.0
    for path, number, axis in _arrays(leaves, axes, name):
        if number == 1 and path.endswith("/table"):
            rows = np.asarray(leaves[path], np.float32)[:, axis.units >= 0]
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            unit = rows / np.where(lengths > 0, lengths, 1)
            total = total + (unit.T @ unit).astype(np.float64)
    basis: np.ndarray = np.linalg.eigh(total)[1][:, ::-1]
    return basis


def _gradients(experiment: Experiment, params: Params, batches: int) -> Iterator[Params]:
    """Gives the gradient of the loss, without dropout, on each of the first batches."""
    config, model = experiment.config, experiment.model
    objective, seed = config.objective, config.training.seed
    shown = config.data.batches(experiment.dataset, config.training.batch_size, seed)
    statistics = objective.statistics(experiment.dataset)

    @jax.jit
    def gradient(params: Params, batch: Any, statistics: Any, key: jax.Array) -> Params:
        drawn = objective.draw(batch, statistics, key)

        def loss(params: Params) -> jax.Array:
            total, weight = objective.loss(model.bind(params), drawn, None)
            return total / jnp.maximum(weight, 1)

        return jax.grad(loss)(params)

    for step in range(batches):
        key = nth(stream(root(seed), Stream.PRUNING), step)
        yield gradient(params, shown.batch(step), statistics, key)


def start_from(params: Params) -> Callable[[TrainState], TrainState]:
    """Returns what `jaxrec.training.train` takes as `start` to begin with these parameters."""

    def place(new: Any, like: Any) -> Any:
        if isinstance(like, np.ndarray):
            return np.array(new, like.dtype)
        missing = like.shape[0] - new.shape[0] if like.ndim else 0  # rows that make parts equal
        padded = jnp.pad(jnp.asarray(new), [(0, missing)] + [(0, 0)] * (like.ndim - 1))
        return jax.device_put(padded.astype(like.dtype), like.sharding)

    def start(state: TrainState) -> TrainState:
        # Copies: a step gives the memory of its state away.
        begun = jax.tree.map(lambda new, like: place(jnp.copy(new), like), params, state.params)
        averages = flatten(state.average)
        average = {p: place(jnp.copy(flatten(params)[p]), like) for p, like in averages.items()}
        return dataclasses.replace(state, params=begun, average=nest(average))

    return start


def prune_and_train(
    experiment: Experiment,
    params: Params,
    counts: Mapping[str, int],
    workdir: str | Path,
    *,
    rounds: int = 1,
    by_loss: bool = False,
    quiet: bool = False,
) -> tuple[Experiment, Params]:
    """Prunes in several rounds, each followed by a training from what is left.

    Widths go down by the same factor in each round. A call that was cut off goes on in the round
    and at the step that it had reached.

    Args:
      experiment: what the parameters belong to; its training config says how long each round
        trains.
      params: to begin with.
      counts: by field of the model config, how many units stay at the end.
      workdir: gets the workdir of a run for each round, round_1 and so on.
      rounds: how many, from 1.
      by_loss: choose units by `taylor` and not by `magnitudes`.
      quiet: no progress on stderr.

    Returns:
      The experiment of the narrower model and its parameters, the best of the last round.

    Raises:
      UserError: as `prune` and `train`, and for no rounds.
    """
    if rounds < 1:
        raise UserError(f"prune in 1 or more rounds; got {rounds}.")
    whole = experiment.config.model
    widths_of(whole)
    for number in range(1, rounds + 1):
        now = {
            field: max(count, round(_between(getattr(whole, field, count), count, number / rounds)))
            for field, count in counts.items()
        }
        scores = taylor(experiment, params) if by_loss else None
        model, params = prune(params, experiment.config.model, now, scores)
        config: ExperimentConfig = dataclasses.replace(experiment.config, model=model)
        directory = Path(workdir) / f"round_{number}"
        dataset: Dataset = experiment.dataset
        train(config, dataset, directory, start=start_from(params), quiet=quiet)
        experiment, params, _ = load_trained(directory, dataset)
    return experiment, params


def _between(first: float, last: float, share: float) -> float:
    return first * (last / first) ** share


def prune_by_magnitude(params: Params, sparsity: float) -> Params:
    """Returns the parameters with the smallest values of each table and kernel set to zero.

    Arrays stay as large as they were; this is for comparison with `prune`.

    Args:
      params: of any model.
      sparsity: share of the values of an array that become zero, in [0, 1).

    Raises:
      UserError: for another sparsity.
    """
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity is in [0, 1); got {sparsity}.")

    def masked(path: str, leaf: Any) -> Any:
        if path.rpartition("/")[2] not in ("table", "kernel"):
            return leaf
        values = np.asarray(leaf)
        order = np.argsort(np.abs(values), axis=None, kind="stable")
        flat = values.reshape(-1).copy()
        flat[order[: int(sparsity * values.size)]] = 0
        return jnp.asarray(flat.reshape(values.shape))

    return nest({path: masked(path, leaf) for path, leaf in flatten(params).items()})
