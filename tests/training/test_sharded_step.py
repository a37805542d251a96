"""The step on several devices: however batches and tables are split, the numbers are the same."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data import Dataset, PairData, SequenceData
from jaxrec.functional import Functional, functional
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import BCE, BPR, FullSoftmax, InBatchSoftmax, SampledSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import Layout, MeshConfig, replicate, shard_batch
from jaxrec.training import (
    StepMetrics,
    TrainState,
    init_state,
    make_replica_step,
    make_step,
    step,
    tables,
)
from jaxrec.typing import Batch

SASREC = sasrec.Config(max_len=6, dim=8, num_blocks=1, num_heads=2, hidden=8, dropout=0.3)
SEQUENCES, PAIRS = SequenceData(max_len=6), PairData()
FACTORS = matrix_factorization.Config(dim=7, init_std=0.3)
ADAGRAD = OptimizerConfig(name="adagrad", learning_rate=0.02)
CLIPPED = OptimizerConfig(name="sgd", learning_rate=0.5, clip_norm=0.02)
MOMENTUM = OptimizerConfig(name="sgd", learning_rate=0.5, momentum=0.9)
ADAM = OptimizerConfig(name="adam", learning_rate=0.01)
PULLED = OptimizerConfig(name="sgd", learning_rate=0.5, l2_to_start=0.7)
AXES = ("data", "model")
BATCH = 16


@dataclasses.dataclass(frozen=True)
class Case:
    """One experiment on a dataset of 100 users and 600 items."""

    data: Any
    model: Any
    objective: Any
    optimizer: OptimizerConfig = ADAGRAD

    def parts(self, dataset: Dataset) -> tuple[Functional, Any]:
        return functional(self.model.fit(dataset.manifest).build), self.optimizer.build(100)

    def batches(self, dataset: Dataset, steps: int) -> list[Batch]:
        batches = self.data.batches(dataset, BATCH, 0)
        return [batches.batch(step) for step in range(steps)]


CASES = {
    "tied": Case(SEQUENCES, SASREC, BCE(num_negatives=2)),
    "untied": Case(
        SEQUENCES, dataclasses.replace(SASREC, tied=False), SampledSoftmax(num_negatives=9)
    ),
    "in_batch": Case(PAIRS, FACTORS, InBatchSoftmax()),
    "two_tables": Case(PAIRS, FACTORS, BPR(num_negatives=2, l2=0.01)),
    "clipped": Case(PAIRS, FACTORS, BPR(), CLIPPED),
    "adam": Case(PAIRS, FACTORS, BPR(), ADAM),
    "pulled": Case(PAIRS, FACTORS, BPR(), PULLED),
    "full": Case(SEQUENCES, SASREC, FullSoftmax()),
    "full_of_pairs": Case(PAIRS, FACTORS, FullSoftmax()),
    "smoothed": Case(PAIRS, FACTORS, FullSoftmax(label_smoothing=0.1)),
}


@pytest.fixture(scope="module")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    return random_dataset(0, num_users=300, num_items=602, mean_length=12)


def unpadded(tree: Any, like: Any) -> Any:
    """The tree without the rows that make the parts of a table equal."""
    return jax.tree.map(lambda x, y: np.asarray(x)[: len(y)] if y.ndim else x, tree, like)


def run(
    case: Case,
    dataset: Dataset,
    steps: int,
    mesh: MeshConfig,
    *,
    placements: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[TrainState, list[StepMetrics]]:
    """Trains on a mesh, with tables split as it says, or as the placements say."""
    model, optimizer = case.parts(dataset)
    devices = mesh.build()
    split: Any = placements or dict.fromkeys(("items", "users", "outputs"), mesh.tables)
    layout = Layout(axes=AXES, table_axis="model", placements=split, slack=mesh.slack)
    if devices.size == 1:
        layout = Layout()
    state = init_state(model, optimizer, 0, mesh=devices, layout=layout)
    step = make_step(
        model, case.objective, optimizer, seed=0, mesh=devices, layout=layout, **options
    )
    statistics = replicate(case.objective.statistics(dataset), devices)
    told = []
    for batch in case.batches(dataset, steps):
        state, metrics = step(state, shard_batch(batch, devices), statistics)
        told.append(jax.device_get(metrics))
    return jax.device_get(state), told


@pytest.fixture(scope="module")
def alone(dataset: Dataset) -> Callable[..., tuple[TrainState, list[StepMetrics]]]:
    """What one device gives; kept."""
    kept: dict[tuple[str, int], Any] = {}

    def get(name: str, steps: int) -> tuple[TrainState, list[StepMetrics]]:
        if (name, steps) not in kept:
            mesh = MeshConfig(tables="replicated")
            kept[name, steps] = run(CASES[name], dataset, steps, mesh)
        return kept[name, steps]

    return get


def check_equal(
    found: tuple[TrainState, list[StepMetrics]], wanted: tuple[TrainState, list[StepMetrics]]
) -> None:
    state, reference = found[0], wanted[0]
    chex.assert_trees_all_close(
        unpadded(state, reference), jax.device_get(reference), rtol=1e-5, atol=1e-5
    )
    for metrics, other in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(metrics.loss, other.loss, rtol=1e-5)
        assert metrics.examples == other.examples
        assert metrics.overflow == 0


@pytest.mark.grid
@pytest.mark.parametrize(
    "split", [pytest.param("replicated", marks=pytest.mark.slow), "row", "column"]
)
def test_a_mesh_of_two_by_four_gives_what_one_device_gives(
    split: Any, dataset: Dataset, alone: Any
) -> None:
    mesh = MeshConfig(data=2, model=4, tables=split)
    check_equal(run(CASES["tied"], dataset, 20, mesh), alone("tied", 20))


@pytest.mark.grid(quick=2)
@pytest.mark.parametrize(
    ("name", "data", "model", "split"),
    [
        ("untied", 1, 8, "row"),
        ("in_batch", 2, 4, "row"),
        ("two_tables", 1, 8, "row"),
        ("clipped", 1, 8, "column"),
        ("adam", 2, 4, "row"),
        ("pulled", 2, 4, "row"),
        ("full", 2, 4, "row"),
        ("smoothed", 1, 8, "row"),
    ],
)
def test_every_way_to_split_gives_what_one_device_gives(
    name: str, data: int, model: int, split: Any, dataset: Dataset, alone: Any
) -> None:
    mesh = MeshConfig(data=data, model=model, tables=split)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes float and int
        check_equal(run(CASES[name], dataset, 3, mesh), alone(name, 3))


@pytest.mark.grid
@pytest.mark.parametrize(
    ("users", "items"), [("row", "replicated"), ("column", "replicated"), ("replicated", "row")]
)
def test_a_whole_catalogue_is_read_where_it_is_wherever_other_tables_are(
    users: Any, items: Any, dataset: Dataset, alone: Any
) -> None:
    mesh, where = MeshConfig(data=2, model=4), {"users": users, "items": items}
    found = run(CASES["full_of_pairs"], dataset, 3, mesh, placements=where)
    check_equal(found, alone("full_of_pairs", 3))


def test_pmap_and_shard_map_and_one_device_agree(dataset: Dataset, alone: Any) -> None:
    case = CASES["tied"]
    model, optimizer = case.parts(dataset)
    step = make_replica_step(
        model, case.objective, optimizer, seed=0, layout=Layout(axes=("replica",))
    )
    mapped = jax.pmap(step, axis_name="replica", in_axes=(None, 0, None), out_axes=None)
    state = init_state(model, optimizer, 0)
    statistics = case.objective.statistics(dataset)
    told = []
    for batch in case.batches(dataset, 20):
        parts = jax.tree.map(lambda x: x.reshape(8, BATCH // 8, *x.shape[1:]), batch)
        state, metrics = mapped(state, parts, statistics)
        told.append(jax.device_get(metrics))
    check_equal((jax.device_get(state), told), alone("tied", 20))
    check_equal(run(case, dataset, 20, MeshConfig(data=8, tables="replicated")), alone("tied", 20))


def test_rows_wanted_of_one_owner_take_the_slow_way_to_the_same_numbers(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowded = dataclasses.replace(dataset, items=np.asarray(dataset.items) % 60 + 1)
    case, mesh = CASES["in_batch"], MeshConfig(data=1, model=2, tables="row")
    usual = run(case, crowded, 3, mesh)
    for module in (step, tables):
        monkeypatch.setattr(module, "fair_share", lambda capacity, layout: min(capacity, 2))
    crossed = run(case, crowded, 3, mesh)
    assert not any(metrics.slow for metrics in usual[1])
    assert all(metrics.slow for metrics in crossed[1])
    check_equal(crossed, usual)
    check_equal(crossed, run(case, crowded, 3, MeshConfig(tables="replicated")))


def test_a_fair_share_leaves_room_for_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.lax, "axis_size", lambda axis: 100)
    layout = Layout(axes=("model",), table_axis="model", slack=2.0)
    assert tables.fair_share(100_000, layout) == 2000
    assert tables.fair_share(1600, layout) == 48  # 16 + 6 * 4 + 8
    assert tables.fair_share(20, layout) == 16  # 0.2 + 6 * 0.45 + 8, rounded up
    assert tables.fair_share(10, layout) == 10
    assert tables.fair_share(10, Layout()) == 10


@pytest.mark.slow
def test_parts_of_a_batch_on_many_devices_give_the_whole_on_one(
    dataset: Dataset, alone: Any
) -> None:
    mesh = MeshConfig(data=2, model=2, tables="row")
    check_equal(run(CASES["tied"], dataset, 3, mesh, accumulate=2), alone("tied", 3))


def test_devices_that_hold_the_same_bfloat16_table_keep_it_the_same(dataset: Dataset) -> None:
    model, optimizer = CASES["two_tables"].parts(dataset)
    devices = MeshConfig(data=2, model=4).build()
    layout = Layout(axes=AXES, table_axis="model", placements={"users": "row"})
    where: Any = {"mesh": devices, "layout": layout}
    state = init_state(model, optimizer, 0, table_dtype="bfloat16", **where)
    step = make_step(model, CASES["two_tables"].objective, optimizer, seed=0, **where)
    statistics = replicate(CASES["two_tables"].objective.statistics(dataset), devices)
    state, _ = step(
        state, shard_batch(CASES["two_tables"].batches(dataset, 1)[0], devices), statistics
    )
    whole, blocks = (
        [np.asarray(s.data, np.float32) for s in state.params[n]["table"].addressable_shards]
        for n in ("items", "users")
    )
    for copy in whole:
        np.testing.assert_array_equal(copy, whole[0])
    for first, second in zip(blocks[:4], blocks[4:], strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_a_capacity_leaves_the_same_rows_at_rest_on_any_number_of_devices(dataset: Dataset) -> None:
    # 672 ids, more than the table has rows, of which few are distinct.
    objective = BCE(num_negatives=5, power=4.0)
    case = Case(SEQUENCES, dataclasses.replace(SASREC, dropout=0.0), objective, MOMENTUM)
    alone = run(case, dataset, 3, MeshConfig(tables="replicated"), capacity=300)
    mesh = MeshConfig(data=8, tables="replicated")
    check_equal(run(case, dataset, 3, mesh, capacity=300), alone)


def test_tables_are_born_split_and_no_device_holds_more_than_its_part(dataset: Dataset) -> None:
    model, optimizer = CASES["two_tables"].parts(dataset)
    devices = MeshConfig(data=2, model=4).build()
    layout = Layout(axes=AXES, table_axis="model", placements={"items": "row"})
    state = init_state(model, optimizer, 0, mesh=devices, layout=layout)
    single = init_state(model, optimizer, 0)
    rows = -(-603 // 4)
    for tree in (state.params, state.optimizer[0].sum_of_squares):
        shards = tree["items"]["table"].addressable_shards
        assert {shard.data.shape for shard in shards} == {(rows, 8)}
        assert tree["users"]["table"].sharding.is_fully_replicated
    np.testing.assert_array_equal(
        state.params["items"]["table"][:603], single.params["items"]["table"]
    )
    assert (np.asarray(state.params["items"]["table"][603:]) == 0).all()


def test_a_step_on_a_mesh_compiles_once(dataset: Dataset) -> None:
    case = CASES["two_tables"]
    model, optimizer = case.parts(dataset)
    devices = MeshConfig(data=2, model=4).build()
    layout = Layout(axes=AXES, table_axis="model", placements={"items": "row"})
    state = init_state(model, optimizer, 0, mesh=devices, layout=layout)
    step: Any = make_step(model, case.objective, optimizer, seed=0, mesh=devices, layout=layout)
    statistics = replicate(case.objective.statistics(dataset), devices)
    for batch in case.batches(dataset, 4):
        state, _ = step(state, shard_batch(batch, devices), statistics)
    assert step._cache_size() == 1
    assert isinstance(jnp.asarray(state.step), jax.Array)
