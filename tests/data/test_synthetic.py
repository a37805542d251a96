"""The invented log: the same from the same seed, and predictable from sequences by design."""

import time

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import synthetic
from jaxrec.typing import UserError


def hit_rate(scores: np.ndarray, seen: np.ndarray, targets: np.ndarray, k: int = 10) -> float:
    scores = np.where(seen, -np.inf, scores)
    own = scores[np.arange(len(targets)), targets]
    return float(((scores > own[:, None]).sum(axis=1) < k).mean())


def test_a_first_order_markov_count_beats_popularity_threefold() -> None:
    events, items = synthetic()
    events = events.sort_values(["user_id", "timestamp"], kind="stable")
    users, chosen = events["user_id"].to_numpy() - 1, events["item_id"].to_numpy() - 1
    last = np.append(users[1:] != users[:-1], True)
    size = (users.max() + 1, len(items))
    train, targets = chosen[~last], chosen[last]
    seen = np.zeros(size, bool)
    seen[users[~last], train] = True
    popularity = np.bincount(train, minlength=size[1]).astype(float)
    follows = np.zeros((size[1], size[1]))
    steps = users[~last][1:] == users[~last][:-1]
    np.add.at(follows, (train[:-1][steps], train[1:][steps]), 1)
    before = chosen[np.flatnonzero(last) - 1]
    by_popularity = hit_rate(np.broadcast_to(popularity, size), seen, targets)
    by_sequence = hit_rate(follows[before] + 1e-6 * popularity, seen, targets)
    assert by_popularity > 10 / len(items)
    assert by_sequence >= 3 * by_popularity
    assert by_sequence > 0.5


def test_the_same_seed_gives_the_same_log_and_another_another() -> None:
    for one, other in zip(synthetic(seed=3), synthetic(seed=3), strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert not synthetic(seed=4)[0].equals(synthetic(seed=3)[0])


def test_counts_columns_and_ranges_are_as_told() -> None:
    events, items = synthetic(num_users=300, num_items=100, min_events=5, max_events=12)
    assert events.columns.tolist() == ["user_id", "item_id", "timestamp", "rating"]
    assert items.columns.tolist() == ["item_id", "title", "genres"]
    assert items["item_id"].tolist() == list(range(1, 101))
    assert items["title"].is_unique
    counts = events.groupby("user_id").size()
    assert counts.index.tolist() == list(range(1, 301))
    assert counts.max() <= 12
    assert (counts >= 5).mean() > 0.9
    assert not events.duplicated(["user_id", "item_id"]).any()
    assert events["rating"].between(1, 5).all()
    assert events["timestamp"].is_monotonic_increasing
    assert not events.duplicated(["user_id", "timestamp"]).any()


def test_popularity_is_skewed() -> None:
    counts = np.sort(synthetic()[0]["item_id"].value_counts().to_numpy())[::-1]
    assert counts[:60].sum() > 2.5 * counts[-60:].sum()


def test_titles_stay_unique_in_a_large_catalogue() -> None:
    items = synthetic(num_users=2, num_items=40_000)[1]
    assert items["title"].is_unique


def test_the_demo_data_is_quick() -> None:
    start = time.perf_counter()
    synthetic()
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("sizes", [{"num_items": 10}, {"num_users": 0}, {"min_events": 70}])
def test_sizes_that_cannot_be_are_refused(sizes: dict) -> None:
    with pytest.raises(UserError, match="cannot be made"):
        synthetic(**sizes)
