"""Cleaning against hand-worked logs, and properties that must hold for any log."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import build
from jaxrec.data.recipe import Recipe
from jaxrec.typing import UserError

TIMED = Recipe(time_column="timestamp")


def log(*rows: tuple, columns: str = "user_id item_id timestamp rating") -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split()[: len(rows[0])])


def clean(frame: pd.DataFrame, recipe: Recipe) -> tuple[pd.DataFrame, list[dict]]:
    """The events of a dataset, with ids as categories in the order of the vocabulary."""
    data = build(frame, **dataclasses.asdict(recipe))
    users, items = data.user_vocabulary["id"], data.item_vocabulary["id"]
    columns = {
        "user": pd.Categorical.from_codes((data.users - 1).tolist(), categories=pd.Index(users)),
        "item": pd.Categorical.from_codes((data.items - 1).tolist(), categories=pd.Index(items)),
        "time": data.times,
    }
    if data.labels is not None:
        columns["label"] = data.labels
    return pd.DataFrame(columns), data.manifest.report


def pairs(events: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(events["user"].astype(str), events["item"].astype(str), strict=True))


def dropped(report: list[dict]) -> dict[str, int]:
    return {row["rule"]: row["dropped_events"] for row in report}


def test_events_come_out_by_user_then_time_then_source_order() -> None:
    frame = log((2, "x", 5), (1, "b", 9), (1, "a", 3), (1, "d", 9), (1, "c", 9))
    events, _ = clean(frame, TIMED)
    assert pairs(events) == [("1", "a"), ("1", "b"), ("1", "d"), ("1", "c"), ("2", "x")]


def test_order_is_the_same_when_one_sort_key_would_overflow() -> None:
    frame = log((2, "x", 2**62), (1, "b", 7), (1, "a", -(2**62)), (1, "c", 7))
    events, _ = clean(frame, dataclasses.replace(TIMED, time_unit="counter"))
    assert pairs(events) == [("1", "a"), ("1", "b"), ("1", "c"), ("2", "x")]


def test_without_times_the_position_in_the_history_is_the_time_and_repeats_stay() -> None:
    events, report = clean(log((1, "a"), (2, "b"), (1, "c"), (1, "a")), Recipe())
    assert pairs(events) == [("1", "a"), ("1", "c"), ("1", "a"), ("2", "b")]
    assert events["time"].tolist() == [0, 1, 2, 0]
    assert "exact duplicates" not in dropped(report)


def test_missing_values_are_dropped_and_counted_by_rule() -> None:
    frame = log((1, "a", 1.0, 5.0), (None, "a", 2.0, 4.0), (1, "", 3.0, 4.0), (1, "b", None, 1.0))
    frame.loc[4] = (1.0, "c", 5.0, None)
    events, report = clean(frame, Recipe(time_column="timestamp", label_column="rating"))
    assert pairs(events) == [("1", "a")]
    assert dropped(report) == {
        "read": 0,
        "missing user or item": 2,
        "missing time": 1,
        "missing label": 1,
        "exact duplicates": 0,
    }


def test_exact_duplicates_go_and_the_same_pair_at_another_time_or_label_stays() -> None:
    frame = log((1, "a", 1, 5), (1, "b", 1, 5), (1, "a", 1, 5), (1, "a", 2, 5), (1, "a", 1, 4))
    events, report = clean(frame, Recipe(time_column="timestamp", label_column="rating"))
    assert dropped(report)["exact duplicates"] == 1
    assert pairs(events) == [("1", "a"), ("1", "b"), ("1", "a"), ("1", "a")]
    assert events["label"].tolist() == [5, 5, 4, 5]


@pytest.mark.parametrize(
    ("keep", "times"), [("all", [1, 2, 3]), ("first", [1, 2]), ("last", [2, 3])]
)
def test_repeated_events_follow_the_policy(keep: str, times: list[int]) -> None:
    frame = log((1, "a", 3), (1, "a", 1), (1, "b", 2))
    events, _ = clean(frame, Recipe(time_column="timestamp", keep=keep))
    assert events["time"].tolist() == times


def test_the_last_opinion_counts_when_repeats_meet_a_threshold() -> None:
    frame = log((1, "a", 1, 5), (1, "a", 2, 2), (1, "b", 3, 4))
    recipe = Recipe(time_column="timestamp", label_column="rating", keep="last", min_label=4)
    assert pairs(clean(frame, recipe)[0]) == [("1", "b")]


def test_k_core_repeats_until_it_is_stable() -> None:
    # Item c has one event; without it user 3 has one; without user 3 item b has one; and so on.
    frame = log((1, "a"), (2, "a"), (1, "z"), (2, "z"), (2, "b"), (3, "b"), (3, "c"))
    events, report = clean(frame, Recipe(min_user_events=2, min_item_events=2))
    assert pairs(events) == [("1", "a"), ("1", "z"), ("2", "a"), ("2", "z")]
    assert report[-1]["dropped_events"] == 3
    assert (report[-1]["left_users"], report[-1]["left_items"]) == (2, 2)
    assert events["item"].cat.categories.tolist() == ["a", "z"]


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("min_user_events=3", {"min_user_events": 3}),
        ("min_item_events=4", {"min_item_events": 4}),
        ("min_label=9", {"min_label": 9.0, "label_column": "rating"}),
    ],
)
def test_the_rule_that_takes_the_last_event_is_named(rule: str, options: dict) -> None:
    with pytest.raises(UserError, match=rule):
        recipe = Recipe(time_column="timestamp", **options)
        clean(log((1, "a", 1, 5), (2, "a", 1, 5), (1, "b", 2, 5)), recipe)


def test_a_label_that_is_no_number_is_named_with_its_row() -> None:
    with pytest.raises(UserError, match=r"'rating' holds 'good' in row 2"):
        recipe = Recipe(time_column="timestamp", label_column="rating")
        clean(log((1, "a", 1, "5"), (1, "b", 2, "good")), recipe)


EVENTS = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 4), st.integers(1, 5)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(EVENTS, st.integers(0, 3), st.integers(0, 3), st.sampled_from(["all", "first", "last"]))
def test_k_core_holds_and_histories_are_in_time_order(
    rows: list[tuple], min_user: int, min_item: int, keep: str
) -> None:
    recipe = Recipe(
        time_column="timestamp",
        label_column="rating",
        keep=keep,
        min_user_events=min_user,
        min_item_events=min_item,
    )
    frame = log(*rows)
    try:
        events, report = clean(frame, recipe)
    except UserError:
        # By force: peel one user or item at a time from the log without its duplicates.
        left = frame.drop_duplicates()
        if keep != "all":
            left = left.drop_duplicates(["user_id", "item_id"])
        for _ in range(len(rows) + 1):
            users = left.groupby("user_id")["user_id"].transform("size")
            left = left[users >= min_user]
            items = left.groupby("item_id")["item_id"].transform("size")
            left = left[items >= min_item]
        assert left.empty
        return
    assert events.groupby("user", observed=True).size().min() >= min_user
    assert events.groupby("item", observed=True).size().min() >= min_item
    codes, times = events["user"].cat.codes.to_numpy(), events["time"].to_numpy()
    assert (np.diff(codes) >= 0).all()
    assert ((np.diff(times) >= 0) | (np.diff(codes) > 0)).all()
    assert report[0]["left_events"] - sum(dropped(report).values()) == len(events)
    if keep != "all":
        assert not events.duplicated(["user", "item"]).any()


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_exact_duplicates_are_those_that_pandas_finds(rows: list[tuple]) -> None:
    events, _ = clean(log(*rows), Recipe(time_column="timestamp", label_column="rating"))
    assert len(events) == len(set(rows))
