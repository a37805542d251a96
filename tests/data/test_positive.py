"""Events that are no positives: they train labels, and are no target, history or popularity."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import (
    NOT_POSITIVE,
    TEST,
    TRAIN,
    VALID,
    Dataset,
    PairData,
    Recipe,
    SequenceData,
    build,
    open_dataset,
    prepare,
)
from jaxrec.data.dataset import split_alone
from jaxrec.data.replay import Past
from jaxrec.data.splits import leave_last_out
from jaxrec.data.training_events import Positives, training_events
from jaxrec.evaluation import ItemKNN, Popularity, requests_at, requests_of
from jaxrec.typing import UserError

OPTIONS: Any = {"time_column": "t", "label_column": "click"}


def log(*users: str) -> pd.DataFrame:
    """Events of users as letters, in time order: a capital is a click on the item, others none."""
    rows = [
        (f"u{user}", letter.lower(), time, float(letter.isupper()))
        for user, letters in enumerate(users)
        for time, letter in enumerate(letters)
    ]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "t", "click"])


def ids(dataset: Dataset, items: Any) -> str:
    return "".join(dataset.item_vocabulary["id"].iloc[np.asarray(items) - 1])


@pytest.mark.parametrize(
    ("marks", "split"),
    [
        ("++++", "0012"),
        # The last positive is for test; what comes after it or before it goes with it.
        ("-+-+-+-+-", "000011222"),
        ("+++--", "01222"),
        ("---", "000"),
        ("++--", "0000"),
        ("--+++", "00012"),
    ],
)
def test_leaving_the_last_out_leaves_out_a_positive(marks: str, split: str) -> None:
    positive = np.array([mark == "+" for mark in marks])
    users = np.zeros(len(marks), np.int64)
    found = leave_last_out(users, positive)
    assert "".join(map(str, found)) == split
    # Users do not see each other.
    both = leave_last_out(np.repeat([3, 4], len(marks)), np.tile(positive, 2))
    assert both.tolist() == [*found, *found]


def test_a_label_of_0_is_no_target_no_history_and_no_popularity() -> None:
    dataset = build(log("AbCdDeA", "bBcAfB", "xxABC"), **OPTIONS)
    assert dataset.manifest.split["events"] == {"train": 4, "valid": 3, "test": 3}
    assert dataset.manifest.split["not_positive"] == {"train": 4, "valid": 2, "test": 2}
    counts = dict(zip("abcdefx", dataset.item_counts[1:].tolist(), strict=True))
    assert counts == {"a": 2, "b": 1, "c": 1, "d": 0, "e": 0, "f": 0, "x": 0}
    test = requests_of(dataset, "test")
    rows = np.split(test.history_items, test.history_offsets[1:-1])
    assert [ids(dataset, row) for row in rows] == ["acd", "ba", "ab"]
    assert ids(dataset, test.target_items) == "abc"
    assert [ids(dataset, dataset.history(user)) for user in (1, 2, 3)] == ["acda", "bab", "abc"]
    order = Popularity(dataset).recommend(test, 7, mask_seen=False)[0]
    assert set(ids(dataset, order[:3])) == {"a", "b", "c"}


def test_what_was_positive_alone_gives_what_a_log_of_positives_gives() -> None:
    users = ("AbCdDeA", "bBcAfB", "xxABC")
    mixed = build(log(*users), **OPTIONS)
    only = build(log(*("".join(filter(str.isupper, user)) for user in users)), **OPTIONS)
    for split in ("valid", "test"):
        one, other = requests_of(mixed, split), requests_of(only, split)
        assert ids(mixed, one.history_items) == ids(only, other.history_items)
        assert ids(mixed, one.target_items) == ids(only, other.target_items)
    shown = []
    for dataset in (mixed, only):
        batch = SequenceData(max_len=4, targets="packed").batches(dataset, 2, 0).batch(0)
        shown.append(ids(dataset, batch.positives[batch.where]))
    assert shown[0] == shown[1]
    for dataset in (mixed, only):
        assert ItemKNN(dataset).recommend(requests_of(dataset, "test"), 2, mask_seen=False).any()


@pytest.mark.parametrize(
    ("least", "positive"), [(None, 5), (1.0, 5), (4.0, 2), (0.0, 6), (-1.0, 6)]
)
def test_the_threshold_is_an_option(least: float | None, positive: int) -> None:
    frame = pd.DataFrame(
        {"user_id": 1, "item_id": range(6), "t": range(6), "click": [0, 1, 2, 3, 4, 5]}
    )
    options: Any = {} if least is None else {"positive_from": least}
    dataset = build(frame, **OPTIONS, **options)
    assert int((dataset.split < NOT_POSITIVE).sum()) == positive
    assert dataset.labels is not None and len(dataset.labels) == 6


def test_a_log_without_positives_is_refused() -> None:
    with pytest.raises(
        UserError, match="none of the 3 events for training is positive.*positive_from"
    ):
        build(log("abc"), **OPTIONS)
    with pytest.raises(UserError, match="positive_from needs label_column"):
        Recipe(positive_from=1.0)


@pytest.mark.parametrize("engine", ["pandas", "duckdb"])
def test_files_and_appends_obey_the_threshold(tmp_path: Path, engine: str) -> None:
    frame = log("AbCdDeA", "bBcAfB")
    frame["day"] = frame["t"] > 3
    for name, part in (("one", frame[~frame["day"]]), ("two", frame[frame["day"]])):
        part.to_csv(tmp_path / f"{name}.csv", index=False)
    prepare(tmp_path / "one.csv", tmp_path / "d", engine=engine, **OPTIONS)
    prepare(tmp_path / "two.csv", tmp_path / "d", engine=engine, append=True)
    whole = build(frame, **OPTIONS)
    np.testing.assert_array_equal(open_dataset(tmp_path / "d").split, whole.split)


def examples(batches: Any) -> list[tuple[list[int], int, float, bool]]:
    found = []
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        for row in np.flatnonzero(batch.where):
            history = [] if batch.history is None else batch.history[row]
            found.append(
                (list(history), batch.positives[row], batch.labels[row], batch.is_positive[row])
            )
    return found


def test_heads_learn_every_label_after_histories_of_positives() -> None:
    dataset = build(log("AbCdDeAA", "bBcAfBB"), **OPTIONS)
    data = SequenceData(max_len=4, targets="last", labels=True)
    found = {
        (ids(dataset, [i for i in history if i]), ids(dataset, [item]), label, bool(positive))
        for history, item, label, positive in examples(data.batches(dataset, 4, 0))
    }
    # Training has all but the last two positives; what has no history before it teaches nothing.
    assert found == {
        ("a", "b", 0.0, False),
        ("a", "c", 1.0, True),
        ("ac", "d", 0.0, False),
        ("ac", "d", 1.0, True),
        ("b", "c", 0.0, False),
        ("b", "a", 1.0, True),
    }
    for targets in ("all", "packed"):
        layout = dataclasses.replace(data, targets=targets)
        with pytest.raises(UserError, match="data.targets='last'"):
            layout.batches(dataset, 4, 0)


def test_pairs_hold_every_label_and_say_which_are_positive() -> None:
    dataset = build(log("AbCdDeAA", "bBcAfBB"), **OPTIONS)
    found = sorted(
        (item, label, bool(p)) for _, item, label, p in examples(PairData().batches(dataset, 4, 0))
    )
    trains = split_alone(dataset.split) == TRAIN
    assert dataset.labels is not None
    wanted = zip(
        dataset.items[trains], dataset.labels[trains], dataset.split[trains] == TRAIN, strict=True
    )
    assert found == sorted((item, label, bool(p)) for item, label, p in wanted)


def test_events_are_numbered_as_a_teacher_numbers_them() -> None:
    dataset = build(log("AbCdDeAA", "bBcAfBB"), **OPTIONS)
    events = training_events(dataset)
    for data in (PairData(), SequenceData(max_len=4, targets="last", labels=True)):
        batches: Any = data.batches(dataset, 4, 0)
        for step in range(batches.steps_per_epoch):
            batch, numbers = batches.located(step)
            positive = batch.is_positive & batch.where
            np.testing.assert_array_equal(
                events.items_at(numbers)[positive], batch.positives[positive]
            )
            assert not numbers[~positive].any()


def test_what_is_old_to_replay_is_counted_in_positives() -> None:
    dataset = build(log("AbCdDeAA", "bBcAfBB"), **OPTIONS)
    positives = Positives(dataset, training_events(dataset, labels=True))
    # A b C d D | e A A: training is A b C d D, or b B c A; old are those up to the first positive.
    assert positives.every(np.array([0, 1, 1])).tolist() == [0, 1, 2]
    assert positives.every(np.array([0, 9, 0])).tolist() == [0, 5, 0]
    past = Past(np.array([0, 1, 1], np.int32), 0.0)
    fresh = examples(PairData().batches(dataset, 8, 0, past=past))
    assert ids(dataset, np.array(sorted(item for _, item, _, _ in fresh))) == "abccdd"


def test_requests_along_a_log_show_positives_alone() -> None:
    dataset = build(log("AbCdDeAA"), **OPTIONS)
    at = requests_at(dataset, np.arange(8))
    rows = np.split(at.history_items, at.history_offsets[1:-1])
    assert [ids(dataset, row) for row in rows] == ["a", "a", "ac", "ac", "acd", "acd", "acda"]
    assert ids(dataset, at.target_items) == "bcddeaa"


def test_labels_are_measured_on_every_event_and_lists_on_positives() -> None:
    dataset = build(log("AbCdDeAxA", "bBcAfBcB"), **OPTIONS)
    by_list, by_label = (requests_of(dataset, "test", labelled=x) for x in (False, True))
    assert [len(r.target_items) for r in (by_list, by_label)] == [2, 4]
    np.testing.assert_array_equal(by_list.history_items, by_label.history_items)
    assert (VALID, TEST) == (1, 2)


def test_a_log_of_positives_is_as_it_was() -> None:
    frame = log("ABCD", "BCAD")
    with_labels, without = build(frame, **OPTIONS), build(frame, time_column="t")
    np.testing.assert_array_equal(with_labels.split, without.split)
    assert training_events(with_labels, labels=True).positive is None
    assert "not_positive" not in with_labels.manifest.split
    assert PairData().batches(with_labels, 2, 0).batch(0).is_positive is None
