"""Events that are no positives: each objective over items leaves them out, labels are learned."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import objectives
from jaxrec.data import Dataset
from jaxrec.models.heads import Head, WithHeads
from jaxrec.models.matrix_factorization import Config
from jaxrec.objectives import Click, FullSoftmax, MultiTask, Rating, SquaredError
from jaxrec.typing import Batch

OF_LABELS = (SquaredError,)
FOUND = [getattr(objectives, name) for name in objectives.__all__]
OVER_ITEMS = [
    kind
    for kind in FOUND
    if inspect.isclass(kind)
    and dataclasses.is_dataclass(kind)
    and hasattr(kind, "draw")
    and hasattr(kind, "loss")
    and kind not in (*OF_LABELS, MultiTask)
]
POSITIVE = np.array([True, False, True, False])


@pytest.fixture(scope="module")
def dataset(dataset_of: Callable[..., Dataset]) -> Dataset:
    events = [(u, 1 + (u + t) % 9, 0) for u in range(1, 9) for t in range(6)]
    return dataset_of(events, num_items=9, labels=[float(i % 2) for _, i, _ in events])


def loss_of(dataset: Dataset, objective: Any, batch: Batch) -> float:
    heads = (Head(name="rating", sees_item=True), Head(name="click", sees_item=True))
    config: Any = WithHeads(model=Config(dim=3, init_std=1.0), heads=heads)
    model = config.fit(dataset.manifest).build(_rngs())
    drawn = objective.draw(batch, objective.statistics(dataset), jax.random.key(1))
    return float(objective.loss(model, drawn, None)[0])


def _rngs() -> Any:
    from flax import nnx

    return nnx.Rngs(0)


def batch_of(positives: list[int], **fields: Any) -> Batch:
    labels = jnp.array([1.0, 0.0, 1.0, 0.0])
    return Batch(
        users=jnp.array([1, 2, 3, 4]), positives=jnp.array(positives), labels=labels, **fields
    )


@pytest.mark.parametrize("kind", OVER_ITEMS)
def test_an_objective_over_items_leaves_out_what_is_no_positive(
    kind: Callable[[], Any], dataset: Dataset
) -> None:
    batches = [batch_of([1, 2, 3, 4]), batch_of([1, 2, 3, 4], where=jnp.asarray(POSITIVE))]
    every, masked = (loss_of(dataset, kind(), batch) for batch in batches)
    alone = loss_of(dataset, kind(), batch_of([1, 2, 3, 4], is_positive=jnp.asarray(POSITIVE)))
    assert alone == pytest.approx(masked, rel=1e-6) and abs(alone - every) > 1e-3


@pytest.mark.parametrize(
    "objective", [SquaredError(), MultiTask(tasks=(Rating(), Click()))], ids=["error", "tasks"]
)
def test_labels_are_learned_from_every_event(objective: Any, dataset: Dataset) -> None:
    positive = jnp.asarray(POSITIVE)
    for batch in ([1, 2, 3, 4], [1, 5, 3, 4]):
        every = loss_of(dataset, objective, batch_of(batch))
        assert loss_of(dataset, objective, batch_of(batch, is_positive=positive)) == every


def test_tasks_beside_an_objective_learn_what_it_leaves_out(dataset: Dataset) -> None:
    positive = jnp.asarray(POSITIVE)
    batch = batch_of([1, 2, 3, 4], is_positive=positive)
    tasks = loss_of(dataset, MultiTask(tasks=(Rating(),)), batch)
    items = loss_of(dataset, FullSoftmax(), batch)
    both = loss_of(dataset, MultiTask(tasks=(Rating(),), objective=FullSoftmax()), batch)
    assert both == pytest.approx(tasks + items, rel=1e-5)
