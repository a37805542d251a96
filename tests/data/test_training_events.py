"""Training events found by user in a pass over the split, against a look at every event."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.data import TRAIN, Dataset, training_events
from jaxrec.data.training_events import locate


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    chunk=st.integers(1, 20),
    leading=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_each_users_events_are_found_however_the_log_is_read(
    lengths: list[int], chunk: int, leading: bool, seed: int, dataset_of: Callable[..., Dataset]
) -> None:
    random = np.random.default_rng(seed)
    events = []
    for user, length in enumerate(lengths, 1):
        split = random.integers(0, 3, length)
        if leading:
            split.sort()
        events += [(user, int(item), int(s)) for item, s in enumerate(split, 1)]
    if not events:
        events = [(1, 1, 0)]
    labels = random.random(len(events)).tolist()
    dataset = dataset_of(events, num_items=6, num_users=len(lengths), labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_events, "CHUNK", chunk)
        found = training_events.training_events(dataset, labels=True)
    assert found.counts[0] == 0
    assert found.labels is not None and dataset.labels is not None
    for user in range(1, len(lengths) + 1):
        kept = (dataset.users == user) & (dataset.split == TRAIN)
        own = slice(found.starts[user], found.starts[user] + found.counts[user])
        np.testing.assert_array_equal(found.items[own], dataset.items[kept])
        np.testing.assert_array_equal(found.labels[own], dataset.labels[kept])
    # No copy where no user has a training event after another one.
    kept = dataset.split == TRAIN
    later = kept[1:] & ~kept[:-1] & (dataset.users[1:] == dataset.users[:-1])
    assert (found.items is dataset.items) == (not later.any())


def test_numbers_are_those_of_users_in_order() -> None:
    users, places = locate(np.array([0, 2, 2, 5]), np.arange(5))
    np.testing.assert_array_equal(users, [1, 1, 3, 3, 3])
    np.testing.assert_array_equal(places, [0, 1, 0, 1, 2])


def test_masked_events_are_padding(dataset_of: Callable[..., Dataset]) -> None:
    dataset = dataset_of([(1, 4, 0), (1, 2, 0)], num_items=4)
    found = training_events.training_events(dataset)
    where = np.array([[True, False], [False, True]])
    items = found.items_at(np.array([[0, -9], [10**9, 1]]), where)
    assert items.dtype == np.int32
    np.testing.assert_array_equal(items, [[4, 0], [0, 2]])
    assert found.labels_at(np.array([0]), np.array([True])) is None
