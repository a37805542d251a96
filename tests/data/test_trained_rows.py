"""Which users and items a data set trains, and that what a run knows comes before it."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from jaxrec.data import Dataset, dataset


def test_rows_with_a_training_event_are_trained(
    dataset_of: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    # (user, item, split): user 2 and item 4 are there for validation and test alone.
    events = [(1, 1, 0), (1, 2, 0), (1, 4, 2), (2, 1, 1), (2, 4, 2), (3, 2, 0)]
    made = dataset_of(events, num_items=5, num_users=4)
    monkeypatch.setattr(dataset, "CHUNK_EVENTS", 2)
    assert np.flatnonzero(made.trained["user"]).tolist() == [1, 3]
    assert np.flatnonzero(made.trained["item"]).tolist() == [1, 2]
    assert {role: len(rows) for role, rows in made.trained.items()} == {"user": 5, "item": 6}


def test_what_a_run_knows_of_its_rows_comes_first(dataset_of: Callable[..., Dataset]) -> None:
    made = dataset_of([(1, 1, 0)], num_items=2)
    rows = {"user": np.array([False, True]), "item": np.array([False, True, True])}
    told = dataclasses.replace(made, trained_rows=rows)
    assert told.trained["item"].tolist() == [False, True, True]
    assert made.trained["item"].tolist() == [False, True, False]
