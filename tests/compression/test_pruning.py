"""Smaller arrays: what is removed, what stays to the bit, and training from what is left."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.compression import (
    Quantized,
    magnitudes,
    prune,
    prune_and_train,
    prune_by_magnitude,
    start_from,
    taylor,
)
from jaxrec.data import SequenceData
from jaxrec.data.dataset import Dataset
from jaxrec.evaluation import EvaluationConfig
from jaxrec.functional import functional_of
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.models.axes import Axis
from jaxrec.objectives import FullSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.paths import flatten, nest
from jaxrec.sharding import Layout, MeshConfig
from jaxrec.training import Experiment, ExperimentConfig, TrainingConfig, init_state
from jaxrec.typing import Batch, Params, UserError

CONFIG = sasrec.Config(num_items=20, max_len=6, dim=12, num_blocks=2, num_heads=3, hidden=10)
CONFIGS = {
    "post_norm": dataclasses.replace(CONFIG, block="post_norm", positions="rotary"),
    "pre_norm": dataclasses.replace(CONFIG, tied=False, activation="relu"),
    "ligr": dataclasses.replace(CONFIG, block="ligr", temperature=0.1),
}
MF = matrix_factorization.Config(num_users=5, num_items=7, dim=6, global_mean=3.0)
BATCH = Batch(
    users=np.array([1, 5]),
    history=np.array([[0, 3, 7, 1, 9, 2], [5, 4, 4, 20, 2, 1]], np.int32),
)


def params_of(config: Any, seed: int = 0) -> Params:
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: p + random.normal(0, 0.3, p.shape).astype(np.float32),
        functional_of(config).init(jax.random.key(0)),
    )


def vectors(config: Any, params: Params) -> tuple[np.ndarray, np.ndarray]:
    model = functional_of(config)
    return (
        np.asarray(model.apply(params, BATCH, method="user_vectors")),
        np.asarray(model.apply(params, method="item_vectors")),
    )


def without(params: Params, axes: Any, name: str, units: list[int]) -> Params:
    """The parameters with every value of some units of an axis at zero."""
    flat = {path: np.array(leaf) for path, leaf in flatten(params).items()}
    for path, of_array in axes.items():
        for number, axis in enumerate(of_array):
            if axis is not None and axis.name == name:
                np.moveaxis(flat[path], number, 0)[np.isin(axis.units, units)] = 0
    return nest({path: jnp.asarray(leaf) for path, leaf in flat.items()})


@pytest.mark.parametrize("config", [*CONFIGS.values(), MF], ids=[*CONFIGS, "mf"])
def test_axes_are_those_of_the_arrays(config: Any) -> None:
    shapes = {path: leaf.shape for path, leaf in flatten(params_of(config)).items()}
    assert config.axes.keys() == shapes.keys()
    for path, of_array in config.axes.items():
        assert len(of_array) == len(shapes[path])
        for axis, size in zip(of_array, shapes[path], strict=True):
            assert axis is None or axis.units.shape == (size,), path
    named = {axis.name for of_array in config.axes.values() for axis in of_array if axis}
    assert named == {name for names in config.widths.values() for name in names}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("field", "count"), [("num_heads", 2), ("hidden", 7)])
def test_units_without_effect_go_without_a_change(kind: str, field: str, count: int) -> None:
    config = CONFIGS[kind]
    params = params_of(config)
    dead = [1] if field == "num_heads" else [0, 4, 9]
    for name in config.widths[field]:
        # What leads out of them is zero; what leads in need not be.
        out = "attention/project_out" if field == "num_heads" else "feed_forward/down"
        path = f"{name.rpartition('/')[0]}/{out}/kernel"
        axes = {path: (config.axes[path][0], None)}
        params = without(params, axes, name, dead)
    expected = vectors(config, params)
    scores = {
        name: np.where(np.isin(np.arange(getattr(config, field)), dead), 0.0, 1.0)
        for name in config.widths[field]
    }
    smaller, less = prune(params, config, {field: count}, scores)
    assert getattr(smaller, field) == count
    chex.assert_trees_all_equal_shapes(less, functional_of(smaller).init(jax.random.key(0)))
    for found, value in zip(vectors(smaller, less), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=2e-5, atol=2e-6)


def test_a_fused_kernel_loses_queries_keys_and_values_of_a_head_together() -> None:
    config = CONFIGS["post_norm"]
    params = params_of(config)
    scores = {f"blocks/{i}/heads": np.array(s) for i, s in enumerate([[3, 1, 2], [0, 2, 1]])}
    _, less = prune(params, config, {"num_heads": 2}, scores)
    for block, kept in (("0", [0, 2]), ("1", [1, 2])):
        before, after = (p["blocks"][block]["attention"] for p in (params, less))
        shaped = np.asarray(before["project_in"]["kernel"]).reshape(12, 3, 3, 4)
        expected = shaped[:, :, kept].reshape(12, 24)
        np.testing.assert_array_equal(after["project_in"]["kernel"], expected)
        out = np.asarray(before["project_out"]["kernel"]).reshape(3, 4, 12)[kept].reshape(8, 12)
        np.testing.assert_array_equal(after["project_out"]["kernel"], out)


def test_columns_that_are_zero_leave_a_factorisation_with_the_same_scores() -> None:
    params = without(params_of(MF), MF.axes, "dim", [0, 3, 4])
    users, items = vectors(MF, params)
    smaller, less = prune(params, MF, {"dim": 3})
    assert smaller.dim == 3 and less["items"]["table"].shape == (8, 4)
    few, fewer = vectors(smaller, less)
    np.testing.assert_allclose(few @ fewer.T, users @ items.T, rtol=1e-6)
    # The biases, in the last column, are there still.
    np.testing.assert_array_equal(less["items"]["table"][:, -1], params["items"]["table"][:, -1])


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_narrower_stream_keeps_the_space_that_the_rows_of_tables_lie_in(kind: str) -> None:
    config = CONFIGS[kind]
    params = params_of(config)
    random = np.random.default_rng(1)
    space = np.linalg.qr(random.normal(size=(12, 9)))[0]  # not along the axes
    for name in {"items", "outputs"} & params.keys():
        table = np.asarray(params[name]["table"]) @ space @ space.T
        params[name]["table"] = jnp.asarray(table, jnp.float32)
    smaller, less = prune(params, config, {"dim": 9})
    assert smaller.dim == 9 and smaller.head_dim == 4  # heads keep their width
    chex.assert_trees_all_equal_shapes(less, functional_of(smaller).init(jax.random.key(0)))
    before, after = (np.asarray(p["items"]["table"]) for p in (params, less))
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-5)

    def made(params: Params, table: np.ndarray) -> np.ndarray:
        return table @ np.asarray(params["blocks"]["1"]["feed_forward"]["up"]["kernel"])

    np.testing.assert_allclose(made(less, after), made(params, before), atol=1e-5)


def test_scales_of_norms_become_averages_and_biases_are_projected() -> None:
    config = CONFIGS["post_norm"]
    params = params_of(config)
    params["input_norm"]["scale"] = jnp.full(12, 1.5)
    params["input_norm"]["bias"] = params["items"]["table"][3]
    _, less = prune(params, config, {"dim": 5})
    np.testing.assert_allclose(less["input_norm"]["scale"], 1.5, rtol=1e-5)
    np.testing.assert_allclose(less["input_norm"]["bias"], less["items"]["table"][3], atol=1e-6)


def test_directions_are_those_that_unit_rows_have_most_of() -> None:
    # A long row lies along the third axis; more rows, short ones, along the first two.
    table = np.zeros((8, 7), np.float32)
    table[1:4, 0], table[4:6, 1], table[6, 2] = 0.1, 0.2, 100
    params = {name: {"table": jnp.asarray(table)} for name in ("users", "items")}
    _, less = prune(params, dataclasses.replace(MF, num_users=7), {"dim": 2})
    found = np.abs(np.asarray(less["items"]["table"]))
    np.testing.assert_allclose(found[1:4], [[0.1, 0, 0]] * 3, atol=1e-6)
    np.testing.assert_allclose(found[4:6], [[0, 0.2, 0]] * 2, atol=1e-6)
    np.testing.assert_allclose(found[6], 0, atol=1e-4)


def test_of_blocks_the_first_ones_stay() -> None:
    config = CONFIGS["pre_norm"]
    params = params_of(config)
    smaller, less = prune(params, config, {"num_blocks": 1})
    assert smaller.num_blocks == 1
    chex.assert_trees_all_equal(less["blocks"]["0"], params["blocks"]["0"])
    chex.assert_trees_all_equal_shapes(less, functional_of(smaller).init(jax.random.key(0)))


def test_magnitudes_are_sums_of_shares() -> None:
    units = Axis("hidden", np.array([0, 1, -1]))
    params = {"up": jnp.asarray([[1.0, 2, 9], [3, 0, 9]]), "down": jnp.asarray([[0.5, 0.5, 1]])}
    scores = magnitudes(params, {"up": (None, units), "down": (None, units)})
    np.testing.assert_allclose(scores["hidden"], [10 / 176 + 0.25 / 1.5, 4 / 176 + 0.25 / 1.5])
    assert not magnitudes(params_of(MF), MF.axes)  # directions are not chosen among


@pytest.fixture(scope="module")
def experiment(random_dataset: Callable[..., Dataset]) -> Experiment:
    dataset = random_dataset(0, num_users=40, num_items=20, mean_length=8)
    model = dataclasses.replace(CONFIG, num_blocks=1, dropout=0.0, attention_dropout=0.0)
    config = ExperimentConfig(
        data=SequenceData(max_len=6),
        model=model,
        objective=FullSoftmax(),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        training=TrainingConfig(steps=4, batch_size=8, average=0.5),
        evaluation=EvaluationConfig(ks=(5, 10), batch_size=16, bootstrap_samples=0),
    )
    return Experiment.of(config, dataset)


def test_first_order_estimates_are_what_the_loss_does(experiment: Experiment) -> None:
    params = params_of(experiment.config.model)
    scores = taylor(experiment, params, batches=1)
    config = experiment.config
    batch = config.data.batches(experiment.dataset, 8, 0).batch(0)

    def loss(params: Params) -> float:
        total, weight = config.objective.loss(experiment.model.bind(params), batch, None)
        return float(total / weight)

    axes, step = config.model.axes, 1e-2
    for name in ("blocks/0/heads", "blocks/0/hidden"):
        for unit in (0, 2):
            gone = without(params, axes, name, [unit])
            pair = [
                loss(jax.tree.map(lambda a, b, s=s: a + s * (b - a), params, gone))
                for s in (step, -step)
            ]
            slope = abs(pair[0] - pair[1]) / (2 * step)
            np.testing.assert_allclose(scores[name][unit], slope, rtol=0.05, atol=2e-4)


@pytest.mark.slow
def test_rounds_train_from_what_is_left_and_end_where_they_should(
    experiment: Experiment, tmp_path: Path
) -> None:
    params = params_of(experiment.config.model)
    small, less = prune_and_train(
        experiment, params, {"hidden": 5, "num_heads": 2}, tmp_path, rounds=2, quiet=True
    )
    assert (small.config.model.hidden, small.config.model.num_heads) == (5, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round_1", "round_2"]
    chex.assert_trees_all_equal_shapes(less, small.model.init(jax.random.key(0)))
    # Called again, everything is there already.
    again, same = prune_and_train(
        experiment, params, {"hidden": 5, "num_heads": 2}, tmp_path, rounds=2, quiet=True
    )
    assert again.config == small.config
    chex.assert_trees_all_equal(same, less)
    with pytest.raises(UserError, match="1 or more rounds; got 0"):
        prune_and_train(experiment, params, {"hidden": 5}, tmp_path, rounds=0)


def test_a_run_begins_with_copies_of_the_parameters_on_its_mesh(experiment: Experiment) -> None:
    params = params_of(experiment.config.model)
    mesh = MeshConfig(data=2, model=4).build()
    layout = Layout(axes=("data", "model"), table_axis="model", placements={"items": "row"})
    where: dict[str, Any] = {"mesh": mesh, "layout": layout}
    optimizer = OptimizerConfig().build(1)
    born = init_state(experiment.model, optimizer, 0, average=True, **where)
    begun = start_from(params)(born)
    chex.assert_trees_all_equal_shapes_and_dtypes(begun, born)
    assert jax.tree.map(lambda x: x.sharding, begun) == jax.tree.map(lambda x: x.sharding, born)
    for tree in (begun.params, begun.average):
        np.testing.assert_array_equal(tree["items"]["table"][:21], params["items"]["table"])
        np.testing.assert_array_equal(tree["items"]["table"][21:], 0)
        chex.assert_trees_all_equal(tree["blocks"], params["blocks"])
    here = start_from(params)(init_state(experiment.model, optimizer, 0))
    jax.tree.map(lambda x: x.delete(), here.params)
    assert np.isfinite(params["items"]["table"]).all()


def test_magnitude_pruning_zeroes_the_smallest_of_each_array() -> None:
    params = {
        "items": {"table": jnp.asarray([[3.0, -1.0], [0.5, 2.0]])},
        "norm": {"scale": jnp.asarray([0.1, 0.2])},
        "layer": {"kernel": jnp.asarray([[1.0, -1.0, 4.0]])},
    }
    pruned = prune_by_magnitude(params, 0.5)
    np.testing.assert_array_equal(pruned["items"]["table"], [[3.0, 0.0], [0.0, 2.0]])
    np.testing.assert_array_equal(pruned["norm"]["scale"], params["norm"]["scale"])
    np.testing.assert_array_equal(pruned["layer"]["kernel"], [[0.0, -1.0, 4.0]])
    chex.assert_trees_all_equal(prune_by_magnitude(params, 0.0), params)
    with pytest.raises(UserError, match=r"sparsity is in \[0, 1\); got 1"):
        prune_by_magnitude(params, 1)


def test_what_cannot_be_kept_is_said() -> None:
    params = params_of(MF)
    for count in (0, 7, -1):
        with pytest.raises(UserError, match=f"dim={count} cannot be kept of 6: keep 1 to 6"):
            prune(params, MF, {"dim": count})
    with pytest.raises(UserError, match="'hidden' is no width of jaxrec.models.matrix_fact.*dim"):
        prune(params, MF, {"hidden": 3})
    with pytest.raises(UserError, match="Quantized does not say what its axes count"):
        prune(params, Quantized(model=MF), {"dim": 3})
