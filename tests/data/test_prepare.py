"""Datasets end to end: round trips, metadata, fingerprints, and nothing half-written."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import Dataset, build, format_report, open_dataset, prepare, shards, store
from jaxrec.data.recipe import Options
from jaxrec.typing import UserError

EVENTS = pd.DataFrame(
    {
        "user_id": [2, 1, 1, 2, 1, 10],
        "item_id": ["b", "a", "b", "c", "c", "a"],
        "timestamp": [5, 1, 2, 4, 3, 9],
        "rating": [1.0, 2, 3, 4, 5, 3],
    }
)
TIMED: Options = {"time_column": "timestamp"}
NAMES = ("users", "items", "times", "split", "labels")


def make(frame: pd.DataFrame, **options) -> Dataset:
    return build(frame, time_column="timestamp", label_column="rating", **options)


def same(one: Dataset, other: Dataset) -> None:
    for name in NAMES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    pd.testing.assert_frame_equal(one.user_vocabulary, other.user_vocabulary)
    pd.testing.assert_frame_equal(one.item_vocabulary, other.item_vocabulary)
    assert one.manifest.fingerprint == other.manifest.fingerprint


def test_a_small_log_by_hand() -> None:
    data = make(EVENTS)
    assert data.user_vocabulary["id"].tolist() == ["1", "2", "10"]
    assert data.item_vocabulary["id"].tolist() == ["a", "b", "c"]
    assert data.users.tolist() == [1, 1, 1, 2, 2, 3]
    assert data.items.tolist() == [1, 2, 3, 3, 2, 1]
    assert data.times.tolist() == [1, 2, 3, 4, 5, 9]
    assert data.split.tolist() == [0, 1, 2, 0, 0, 0]
    assert data.labels is not None
    assert data.labels.tolist() == [2, 3, 5, 4, 1, 3]
    assert data.manifest.label_mean == (2 + 4 + 1 + 3) / 4
    kinds = [getattr(data, name).dtype for name in NAMES]
    assert kinds == [np.int32, np.int32, np.int64, np.uint8, np.float32]
    assert data.user_index(10) == data.user_index("10") == 3


def test_what_is_written_is_what_was_built(tmp_path: Path) -> None:
    items = pd.DataFrame({"item_id": ["c", "a"], "title": ["See", None], "year": [1999, 2000]})
    EVENTS.to_csv(tmp_path / "log.csv", index=False)
    items.to_csv(tmp_path / "items.csv", index=False)
    options: Options = {"time_column": "timestamp", "label_column": "rating"}
    built = build(EVENTS, items=items, **options)
    written = prepare(
        tmp_path / "log.csv", tmp_path / "out", items=tmp_path / "items.csv", **options
    )
    same(built, written)
    assert written.offsets.tolist() == [0, 0, 3, 5, 6]
    assert isinstance(written.users, np.memmap)
    assert [source["name"] for source in written.manifest.sources] == ["log.csv", "items.csv"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == built.manifest.report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.csv", "log.csv", "out"]


def test_metadata_follows_the_vocabulary_and_absent_rows_are_null() -> None:
    frame = EVENTS.assign(item_id=[20, 3, 20, 100, 100, 3])
    items = pd.DataFrame({"item_id": ["100", "3", "5", "3"], "title": ["C", "A", "-", "again"]})
    data = make(frame, items=items, metadata_duplicates="first")
    assert data.item_vocabulary["id"].tolist() == ["3", "20", "100"]
    titles = data.item_vocabulary["title"]
    assert titles.isna().tolist() == [False, True, False]
    assert titles.dropna().tolist() == ["A", "C"]
    users = pd.DataFrame({"user_id": [10.0, 1.0], "age": [40, 30]})
    assert make(frame, users=users).user_vocabulary["age"].fillna(0).tolist() == [30, 0, 40]


def test_metadata_without_its_key_or_with_a_taken_name_is_refused() -> None:
    with pytest.raises(UserError, match="the metadata has no column 'item_id'"):
        make(EVENTS, items=pd.DataFrame({"item": [1]}))
    with pytest.raises(UserError, match="'id'"):
        make(EVENTS, items=pd.DataFrame({"item_id": ["a"], "id": [1]}))


def test_ids_read_from_a_file_keep_their_zeros(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\n007,1\n7,1\n007,02\n")
    data = prepare(tmp_path / "log.csv", tmp_path / "out")
    assert data.user_vocabulary["id"].tolist() == ["7", "007"]
    assert data.item_vocabulary["id"].tolist() == ["1", "02"]


@pytest.mark.parametrize(
    "change",
    [
        {"item_id": ["b", "a", "b", "c", "c", "b"]},
        {"timestamp": [5, 1, 2, 4, 3, 8]},
        {"rating": [1.0, 2, 3, 4, 5, 4]},
        {"user_id": [2, 1, 1, 2, 1, 11]},
    ],
)
def test_another_log_has_another_fingerprint(change: dict) -> None:
    assert make(EVENTS.assign(**change)).manifest.fingerprint != make(EVENTS).manifest.fingerprint


def test_split_and_metadata_are_part_of_the_fingerprint_and_not_of_the_vocabularys() -> None:
    plain = make(EVENTS).manifest
    items = pd.DataFrame({"item_id": ["a"], "title": ["A"]})
    for other in (
        make(EVENTS, split="random", seed=5).manifest,
        make(EVENTS, items=items).manifest,
    ):
        assert other.fingerprint != plain.fingerprint
        assert other.item_fingerprint == plain.item_fingerprint


ROWS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 3), st.integers(1, 5)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, 2**32 - 1), st.sampled_from(["leave_last_out", "random"]))
def test_how_users_are_interleaved_does_not_matter(rows: list, seed: int, split: str) -> None:
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "rating"])
    # Each row gets the next row of a shuffled sequence of users: every user keeps their own order.
    users = np.random.default_rng(seed).permutation(frame["user_id"].to_numpy())
    ranks = pd.DataFrame({"user_id": users}).groupby("user_id").cumcount()
    keyed = frame.set_index([frame["user_id"], frame.groupby("user_id").cumcount()])
    mixed = keyed.loc[list(zip(users, ranks, strict=True))].reset_index(drop=True)
    for time_column in ("timestamp", None):
        options: Options = {
            "time_column": time_column,
            "rows_in_time_order": time_column is None,
            "label_column": "rating",
            "split": split,
        }
        same(build(frame, **options), build(mixed, **options))


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_vocabularies_give_the_events_back(rows: list) -> None:
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "rating"])
    data = make(frame)
    back = zip(
        data.user_vocabulary["id"].iloc[data.users - 1].astype(int),
        data.item_vocabulary["id"].iloc[data.items - 1].astype(int),
        data.times.tolist(),
        data.labels.astype(int),  # type: ignore[union-attr]
        strict=True,
    )
    assert sorted(back) == sorted(set(rows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "temporl", "time_column": "timestamp"}, "Did you mean 'temporal'"),
        ({"split": "temporal"}, "needs time_column"),
        ({"split": "given"}, "needs split_column"),
        ({"keep": "frist"}, "Did you mean 'first'"),
        ({"min_label": 3.0}, "needs label_column"),
        ({"min_user_events": -1}, "0 or more"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "leave something"),
        ({"valid_from": "2020"}, "both"),
        ({"item_column": "user_id"}, "two roles"),
        ({"item_column": "itm_id"}, "Did you mean 'item_id'"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(EVENTS, **options)


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(UserError, match="no rows"):
        build(EVENTS.iloc[:0])


def test_the_report_is_an_aligned_table() -> None:
    table, notes = format_report(make(EVENTS).manifest.report).split("\n\n")
    lines = table.splitlines()
    assert lines[0].startswith("rule  ")
    assert lines[0].endswith("dropped events  left events  left users  left items")
    assert len({len(line) for line in lines}) == 1
    assert notes.splitlines() == [
        "- valid: 1 of 3 users can be evaluated; 2 without an event in it, such as '2'",
        "- test: 1 of 3 users can be evaluated; 2 without an event in it, such as '2'",
    ]


def test_an_output_is_replaced_only_on_request_and_only_when_it_is_a_dataset(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    first = prepare(EVENTS, out, time_column="timestamp")
    with pytest.raises(UserError, match="exists already"):
        prepare(EVENTS, out, **TIMED)
    second = prepare(EVENTS.iloc[:3], out, time_column="timestamp", overwrite=True)
    assert (first.manifest.num_events, second.manifest.num_events) == (6, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    with pytest.raises(UserError, match="no dataset"):
        prepare(EVENTS, tmp_path / "home", overwrite=True, **TIMED)


def test_a_full_disk_leaves_the_old_dataset_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = prepare(EVENTS, tmp_path / "out", **TIMED)
    write, written = shards.ArrayWriter.append, []

    def full(writer: shards.ArrayWriter, values: np.ndarray) -> None:
        written.append(writer)
        if len(written) == 3:
            path = str(writer.paths[0])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        write(writer, values)

    monkeypatch.setattr(shards.ArrayWriter, "append", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(EVENTS.iloc[:3], tmp_path / "out", overwrite=True, **TIMED)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert open_dataset(tmp_path / "out").manifest == old.manifest


KILLED = """
import os, signal, sys
import numpy as np, pandas as pd
from jaxrec.data import assemble, prepare, store
module = {"store": store, "assemble": assemble}[sys.argv[2]]
original = getattr(module, sys.argv[3])
def dies(path, *rest):
    if sys.argv[4] in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(path, *rest)
setattr(module, sys.argv[3], dies)
frame = pd.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1, 2]})
times = {} if "append" in sys.argv else {"time_column": "timestamp"}
prepare(frame, sys.argv[1], **times, **{name: True for name in sys.argv[5:]})
"""
KILLS = [
    ("assemble", "write_json", "manifest"),
    ("store", "_flush", "items.npy"),
    ("store", "_take_place", "new"),
]


def kill(out: Path, *where: str) -> None:
    command = [sys.executable, "-c", KILLED, str(out), *where]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("where", KILLS)
def test_a_killed_preparation_leaves_no_output_and_the_next_one_tidies_up(
    tmp_path: Path, where: tuple[str, ...]
) -> None:
    kill(tmp_path / "out", *where)
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    for path in (tmp_path / "out", left, left / "work"):
        with pytest.raises(UserError, match="not a prepared dataset"):
            open_dataset(path)
    assert prepare(EVENTS, tmp_path / "out", **TIMED).manifest.num_events == 6
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("where", KILLS)
@pytest.mark.parametrize("how", ["overwrite", "append"])
def test_a_killed_change_leaves_the_earlier_dataset(
    tmp_path: Path, where: tuple[str, ...], how: str
) -> None:
    old = prepare(EVENTS, tmp_path / "out", **TIMED)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    kill(tmp_path / "out", *where, how)
    assert open_dataset(tmp_path / "out").manifest == old.manifest
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_what_a_running_preparation_has_written_so_far_is_left_alone(tmp_path: Path) -> None:
    with store.appearing(tmp_path / "out") as (new, _):
        (new / "file").write_text("mine")
        prepare(EVENTS, tmp_path / "out", **TIMED)
        assert (new / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["users.npy", "split.npy"])
def test_a_shortened_array_does_not_open(tmp_path: Path, name: str) -> None:
    prepare(EVENTS, tmp_path / "out", **TIMED)
    path = tmp_path / "out" / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="damaged"):
        open_dataset(tmp_path / "out")


def test_the_manifest_says_what_was_done() -> None:
    manifest = dataclasses.asdict(make(EVENTS, split="random", seed=7).manifest)
    assert manifest["columns"] == {
        "user": "user_id",
        "item": "item_id",
        "time": "timestamp",
        "label": "rating",
    }
    assert manifest["split"]["name"] == "random"
    assert manifest["split"]["seed"] == 7
    assert sum(manifest["split"]["events"].values()) == manifest["num_events"] == 6
    json.dumps(manifest)


@pytest.mark.parametrize("source", ["synthetic", pd.DataFrame({"user_id": [1], "item_id": [2]})])
def test_a_memory_limit_is_refused_where_nothing_reads_it(
    source: str | pd.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="memory_limit=4GB is for files that DuckDB reads"):
        prepare(source, tmp_path / "out", memory_limit="4GB")
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_comes_first_whether_it_has_events_or_not(tmp_path: Path) -> None:
    """By hand: items 1 and 2 and user x retire, item 3 stays, items 0 and 9 are new."""
    old = pd.DataFrame({"user_id": ["x", "y", "y"], "item_id": [1, 2, 3], "t": [1, 2, 3]})
    titles = pd.DataFrame({"item_id": [1, 2, 3, 9], "title": ["one", "two", "three", "nine"]})
    new = pd.DataFrame({"user_id": ["y", "a", "a"], "item_id": [9, 3, 0], "t": [4, 5, 6]})
    prepare(old, tmp_path / "old", time_column="t", items=titles)
    for number, items in enumerate((None, titles.iloc[::-1].assign(title=lambda f: f.title + "!"))):
        data = prepare(
            *(new, tmp_path / f"new{number}"),
            time_column="t",
            vocabulary=tmp_path / "old",
            items=items,
            min_item_events=1,
        )
        assert data.item_vocabulary["id"].tolist() == ["1", "2", "3", "0", "9"]
        assert data.user_vocabulary["id"].tolist() == ["x", "y", "a"]
        assert (data.users.tolist(), data.items.tolist()) == ([2, 3, 3], [5, 3, 4])
        assert np.asarray(data.offsets).tolist() == [0, 0, 0, 1, 3]
        mark = "!" if number else ""
        assert data.item_vocabulary["title"].tolist()[:3] == [
            f"{t}{mark}" for t in titles.title[:3]
        ]
        assert data.manifest.lineage == []
    assert data.item_vocabulary["title"].iloc[4] == "nine!"
    with pytest.raises(UserError, match="holds no vocabulary of users"):
        prepare(new, tmp_path / "b", time_column="t", vocabulary=tmp_path)
    with pytest.raises(UserError, match="leave vocabulary out"):
        prepare(new, tmp_path / "old", append=True, vocabulary=tmp_path / "old")
