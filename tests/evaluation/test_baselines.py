"""Baselines against loops and dense matrices."""

import numpy as np
import pytest

from jaxrec.evaluation import (
    EvaluationConfig,
    ItemKNN,
    Popularity,
    RecentPopularity,
    baselines,
    requests_of,
)
from jaxrec.typing import UserError


def first_unseen(order, requests, k, mask_seen):
    lists = []
    for row in range(len(requests)):
        low, high = requests.history_offsets[row : row + 2]
        seen = set(requests.history_items[low:high]) if mask_seen else set()
        mine = [item for item in order if item not in seen][:k]
        lists.append(mine + [0] * (k - len(mine)))
    return lists


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("k", [1, 5, 50])
def test_popularity_equals_a_loop_over_users(random_dataset, monkeypatch, mask_seen, k):
    monkeypatch.setattr(baselines, "_CELLS", 100)
    dataset = random_dataset(0, num_users=50, num_items=30, mean_length=9)
    requests = requests_of(dataset, "test")
    order = sorted(range(1, 31), key=lambda item: (-dataset.item_counts[item], item))
    recommended = Popularity(dataset).recommend(requests, k, mask_seen=mask_seen)
    assert recommended.tolist() == first_unseen(order, requests, k, mask_seen)
    assert recommended.dtype == np.int32


# Item 1 is popular early, item 2 late; item 3 and 4 have one event each, item 3 twice in all.
TIMED = [(1, 1, 0), (1, 1, 0), (1, 1, 0), (1, 3, 0), (1, 3, 0), (1, 2, 0), (1, 2, 0), (1, 4, 0)]
TIMES = [0, 1, 2, 3, 60, 61, 62, 63, 1000, 0, 2000]
DAY = 86_400 * 10**9


@pytest.fixture
def timed_dataset(dataset_of):
    def make(unit=1):
        events = [*TIMED, (1, 1, 2), (2, 5, 0), (2, 1, 2)]
        return dataset_of(events, num_items=5, times=[time * unit for time in TIMES])

    return make


def test_recent_popularity_counts_the_end_of_training_then_all_of_it(timed_dataset):
    dataset = timed_dataset()
    requests = requests_of(dataset, "test")
    # Training times 0, 0, 1, 2, 3, 60, ...: from the 0.5 quantile on, items 3, 3, 2, 2 and 4.
    recent = RecentPopularity(dataset, quantile=0.5).recommend(requests, 5, mask_seen=False)
    assert recent[0].tolist() == [2, 3, 4, 1, 5]


def test_recent_popularity_counts_days_back_from_the_last_training_event(timed_dataset):
    dataset = timed_dataset(DAY)
    requests = requests_of(dataset, "test")
    recent = RecentPopularity(dataset, days=2).recommend(requests, 5, mask_seen=False)
    assert recent[0].tolist() == [2, 4, 1, 3, 5]


@pytest.mark.parametrize(
    ("options", "sentence"), [({"quantile": 1.0}, "quantile"), ({"days": 0}, "days")]
)
def test_recent_popularity_explains_wrong_options(timed_dataset, options, sentence):
    with pytest.raises(UserError, match=sentence):
        RecentPopularity(timed_dataset(), **options)


def knn_by_hand(dataset, requests, k, mask_seen, neighbours, shrink):
    matrix = np.zeros((dataset.num_users + 1, dataset.num_items + 1))
    is_train = dataset.split == 0
    matrix[dataset.users[is_train], dataset.items[is_train]] = 1
    norm = np.sqrt(np.outer(matrix.sum(axis=0), matrix.sum(axis=0))) + shrink
    with np.errstate(invalid="ignore"):
        similar = np.nan_to_num(matrix.T @ matrix / norm)
    np.fill_diagonal(similar, 0)
    for row in similar:
        row[np.argsort(-row.astype(np.float32), kind="stable")[neighbours:]] = 0
    history = np.zeros((len(requests), dataset.num_items + 1))
    rows = np.repeat(np.arange(len(requests)), requests.history_lengths)
    history[rows, requests.history_items] = 1
    scores = history @ similar
    if mask_seen:
        scores[history > 0] = 0
    return scores


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize(("neighbours", "shrink"), [(100, 0.0), (3, 2.0)])
def test_item_knn_equals_dense_matrices(random_dataset, monkeypatch, mask_seen, neighbours, shrink):
    monkeypatch.setattr(baselines, "_CELLS", 200)
    dataset = random_dataset(0, num_users=50, num_items=30, mean_length=6)
    requests = requests_of(dataset, "test")
    knn = ItemKNN(dataset, neighbours=neighbours, shrink=shrink)
    recommended = knn.recommend(requests, 10, mask_seen=mask_seen)
    scores = knn_by_hand(dataset, requests, 10, mask_seen, neighbours, shrink)
    filled = recommended > 0
    assert recommended.dtype == np.int32
    np.testing.assert_array_equal(filled.sum(axis=1), np.minimum((scores > 0).sum(axis=1), 10))
    # Sums in another order differ in the last bits, so lists are compared by their scores.
    best = -np.sort(-scores, axis=1)[:, :10]
    picked = np.take_along_axis(scores, recommended, axis=1)
    np.testing.assert_allclose(picked[filled], best[filled], rtol=1e-6)


def test_item_knn_hand_worked(dataset_of):
    # Items 1 and 2 share users 1 and 2; items 2 and 3 share user 2 only.
    events = [(1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 0), (2, 3, 0), (3, 2, 0), (3, 3, 2)]
    dataset = dataset_of(events, num_items=4)
    requests = requests_of(dataset, "test")
    # cos(2, 1) = 2 / sqrt(3 * 2) = 0.82; cos(2, 3) = 1 / sqrt(3 * 1) = 0.58; item 4 is unknown.
    assert ItemKNN(dataset).recommend(requests, 3, mask_seen=True).tolist() == [[1, 3, 0]]
    alone = ItemKNN(dataset, neighbours=1).recommend(requests, 3, mask_seen=True)
    assert alone.tolist() == [[1, 0, 0]]


def test_item_knn_breaks_ties_by_index(dataset_of):
    events = [(1, 4, 0), (1, 2, 0), (1, 3, 0), (2, 4, 0), (2, 1, 2)]
    dataset = dataset_of(events, num_items=4)
    assert ItemKNN(dataset).recommend(requests_of(dataset, "test"), 2, mask_seen=True).tolist() == [
        [2, 3]
    ]


def test_item_knn_explains_wrong_options(timed_dataset):
    with pytest.raises(UserError, match="neighbours"):
        ItemKNN(timed_dataset(), neighbours=0)


def test_a_baseline_that_fails_takes_no_other_with_it(random_dataset, monkeypatch):
    def fails(dataset):
        raise MemoryError("Unable to allocate 17.7 GiB")

    monkeypatch.setattr(baselines, "Popularity", fails)
    dataset = random_dataset(0, num_users=30, num_items=20, mean_length=6)
    found, failed = baselines.measure_baselines(dataset, "test", EvaluationConfig())
    assert list(found) == ["item-kNN"] and found["item-kNN"].num_users > 0
    assert failed == ["popularity was not measured (MemoryError: Unable to allocate 17.7 GiB)"]
