"""One user with a history thousands of times as long as the others' costs what that history is."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxrec.data import Dataset, PairData, SequenceData
from jaxrec.evaluation import (
    EvaluationConfig,
    ItemKNN,
    Popularity,
    RecentPopularity,
    RetrieverRecommender,
    evaluate,
    retriever,
)

USERS, ITEMS, HEAVY = 20_000, 400, 30_000
LIMIT = 256 << 20  # bytes of NumPy's; rows padded to the longest would be 2.4 GB


@pytest.fixture(scope="module")
def heavy() -> Dataset:
    from tests.conftest import _dataset_of  # the fixture is a function of events, one by one

    random = np.random.default_rng(0)
    lengths = np.full(USERS, 4)
    lengths[7] = HEAVY
    users = np.repeat(np.arange(1, USERS + 1), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(users)) - 1
    split = np.where(left == 0, 2, np.where(left == 1, 1, 0))
    # The heavy user knows every item but the last ten; all others know some.
    items = random.integers(1, ITEMS + 1, len(users))
    items[users == 8] = random.integers(1, ITEMS - 9, HEAVY)
    events = np.stack([users, items, split], axis=1)
    return _dataset_of([tuple(e) for e in events.tolist()], num_items=ITEMS, num_users=USERS)


def of_vectors(dataset: Dataset) -> RetrieverRecommender:
    random = np.random.default_rng(1)
    users = random.normal(size=(USERS + 1, 4)).astype(np.float32)
    items = random.normal(size=(ITEMS + 1, 4)).astype(np.float32)
    config = EvaluationConfig(batch_size=512)
    return RetrieverRecommender(
        user_vectors=lambda batch: users[batch.users],
        item_blocks=lambda: [items],
        make_batch=lambda requests, rows: PairData().requests(requests.users[rows], rows[:, None]),
        config=config,
    )


RECOMMENDERS: dict[str, Callable[[Dataset], Any]] = {
    "popularity": Popularity,
    "recent popularity": RecentPopularity,
    "item-kNN": lambda dataset: ItemKNN(dataset, neighbours=20),
    "retriever": of_vectors,
}


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_a_recommender_allocates_no_rows_as_long_as_the_longest_history(
    heavy: Dataset, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retriever, "_CELLS", 2**20)
    recommender = RECOMMENDERS[name](heavy)
    tracemalloc.start()
    evaluation = evaluate(recommender, heavy, "test", EvaluationConfig(bootstrap_samples=0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LIMIT
    assert evaluation.num_users == USERS
    assert evaluation.metrics["coverage@20"] > 0


@pytest.mark.parametrize("mask_seen", [True, False])
def test_batches_that_shrink_for_a_long_history_rank_as_whole_ones(
    random_dataset: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch, mask_seen: bool
) -> None:
    from jaxrec.evaluation import requests_of

    dataset = random_dataset(0, num_users=300, num_items=ITEMS, mean_length=20)
    requests, recommender = requests_of(dataset, "test"), of_vectors(dataset)
    whole = recommender.recommend(requests, 10, mask_seen=mask_seen)
    monkeypatch.setattr(retriever, "_CELLS", 600)
    parts = recommender.recommend(requests, 10, mask_seen=mask_seen)
    np.testing.assert_array_equal(parts, whole)


LAYOUTS = [SequenceData(max_len=50, targets=t) for t in ("last", "all", "packed")] + [PairData()]


@pytest.mark.parametrize("data", LAYOUTS, ids=lambda data: getattr(data, "targets", "pairs"))
def test_a_batch_layout_allocates_no_rows_as_long_as_the_longest_history(
    heavy: Dataset, data: Any
) -> None:
    tracemalloc.start()
    batches = data.batches(heavy, 512, 0)
    for step in range(3):
        batches.batch(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LIMIT
