"""What is missing is one rule in every format and engine, for ids, times and labels alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import Dataset, build, format_report, prepare
from jaxrec.data.recipe import MISSING_WORDS
from jaxrec.typing import UserError

COLUMNS: dict[str, Any] = {"time_column": "timestamp", "label_column": "rating"}
WORDS = pd.DataFrame(
    {
        "user_id": ["NA", "u", "u", "v", "", " NA ", "v", "none"],
        "item_id": ["i", "None", "i", "j", "i", "i", "NA", "i"],
        "timestamp": ["1", "2", "NULL", "4", "5", "6", "7", "8"],
        "rating": ["1", "2", "3", "N/A", "5", "1", "2", "3"],
    }
)


def in_every_format(directory: Path, frame: pd.DataFrame, **options: Any) -> list[Dataset]:
    """The dataset of a frame, and of its files by each engine that is always there."""
    frame.to_csv(directory / "log.csv", index=False)
    frame.to_csv(directory / "log.tsv", index=False, sep="\t")
    frame.to_parquet(directory / "log.parquet")
    found = [build(frame, **(COLUMNS | options))]
    for name in ("log.csv", "log.tsv", "log.parquet"):
        for engine in ("duckdb", "pandas"):
            out = directory / f"{name}-{engine}"
            found.append(prepare(directory / name, out, engine=engine, **(COLUMNS | options)))
    return found


def test_words_are_missing_in_every_format_and_said_with_counts(tmp_path: Path) -> None:
    for data in in_every_format(tmp_path, WORDS):
        assert data.user_vocabulary["id"].tolist() == ["none"]
        rules = {row["rule"]: row["dropped_events"] for row in data.manifest.report}
        assert [rules[f"missing {what}"] for what in ("user or item", "time", "label")] == [5, 1, 1]
        said = format_report(data.manifest.report)
        assert "- missing user or item: 5 rows, the first is row 1\n" in said
        assert "- taken for missing in 'user_id': 'NA' 2 times\n" in said
        assert "- taken for missing in 'item_id': 'NA' 1 times, 'None' 1 times\n" in said
        assert "- taken for missing in 'timestamp': 'NULL' 1 times\n" in said
        assert "- taken for missing in 'rating': 'N/A' 1 times\n" in said


def test_other_words_change_the_rule_and_the_empty_text_stays_missing(tmp_path: Path) -> None:
    frame = WORDS.drop(index=[2, 3])
    for data in in_every_format(tmp_path, frame, missing_words="none, v"):
        assert data.user_vocabulary["id"].tolist() == ["NA", "u"]
        assert data.item_vocabulary["id"].tolist() == ["None", "i"]
    (tmp_path / "two").mkdir()
    for data in in_every_format(tmp_path / "two", frame, missing_words=""):
        assert data.user_vocabulary["id"].tolist() == ["NA", "none", "u", "v"]
        assert data.manifest.recipe["missing_words"] == []


def test_a_number_may_stand_for_missing(tmp_path: Path) -> None:
    rows = {"user_id": [1, -1, 2], "item_id": [5, 5, 6], "timestamp": [1, 2, 3]}
    frame = pd.DataFrame(rows | {"rating": [1.0, 1.0, -1.0]})
    for data in in_every_format(tmp_path, frame, missing_words="-1"):
        assert data.user_vocabulary["id"].tolist() == ["1"]
    times = frame.assign(timestamp=[-1, 7, 8], user_id=1, rating=1)
    assert build(times, missing_words=["-1"], **COLUMNS).times.tolist() == [7, 8]


def test_nothing_is_nothing_in_every_type() -> None:
    for nothing in (None, np.nan, "", pd.NA, pd.NaT):
        frame = pd.DataFrame({"user_id": pd.Series([nothing, "a"], dtype=object), "item_id": 1})
        assert build(frame).user_vocabulary["id"].tolist() == ["a"]


def test_an_append_obeys_the_words_of_the_recipe(tmp_path: Path) -> None:
    day = pd.DataFrame({"user_id": ["NA", "x"], "item_id": ["i", "i"]})
    prepare(day, tmp_path / "out", missing_words="x")
    data = prepare(day.assign(item_id="j"), tmp_path / "out", append=True)
    assert data.user_vocabulary["id"].tolist() == ["NA"]
    with pytest.raises(UserError, match="prepared with missing_words"):
        prepare(day, tmp_path / "out", append=True, missing_words=MISSING_WORDS)


@pytest.mark.parametrize("engine", ["duckdb", "pandas"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", b"\xff"], "row 2 .*no UTF-8"),
        ([[1], [2]], "list"),
        ([{"a": 1}, {"a": 2}], "struct"),
        ([True, False], "bool"),
        (pd.to_datetime(["2024-01-01", "2024-01-02"]), "timestamp"),
        ([1.0, np.inf], "row 2 .*several whole numbers"),
        (["a", "b\0"], "row 2 .*NUL"),
    ],
)
def test_what_is_no_id_is_one_sentence(
    tmp_path: Path, engine: str, values: Any, message: str
) -> None:
    values = [v.encode() if isinstance(v, str) and b"\xff" in values else v for v in values]
    pd.DataFrame({"user_id": [1, 2], "item_id": values}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"the item column 'item_id' .*{message}") as caught:
        prepare(tmp_path / "a.parquet", tmp_path / "out", engine=engine)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="the item column 'item_id'"):
        build(pd.DataFrame({"user_id": [1, 2], "item_id": values}))


@pytest.mark.parametrize("engine", ["duckdb", "pandas"])
def test_a_stray_fraction_changes_no_other_id(tmp_path: Path, engine: str) -> None:
    """300,001 rows: ten users as floats, and one stray id in the last row of another chunk."""
    users = np.append((np.arange(300_000) % 10).astype(np.float64), 2.5)
    frame = pd.DataFrame({"user_id": users, "item_id": np.append(np.arange(300_000) % 50, 1)})
    frame.to_parquet(tmp_path / "a.parquet")
    data = prepare(tmp_path / "a.parquet", tmp_path / "out", engine=engine)
    assert data.user_vocabulary["id"].tolist() == [*map(str, range(10)), "2.5"]


def test_spellings_of_one_id_are_one_id_in_logs_and_appends_and_it_is_said(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\n1.0,10.0,1\n1,10,2\n2, 11,1\n"
    (tmp_path / "log.csv").write_text(text)
    (tmp_path / "day.csv").write_text("user_id,item_id,timestamp\n1.0,11,4\n,12,5\n2.0,10,4\n")
    items = pd.DataFrame({"item_id": ["10", "11.0"], "title": ["Ten", "Eleven"]})
    for engine in ("duckdb", "pandas"):
        out, options = tmp_path / engine, {"time_column": "timestamp", "engine": engine}
        data = prepare(tmp_path / "log.csv", out, items=items, **options)  # type: ignore[arg-type]
        assert data.user_vocabulary["id"].tolist() == ["1", "2"]
        assert data.item_vocabulary["title"].tolist() == ["Ten", "Eleven"]
        said = format_report(data.manifest.report)
        assert (
            "'user_id': 1 values are other spellings of an id, such as '1.0' of '1' in row" in said
        )
        day = prepare(tmp_path / "day.csv", out, engine=engine, append=True)
        assert day.user_vocabulary["id"].tolist() == ["1", "2"]
        assert day.user_index(1.0) == day.user_index(" 1 ") == 1
        assert "2 values are other spellings" in format_report(day.manifest.report)
