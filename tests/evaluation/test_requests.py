"""Requests: who is asked, with what history and what targets."""

import numpy as np
import pytest

from jaxrec.evaluation.requests import match, requests_at, requests_of
from jaxrec.typing import UserError

# user 1: train 5, 3; valid 2; test 4. user 2: train 1, 1; test 6 and twice 2, no validation event.
# user 3: test 1 and nothing before. user 4: train only. user 5: valid 4 and test 5, no training.
EVENTS = [
    *[(1, 5, 0), (1, 3, 0), (1, 2, 1), (1, 4, 2)],
    *[(2, 1, 0), (2, 1, 0), (2, 6, 2), (2, 2, 2), (2, 2, 2)],
    *[(3, 1, 2), (4, 1, 0), (5, 4, 1), (5, 5, 2)],
]


def rows(items, offsets):
    return [part.tolist() for part in np.split(items, offsets[1:-1])]


def test_validation_histories_are_the_training_events_in_time_order(dataset_of):
    requests = requests_of(dataset_of(EVENTS, num_items=6), "valid")
    assert requests.users.tolist() == [1]
    assert rows(requests.history_items, requests.history_offsets) == [[5, 3]]
    assert rows(requests.target_items, requests.target_offsets) == [[2]]
    assert requests.without_history == 1  # user 5
    assert requests.num_items == 6


def test_test_histories_hold_training_and_validation_events(dataset_of):
    requests = requests_of(dataset_of(EVENTS, num_items=6), "test")
    assert requests.users.tolist() == [1, 2, 5]
    assert rows(requests.history_items, requests.history_offsets) == [[5, 3, 2], [1, 1], [4]]
    assert requests.without_history == 1  # user 3
    assert requests.history_lengths.tolist() == [3, 2, 1]


def test_targets_are_distinct_and_ascending(dataset_of):
    requests = requests_of(dataset_of(EVENTS, num_items=6), "test")
    assert rows(requests.target_items, requests.target_offsets) == [[4], [2, 6], [5]]
    assert requests.num_targets.tolist() == [1, 2, 1]


def test_index_arrays_have_the_types_of_batches(dataset_of):
    requests = requests_of(dataset_of(EVENTS, num_items=6), "test")
    assert requests.users.dtype == np.int32
    assert requests.history_items.dtype == np.int32
    assert requests.target_items.dtype == np.int32
    assert requests.padded_history(2).dtype == np.int32
    assert requests.padded_seen(np.arange(3), 4).dtype == np.int32


def test_padded_history_keeps_the_latest_events_at_the_right(dataset_of):
    requests = requests_of(dataset_of(EVENTS, num_items=6), "test")
    assert requests.padded_history(2).tolist() == [[3, 2], [1, 1], [0, 4]]
    assert requests.padded_history(4, np.array([2, 0, 2])).tolist() == [
        [0, 0, 0, 4],
        [0, 5, 3, 2],
        [0, 0, 0, 4],
    ]


def test_padded_seen_holds_everything(dataset_of):
    requests = requests_of(dataset_of(EVENTS, num_items=6), "test")
    assert requests.padded_seen(np.array([1, 0]), 4).tolist() == [[1, 1, 0, 0], [5, 3, 2, 0]]


def test_equals_a_loop_over_users(random_dataset):
    dataset = random_dataset(0, num_users=40, num_items=15, mean_length=5, num_targets=2)
    requests = requests_of(dataset, "test")
    expected = {}
    for user in range(1, 41):
        mine = dataset.users == user
        history = dataset.items[mine & (dataset.split < 2)].tolist()
        targets = sorted(set(dataset.items[mine & (dataset.split == 2)].tolist()))
        if history and targets:
            expected[user] = (history, targets)
    assert requests.users.tolist() == list(expected)
    assert rows(requests.history_items, requests.history_offsets) == [
        history for history, _ in expected.values()
    ]
    assert rows(requests.target_items, requests.target_offsets) == [
        targets for _, targets in expected.values()
    ]
    assert 0 < requests.without_history == 40 - len(expected)


def test_requests_at_events_hold_all_that_came_before_them(dataset_of):
    # Positions: user 1 has 0 to 3, user 2 has 4 to 8, user 3 has 9.
    requests = requests_at(dataset_of(EVENTS, num_items=6), np.array([1, 3, 4, 6, 9]))
    assert requests.users.tolist() == [1, 1, 2]
    assert rows(requests.history_items, requests.history_offsets) == [[5], [5, 3, 2], [1, 1]]
    assert rows(requests.target_items, requests.target_offsets) == [[3], [4], [6]]
    assert requests.without_history == 2  # the first events of users 2 and 3
    assert requests.num_items == 6
    assert requests.users.dtype == requests.history_items.dtype == np.int32


def test_match_finds_hits_and_the_rank_of_each_target(dataset_of):
    requests = requests_of(dataset_of(EVENTS, num_items=6), "test")
    hits, ranks = match(requests, np.array([[1, 4], [6, 2], [4, 0]]))
    assert hits.tolist() == [[False, True], [True, True], [False, False]]
    assert ranks.tolist() == [1, 1, 0, 2]


def test_an_unknown_split_is_refused(dataset_of):
    with pytest.raises(UserError, match="'train'"):
        requests_of(dataset_of(EVENTS, num_items=6), "train")


def test_nothing_to_evaluate_is_an_error_that_says_so(dataset_of):
    with pytest.raises(UserError, match="no user has both a history and an event in the valid"):
        requests_of(dataset_of([(1, 1, 0), (2, 1, 1)], num_items=2), "valid")
