"""Every objective and task, wherever tables are: three steps give what one dense device gives.

Objectives are those of `jaxrec.objectives`, so that one that is added is here. A program takes
seconds to compile, so in the default run all that sample are minimised together, and all over the
whole catalogue, in every placement; alone, and in parts of a batch, they are in the slow run.
"""

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxrec import objectives
from jaxrec.data import Dataset, PairData, build
from jaxrec.functional import functional_of
from jaxrec.models import Head, WithHeads, matrix_factorization
from jaxrec.objectives import ALONE, Replica
from jaxrec.ops.keys import nth
from jaxrec.optim import OptimizerConfig, table_of
from jaxrec.sharding import Layout, MeshConfig, replicate, shard_batch, shardings
from jaxrec.training import TrainState, init_state, make_step
from jaxrec.training.host import HostStep, to_host
from jaxrec.typing import Batch, Params

TRUNK = matrix_factorization.Config(dim=3, init_std=0.3)  # compiles soonest
OPTIMIZER = OptimizerConfig(name="sgd", learning_rate=0.3)
BATCH = 8
PLACEMENTS = ("one device", "replicated", "row", "column", "host")
NO_OBJECTIVES = {"Negatives", "Objective", "Replica", "Retriever"}
OPTIONS: dict[str, dict[str, Any]] = {
    "SampledSoftmax": {"num_negatives": 5, "shared": False},
    "BCE": {"num_negatives": 2},
    "BPR": {"num_negatives": 2, "l2": 0.01},
    "FullSoftmax": {"label_smoothing": 0.1},
    "SquaredError": {"l2": 0.01},
    "Click": {"threshold": 3.0},
}


def _every_objective() -> dict[str, Any]:
    """By name: objectives; all tasks together, alone and beside a sampling and a whole one."""
    found: dict[str, Any] = {}
    tasks = []
    for name in objectives.__all__:
        kind = getattr(objectives, name)
        if not inspect.isclass(kind) or name in NO_OBJECTIVES or name == "MultiTask":
            continue
        made = kind(**OPTIONS.get(name, {}))
        if hasattr(kind, "draw"):
            found[name] = made
        else:
            tasks.append(made)
    beside = {"alone": None, "sampled": objectives.BCE(), "full": objectives.FullSoftmax()}
    for how, other in beside.items():
        found[f"tasks {how}"] = objectives.MultiTask(tasks=tuple(tasks), objective=other)
    return found


OBJECTIVES = _every_objective()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together:
    """The sum of several objectives, each with negatives and features of its own."""

    objectives: tuple[Any, ...]

    @property
    def whole_catalogue(self) -> bool:
        return any(objective.whole_catalogue for objective in self.objectives)

    @property
    def tasks(self) -> tuple[Any, ...]:
        return tuple(task for o in self.objectives for task in getattr(o, "tasks", ()))

    def statistics(self, dataset: Dataset) -> Any:
        return [objective.statistics(dataset) for objective in self.objectives]

    def draw(self, batch: Batch, statistics: Any, key: Any) -> Batch:
        features: dict[str, Any] = {}
        negatives = [jnp.zeros((len(batch.positives), 0), jnp.int32)]
        for number, (objective, mine) in enumerate(zip(self.objectives, statistics, strict=True)):
            drawn = objective.draw(batch, mine, nth(key, number))
            if drawn.negatives is not None:
                negatives.append(drawn.negatives)
            told = drawn.features or {}
            features |= {f"{number}/{name}": value for name, value in told.items()}
        joined = jnp.concatenate(negatives, axis=1)
        return batch.replace(negatives=joined, features=features)

    def loss(self, model: Any, batch: Batch, key: Any, replica: Replica = ALONE) -> Any:
        total, begin = jnp.float32(0), 0
        for number, objective in enumerate(self.objectives):
            mine = {
                name.partition("/")[2]: value
                for name, value in (batch.features or {}).items()
                if name.startswith(f"{number}/")
            }
            inner = getattr(objective, "objective", None) or objective
            width = getattr(inner, "num_negatives", 0)
            part = batch.replace(negatives=batch.negatives[:, begin : begin + width], features=mine)
            loss, weight = objective.loss(model, part, key, replica)
            total, begin = total + loss, begin + width
        return total, weight


for _whole in (False, True):
    _chosen = tuple(
        objective
        for name, objective in OBJECTIVES.items()
        # The tasks alone are beside a sampling objective as well.
        if objective.whole_catalogue == _whole and name != "tasks alone"
    )
    OBJECTIVES["all whole" if _whole else "all sampling"] = Together(objectives=_chosen)


@functools.cache
def _dataset() -> Dataset:
    random, count = np.random.default_rng(0), 900
    log = pd.DataFrame(
        {
            "user_id": random.permutation(np.arange(count) % 90),
            "item_id": random.permutation(np.arange(count) % 301),
            "time": np.arange(count),
            "rating": random.integers(1, 6, count),
        }
    )
    items = pd.DataFrame({"item_id": np.arange(301), "genres": list("abc" * 100 + "a")})
    columns: dict[str, Any] = {"time_column": "time", "label_column": "rating"}
    return build(log, items=items, split="leave_last_out", **columns)


@functools.cache
def _model(with_heads: bool) -> Any:
    if not with_heads:
        return functional_of(TRUNK.fit(_dataset().manifest))
    heads = (Head(name="category", outputs=3, sees_item=False), Head(name="rating"))
    config = WithHeads(model=TRUNK, heads=(*heads, Head(name="click")))
    return functional_of(config.fit(_dataset().manifest))


@functools.cache
def _initial(with_heads: bool) -> TrainState:
    """The state before the first step, on the host."""
    return jax.device_get(init_state(_model(with_heads), OPTIMIZER.build(10), 0))


def _placed(state: TrainState, devices: Any, layout: Layout) -> TrainState:
    """The state on devices, with rows of zeros that make parts of tables equal."""

    def padded(path: Any, leaf: Any) -> Any:
        odd = layout.placement(table_of(path)) == "row" and np.ndim(leaf) > 1
        missing = -len(leaf) % devices.shape["model"] if odd else 0
        return np.pad(leaf, [(0, missing), (0, 0)]) if missing else leaf

    state = jax.tree_util.tree_map_with_path(padded, state)
    return jax.device_put(state, shardings(state, devices, layout))


@functools.cache
def _dense(kind: Any) -> Any:
    return type(f"Dense{kind.__name__}", (kind,), {"whole_catalogue": True})


def _as_dense(objective: Any) -> Any:
    """The same objective, whose step takes whole tables."""
    fields = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)}
    kind: Any = type(objective)
    return _dense(kind)(**fields)


def _trained(objective: Any, placement: str, accumulate: int) -> tuple[Params, list[float]]:
    with_heads, optimizer, dataset = hasattr(objective, "tasks"), OPTIMIZER.build(10), _dataset()
    model, initial = _model(with_heads), _initial(with_heads)
    options: dict[str, Any] = {"seed": 0, "accumulate": accumulate}
    devices = MeshConfig().build()
    step: Any
    if placement == "host":
        tables = ("users",) if objective.whole_catalogue else ("items", "users")
        state = to_host(jax.device_put(initial), tables)
        step = HostStep(model, objective, optimizer, tables=tables, **options)
    elif placement == "one device":
        state = jax.device_put(initial)
        step = make_step(model, objective, optimizer, **options)
    else:
        split: Any = dict.fromkeys(("items", "users"), placement)
        if placement == "column" and objective.whole_catalogue:
            split["items"] = "row"  # the planner refuses columns of it
        devices = MeshConfig(model=2, data=1).build()
        # With room for all rows there is one way to exchange them, which compiles in half the time.
        axes: dict[str, Any] = {"axes": ("data", "model"), "table_axis": "model"}
        layout = Layout(**axes, placements=split, slack=99.0)
        where: dict[str, Any] = {"mesh": devices, "layout": layout}
        state = _placed(initial, devices, layout)
        step = make_step(model, objective, optimizer, **options, **where)
    batches, losses = PairData().batches(dataset, BATCH, 0), []
    statistics = replicate(objective.statistics(dataset), devices)
    for number in range(3):
        batch = batches.batch(number)
        given = batch if placement == "host" else shard_batch(batch, devices)
        state, metrics = step(state, given, statistics)
        assert metrics.overflow == 0
        losses.append(float(metrics.loss))
    if placement == "host":
        state = step.settle(state)
    params = jax.tree.map(
        lambda x, like: np.asarray(x)[: like.shape[0]], state.params, model.shapes
    )
    return params, losses


@functools.cache
def _reference(name: str, accumulate: int) -> tuple[Params, list[float]]:
    return _trained(_as_dense(OBJECTIVES[name]), "one device", accumulate)


def _cases() -> list[Any]:
    slow = pytest.mark.slow
    return [
        pytest.param(
            name, placement, parts, marks=slow if parts > 1 or not name.startswith("all ") else []
        )
        for name in OBJECTIVES
        for placement in PLACEMENTS
        for parts in (1, 2)
    ]


@pytest.mark.parametrize(("name", "placement", "accumulate"), _cases())
def test_steps_give_what_one_dense_device_gives(name: str, placement: str, accumulate: int) -> None:
    on_devices = placement not in ("one device", "host")
    if name in ("InBatchSoftmax", "all sampling") and on_devices and accumulate > 1:
        pytest.skip("a part of a batch on several devices has other rows than on one")
    params, losses = _trained(OBJECTIVES[name], placement, accumulate)
    wanted, others = _reference(name, accumulate)
    np.testing.assert_allclose(losses, others, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), params, wanted
    )
