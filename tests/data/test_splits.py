"""Splits against hand-worked cases and their definitions."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from jaxrec.data import TEST, TRAIN, VALID, build
from jaxrec.data.splits import leave_last_out, nth, random, temporal
from jaxrec.typing import UserError


def test_the_last_event_is_test_and_the_one_before_validation() -> None:
    split = leave_last_out(np.array([1, 1, 1, 1, 2, 2, 3, 4, 4, 4]))
    four, two, one, three = [TRAIN, TRAIN, VALID, TEST], [TRAIN] * 2, [TRAIN], [TRAIN, VALID, TEST]
    assert split.tolist() == four + two + one + three


def test_a_cut_belongs_to_the_later_part() -> None:
    split = temporal(np.array([5, 1, 3, 2, 3, 9]), 3, 5)
    assert split.tolist() == [TEST, TRAIN, VALID, TRAIN, VALID, TEST]
    with pytest.raises(UserError, match="Swap"):
        temporal(np.array([1]), 3, 2)


def test_random_gives_each_user_the_rounded_fractions() -> None:
    users = np.repeat([0, 1, 2, 3], [10, 20, 1, 5])
    split = random(users, valid_fraction=0.1, test_fraction=0.2, seed=1)
    counts = [np.bincount(split[users == user], minlength=3).tolist() for user in range(4)]
    # 5 events: round(3.5) = 4 train, round(4.0) = 4 train or validation.
    assert counts == [[7, 1, 2], [14, 2, 4], [1, 0, 0], [4, 0, 1]]


def test_random_depends_on_its_seed_alone_and_picks_every_position() -> None:
    users = np.repeat(np.arange(500), 10)
    first = random(users, seed=3)
    assert (first == random(users, seed=3)).all()
    assert (first != random(users, seed=4)).any()
    share = (first.reshape(500, 10) == TEST).mean(axis=0)
    assert np.abs(share - 0.1).max() < 5 * np.sqrt(0.1 * 0.9 / 500)


def test_random_numbers_go_with_the_user_and_not_with_its_place_in_the_log() -> None:
    users = np.repeat(np.arange(50), 10)
    keys = np.arange(50, dtype=np.uint64)[::-1].repeat(10)
    split, turned = random(users, seed=3), random(users, keys=keys, seed=3)
    assert (split.reshape(50, 10) == turned.reshape(50, 10)[::-1]).all()


def test_given_words_are_read_in_any_case() -> None:
    frame = pd.DataFrame({"user_id": 1, "item_id": [1, 2, 3], "split": ["Train", "test ", "valid"]})
    data = build(frame, split="given", split_column="split")
    assert data.split.tolist() == [TRAIN, TEST, VALID]
    with pytest.raises(UserError, match=r"'dev' in row 2.*none of the words train, valid"):
        build(frame.assign(split=["train", "dev", "test"]), split="given", split_column="split")


@settings(max_examples=80, deadline=None)
@for_all(st.lists(st.integers(-(2**63) + 1, 2**63 - 1), min_size=1, max_size=30), st.data())
def test_a_rank_is_found_as_sorting_finds_it(values: list[int], data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, len(values) - 1))
    pieces = np.array_split(np.array(values, np.int64), 3)
    assert nth(lambda: pieces, rank, min(values), max(values)) == sorted(values)[rank]


def frame_of(times: list) -> pd.DataFrame:
    return pd.DataFrame({"user_id": 1, "item_id": range(len(times)), "timestamp": times})


def test_temporal_quantiles_cut_ten_events_into_eight_one_one() -> None:
    data = build(frame_of(list(range(10))), time_column="timestamp", split="temporal")
    assert data.split.tolist() == [TRAIN] * 8 + [VALID, TEST]
    assert data.manifest.split["valid_from"] == 8
    assert data.manifest.split["events"] == {"train": 8, "valid": 1, "test": 1}


def test_temporal_dates_cut_dates_and_epoch_seconds_alike() -> None:
    dates = ["2020-01-01", "2020-02-01", "2020-03-01T00:00:00Z", "2020-03-02"]
    seconds = (
        pd.to_datetime(dates, utc=True, format="mixed").as_unit("s").astype("int64")
    ).tolist()
    for times in (dates, seconds):
        data = build(
            frame_of(times),
            time_column="timestamp",
            split="temporal",
            valid_from="2020-02-01",
            test_from="2020-03-01",
        )
        assert data.split.tolist() == [TRAIN, VALID, TEST, TEST]


def test_a_split_without_training_events_is_refused() -> None:
    with pytest.raises(UserError, match="no event for training"):
        build(frame_of([7, 7, 7]), time_column="timestamp", split="temporal")


@settings(max_examples=80, deadline=None)
@for_all(
    st.lists(st.integers(0, 12), min_size=1, max_size=50),
    st.floats(0, 0.45),
    st.floats(0, 0.45),
)
def test_nothing_that_trains_is_later_than_what_is_measured(
    times: list[int], valid: float, test: float
) -> None:
    try:
        data = build(
            frame_of(times),
            time_column="timestamp",
            split="temporal",
            valid_fraction=valid,
            test_fraction=test,
        )
    except UserError:
        return
    parts = [data.times[data.split == part] for part in (TRAIN, VALID, TEST)]
    assert sum(map(len, parts)) == len(times)
    present = [part for part in parts if len(part)]
    for earlier, later in zip(present[:-1], present[1:], strict=True):
        assert earlier.max() < later.min()


@settings(max_examples=60, deadline=None)
@for_all(st.lists(st.integers(0, 8), min_size=1, max_size=60), st.integers(0, 3))
def test_every_event_is_in_one_part_and_every_user_trains(counts: list[int], seed: int) -> None:
    users = np.sort(np.array(counts))
    for split in (leave_last_out(users), random(users, seed=seed)):
        assert len(split) == len(users)
        assert np.isin(split, [TRAIN, VALID, TEST]).all()
        assert set(users[split == TRAIN]) == set(users)
