"""What a loss looks up: found by tracing it, and refused where the model does not say so."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data import Dataset, SequenceData
from jaxrec.functional import functional
from jaxrec.layers import Embedding
from jaxrec.models import sasrec
from jaxrec.objectives import ALONE, FullSoftmax, SampledSoftmax
from jaxrec.ops.keys import RowKey
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import Layout, MeshConfig, shard_batch
from jaxrec.training import init_state, make_step
from jaxrec.training.host import HostStep, to_host
from jaxrec.training.lookups import Reads, SomeRows, find_reads
from jaxrec.typing import Batch, UserError

CONFIG = sasrec.Config(max_len=4, dim=4, num_blocks=0, num_heads=1, hidden=4, dropout=0.0)
OBJECTIVE = SampledSoftmax(num_negatives=4)
SGD = OptimizerConfig(name="sgd", learning_rate=0.1).build(10)


class Forgetful(sasrec.SASRec):
    """Names no negatives."""

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        return {"items": ("history", "positives")}


class Silent(sasrec.SASRec):
    """Names no table."""

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        return {}


class Computing(sasrec.SASRec):
    """Looks up neighbours of what it is asked for."""

    def item_vectors(self, ids: Any = None) -> jax.Array:
        return super().item_vectors(None if ids is None else ids + 1)


class Reaching(sasrec.SASRec):
    """Reads its table's array itself."""

    def user_vectors(self, batch: Batch, *, key: Any = None) -> jax.Array:
        return self.items.table[...][batch.history[:, -1]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy(SampledSoftmax):
    """Reads all items and does not say so."""

    def loss(self, model: Any, batch: Batch, key: Any, replica: Any = ALONE) -> Any:
        total, weight = super().loss(model, batch, key, replica)
        return total + jnp.sum(model.item_vectors()), weight


@pytest.fixture(scope="module")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    return random_dataset(0, num_users=60, num_items=300, mean_length=6)


def first_step(dataset: Dataset, kind: Any, objective: Any, where: str) -> float:
    config = CONFIG.fit(dataset.manifest)
    model = functional(lambda rngs: kind(config, rngs=rngs))
    batch = SequenceData(max_len=4, targets="all").batches(dataset, 8, 0).batch(0)
    statistics = objective.statistics(dataset)
    step: Any
    if where == "host":
        state = to_host(init_state(model, SGD, 0), ("items",))
        step = HostStep(model, objective, SGD, tables=("items",), seed=0)
    elif where == "row":
        devices = MeshConfig(model=2, data=1).build()
        layout = Layout(axes=("data", "model"), table_axis="model", placements={"items": "row"})
        state = init_state(model, SGD, 0, mesh=devices, layout=layout)
        step = make_step(model, objective, SGD, seed=0, mesh=devices, layout=layout)
        batch = shard_batch(batch, devices)
    else:
        state, step = init_state(model, SGD, 0), make_step(model, objective, SGD, seed=0)
    return float(step(state, batch, statistics)[1].loss)


@pytest.mark.parametrize("where", ["device", "row", "host"])
@pytest.mark.parametrize(
    ("kind", "objective", "said"),
    [
        (Forgetful, OBJECTIVE, r"by batch.negatives, .* name it for history, positives"),
        (Computing, OBJECTIVE, "by ids that it computes"),
        (Reaching, OBJECTIVE, "reads the array of table 'items' itself"),
        (sasrec.SASRec, Greedy(num_negatives=4), "reads all of table 'items'"),
    ],
)
def test_what_is_looked_up_and_not_said_is_refused(
    kind: Any, objective: Any, said: str, where: str, dataset: Dataset
) -> None:
    with pytest.raises(UserError, match=said):
        first_step(dataset, kind, objective, where)


@pytest.mark.parametrize("objective", [OBJECTIVE, FullSoftmax()])
def test_a_table_that_is_not_named_is_used_whole_or_refused(
    objective: Any, dataset: Dataset
) -> None:
    dense = first_step(dataset, Silent, objective, "device")
    np.testing.assert_allclose(
        dense, first_step(dataset, sasrec.SASRec, objective, "device"), rtol=1e-6
    )
    with pytest.raises(UserError, match="'items'"):
        first_step(dataset, Silent, objective, "row")


def test_reads_are_the_fields_whose_ids_are_looked_up_as_they_are() -> None:
    def loss(params: Any, part: Batch, key: Any) -> Any:
        table = params["items"]["table"]
        ids = jnp.where(part.where, part.positives, 0)
        seen = table.rows(jnp.concatenate([part.history[:, -2:], ids[:, None]], axis=1))
        return seen.sum() + params["users"]["table"].rows(part.users // 2).sum()

    parts = Batch(
        users=np.zeros((2, 3), np.int32),
        history=np.zeros((2, 3, 4), np.int32),
        positives=np.zeros((2, 3), np.int32),
        where=np.ones((2, 3), bool),
    )
    shapes = {name: {"table": np.zeros((9, 4), np.float32)} for name in ("items", "users", "other")}
    keys = RowKey(jax.random.split(jax.random.key(0), 2), np.zeros(2, np.int32))
    assert find_reads(loss, shapes, parts, keys) == {
        "items": Reads(fields=frozenset({"history", "positives"})),
        "users": Reads(fields=frozenset({"users"}), derived=True),
    }


def test_rows_that_are_not_at_hand_are_nan_and_never_those_of_others() -> None:
    ids = np.array([0, 3, 7, 9, 10], np.int32)  # the last two fill up, behind a table of 9 rows
    rows = SomeRows(ids, np.arange(10, dtype=np.float32).reshape(5, 2), num_rows=9, name="items")
    found = np.asarray(rows.rows(np.array([[0, 3], [7, 4], [9, -1], [8, 10]])))
    np.testing.assert_array_equal(found[0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(found[1, 0], [4, 5])
    assert np.isnan(found[1, 1]).all() and np.isnan(found[2:]).all()


def test_an_id_without_a_row_is_nan_in_a_whole_table() -> None:
    model = functional(lambda rngs: Embedding(3, 2, std=1.0, rngs=rngs))
    params = model.init(jax.random.key(0))
    found = np.asarray(model.apply(params, np.array([3, 4, -1, 1000])))
    assert np.isfinite(found[0]).all() and np.isnan(found[1:]).all()
