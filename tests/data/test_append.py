"""Appending: as if all had been prepared at once, but for the numbers of ids."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrec.data import Dataset, open_dataset, prepare
from jaxrec.typing import UserError

DAY1 = pd.DataFrame(
    {
        "user_id": ["b", "a", "a", "b", "a"],
        "item_id": [5, 5, 7, 7, 9],
        "timestamp": [1, 2, 3, 4, 5],
        "rating": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
)
DAY2 = pd.DataFrame(
    {
        "user_id": ["a", "0", "b", "0", "a"],
        "item_id": [6, 5, 6, 7, 9],
        "timestamp": [4, 6, 7, 8, 5],
        "rating": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
)
COLUMNS: dict[str, Any] = {"time_column": "timestamp", "label_column": "rating"}


def original(data: Dataset) -> pd.DataFrame:
    """The events with their original ids, by user, in the order of the histories."""
    frame = pd.DataFrame(
        {
            "user": data.user_vocabulary["id"].to_numpy()[np.asarray(data.users) - 1],
            "item": data.item_vocabulary["id"].to_numpy()[np.asarray(data.items) - 1],
            "time": np.asarray(data.times),
            "split": np.asarray(data.split),
        }
    )
    if data.labels is not None:
        frame["label"] = np.asarray(data.labels)
    return frame.sort_values("user", kind="stable", ignore_index=True)


def test_new_ids_come_after_old_ones_and_events_are_merged_by_hand(tmp_path: Path) -> None:
    first = prepare(DAY1, tmp_path / "out", **COLUMNS)
    data = prepare(DAY2, tmp_path / "out", append=True)
    assert data.user_vocabulary["id"].tolist() == ["a", "b", "0"]
    assert data.item_vocabulary["id"].tolist() == ["5", "7", "9", "6"]
    # The last event of day 2 was there already.
    assert data.users.tolist() == [1, 1, 1, 1, 2, 2, 2, 3, 3]
    assert data.items.tolist() == [1, 2, 4, 3, 1, 2, 4, 1, 2]
    assert data.times.tolist() == [2, 3, 4, 5, 1, 4, 7, 6, 8]
    assert data.split.tolist() == [0, 0, 1, 2, 0, 1, 2, 0, 0]
    assert data.offsets.tolist() == [0, 0, 4, 7, 9]
    assert data.manifest.lineage == [
        {"parent": first.manifest.fingerprint, "parent_events": 5, "sources": []}
    ]
    rules = {row["rule"]: row["left_events"] for row in data.manifest.report}
    assert (rules["read"], rules["with the earlier events"], rules["exact duplicates"]) == (
        5,
        10,
        9,
    )


def rows(items: int) -> st.SearchStrategy[list[tuple[int, int, int, int]]]:
    row = st.tuples(st.integers(1, 5), st.integers(1, items), st.integers(0, 4), st.integers(1, 3))
    return st.lists(row, min_size=1, max_size=25)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows(5),
    rows(8),
    st.sampled_from(["leave_last_out", "temporal", "random", "untimed"]),
    st.sampled_from(["all", "first", "last"]),
)
def test_two_days_give_what_both_at_once_give(
    tmp_path_factory: pytest.TempPathFactory, day1: list, day2: list, split: str, keep: str
) -> None:
    path = tmp_path_factory.mktemp("days")
    options = COLUMNS | {"keep": keep, "split": split}
    if split == "temporal":
        options |= {"valid_from": 2, "test_from": 3}
        day1, day2 = [*day1, (1, 1, 0, 1)], [*day2, (1, 1, 0, 1)]
    if split == "untimed":
        options |= {"split": "leave_last_out", "time_column": None, "rows_in_time_order": True}
    frames = [pd.DataFrame(day, columns=DAY1.columns) for day in (day1, day2)]
    at_once = prepare(pd.concat(frames, ignore_index=True), path / "both", **options)
    prepare(frames[0], path / "out", shard_events=7, **options)
    appended = prepare(frames[1], path / "out", append=True)
    pd.testing.assert_frame_equal(original(appended), original(at_once))
    assert appended.manifest.shard_events == 7
    assert (np.diff(np.asarray(appended.users)) >= 0).all()


def test_several_days_from_files_with_every_engine(tmp_path: Path) -> None:
    texts = DAY2.assign(timestamp=DAY2["timestamp"].astype("str"))
    texts.to_csv(tmp_path / "day2.csv", index=False)
    found = []
    for engine in ("pandas", "duckdb"):
        prepare(DAY1, tmp_path / engine, **COLUMNS)
        data = prepare(tmp_path / "day2.csv", tmp_path / engine, engine=engine, append=True)
        found.append(data)
        assert [source["name"] for source in data.manifest.sources] == ["day2.csv"]
        assert data.manifest.lineage[0]["sources"] == data.manifest.sources
        again = prepare(DAY1.assign(timestamp=9), tmp_path / engine, append=True)
        assert [step["parent_events"] for step in again.manifest.lineage] == [5, 9]
    assert found[0].manifest == found[1].manifest


def test_a_temporal_split_keeps_its_cuts_until_others_are_given(tmp_path: Path) -> None:
    prepare(DAY1, tmp_path / "out", split="temporal", **COLUMNS)
    first = open_dataset(tmp_path / "out").manifest.split
    assert (first["valid_from"], first["test_from"]) == (5, 6) or first["test_from"] == 5
    data = prepare(DAY2, tmp_path / "out", append=True)
    assert data.manifest.split["test_from"] == first["test_from"]
    times, split = np.asarray(data.times), np.asarray(data.split)
    assert (split[times >= first["test_from"]] == 2).all()
    third = DAY1.assign(timestamp=20)
    moved = prepare(third, tmp_path / "out", append=True, valid_from=8, test_from=20)
    assert (moved.manifest.split["valid_from"], moved.manifest.split["test_from"]) == (8, 20)
    assert (np.asarray(moved.split) == 2).sum() == 5


def test_the_k_core_counts_old_events_and_drops_new_ones_alone(tmp_path: Path) -> None:
    options = COLUMNS | {"min_user_events": 2, "min_item_events": 2}
    old = prepare(DAY1, tmp_path / "out", **options)
    assert old.item_vocabulary["id"].tolist() == ["5", "7"]
    # Item 9 comes once and goes; item 6 comes twice and stays; user c has one event and goes.
    day = pd.DataFrame(
        {
            "user_id": ["a", "b", "c", "b"],
            "item_id": [6, 6, 5, 9],
            "timestamp": [9, 9, 9, 9],
            "rating": 3.0,
        }
    )
    data = prepare(day, tmp_path / "out", append=True)
    assert data.item_vocabulary["id"].tolist() == ["5", "7", "6"]
    assert data.user_vocabulary["id"].tolist() == ["a", "b"]
    assert data.items.tolist() == [1, 2, 3, 1, 2, 3]


def test_new_items_bring_their_metadata_and_old_ones_keep_theirs(tmp_path: Path) -> None:
    items = pd.DataFrame({"item_id": [5, 7, 9], "title": ["five", "seven", "nine"]})
    prepare(DAY1, tmp_path / "out", items=items, **COLUMNS)
    more = pd.DataFrame({"item_id": [5, 6], "title": ["other", "six"], "year": [1, 2]})
    data = prepare(DAY2, tmp_path / "out", items=more, append=True)
    assert data.item_vocabulary["title"].tolist() == ["five", "seven", "nine", "six"]
    assert data.item_vocabulary["year"].isna().tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (DAY2.rename(columns={"rating": "stars"}), {}, "no column 'rating'"),
        (DAY2, {"user_column": "who"}, "prepared with user_column='user_id'.*'who'"),
        (DAY2, {"min_label": 3.0}, "prepared with min_label=None"),
        (DAY2, {"split": "random"}, "prepared with split='leave_last_out'"),
        (
            DAY2.assign(timestamp="2020-01-01"),
            {},
            "are dates .* and those of the dataset are whole",
        ),
        (DAY2, {"overwrite": True}, "not both"),
    ],
)
def test_what_cannot_be_appended_is_one_sentence(
    tmp_path: Path, frame: pd.DataFrame, options: dict, message: str
) -> None:
    old = prepare(DAY1, tmp_path / "out", **COLUMNS)
    with pytest.raises(UserError, match=message):
        prepare(frame, tmp_path / "out", append=True, **options)
    assert open_dataset(tmp_path / "out").manifest == old.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_there_must_be_a_dataset_to_append_to(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a prepared dataset"):
        prepare(DAY2, tmp_path / "out", append=True)
