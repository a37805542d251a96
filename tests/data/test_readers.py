"""Reading: every format gives the same frame, every damage one sentence."""

import gzip
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jaxrec.data import build, prepare
from jaxrec.data.engines import open_engine
from jaxrec.data.files import find_files
from jaxrec.data.readers import check_files
from jaxrec.typing import UserError

FRAME = pd.DataFrame(
    {
        "user_id": ["007", "8", "a,b"],
        "item_id": ["x", "y", "z"],
        "timestamp": [3, 1, 2],
        "review": ["line one\nline two", 'she said "no"', "é"],
    }
)
COLUMNS = ["user_id", "item_id", "timestamp"]


def load(path: object, engine: str = "pandas") -> pd.DataFrame:
    """Reads a log into one frame, in source order, as an engine does before anything else."""
    paths = find_files(path)  # type: ignore[arg-type]
    columns = {name: name for name in COLUMNS}
    files = check_files(paths, columns)
    with open_engine(engine) as opened:
        frame = opened.collect(opened.scan(files, columns))
    return frame.sort_values("row", ignore_index=True)[COLUMNS]


def check(frame: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(frame.astype({"timestamp": "int64"}), FRAME[COLUMNS])


def write(directory: Path, name: str) -> Path:
    path = directory / name
    if name.endswith("parquet"):
        FRAME.to_parquet(path)
    else:
        FRAME.to_csv(path, sep="\t" if ".tsv" in name else ",", index=False)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.tsv.gz", "a.parquet"])
def test_every_format_gives_the_needed_columns(tmp_path: Path, name: str) -> None:
    check(load(write(tmp_path, name)))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.parquet"])
def test_duckdb_gives_the_same_frame(tmp_path: Path, name: str) -> None:
    check(load(write(tmp_path, name), "duckdb"))


def test_a_frame_is_left_alone() -> None:
    frame = FRAME.set_index(pd.Index([5, 6, 7]))
    before = frame.copy(deep=True)
    assert build(frame, time_column="timestamp").num_users == 3
    pd.testing.assert_frame_equal(frame, before)


def test_files_follow_the_order_given_and_globs_their_names(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.csv"):
        pd.DataFrame({"user_id": [name[0]], "item_id": [1], "timestamp": [0]}).to_csv(
            tmp_path / name, index=False
        )
    assert load([tmp_path / "c.csv", str(tmp_path / "*.csv")])["user_id"].tolist() == [
        "c",
        "a",
        "b",
    ]
    assert load(tmp_path)["user_id"].tolist() == ["a", "b", "c"]
    assert len(find_files([tmp_path / "a.csv", tmp_path / "a.csv"])) == 1


def test_a_late_bad_number_does_not_stop_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    rows = "".join(f"{i},1,{i}\n" for i in range(1_000_000))
    path.write_text(f"user_id,item_id,timestamp\n{rows}1,1,oops\n")
    assert load(path)["timestamp"].iloc[-1] == "oops"


def test_cells_come_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('user_id,item_id,timestamp\nNULL,"", 1\nnone,NaN,007\n')
    assert load(path).to_numpy().tolist() == [["NULL", "", " 1"], ["none", "NaN", "007"]]
    assert load(path, "duckdb").to_numpy().tolist() == load(path).to_numpy().tolist()


def test_a_missing_column_names_the_closest_and_all(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv")
    with pytest.raises(
        UserError, match=r"'userid'. Did you mean 'user_id'\? It has: user_id, item_"
    ):
        check_files([path], {"user": "userid"})
    with pytest.raises(UserError, match="the data frame has no column 'zzz'. It has: "):
        build(FRAME, user_column="zzz")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,2,3\n", encoding="utf-8-sig")
    assert load(tmp_path / "a.csv").to_numpy().tolist() == [["1", "2", "3"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n\n", "is empty"),
        ("a.parquet", b"", "is empty"),
        ("a.csv", b"user_id,item_id,timestamp\n", "no rows"),
        ("a.parquet", b"PAR1 and then nothing", "cannot be read"),
        ("a.csv.gz", b"not gzip", "cannot be read"),
        (
            "a.csv.gz",
            gzip.compress(b"user_id,item_id,timestamp\n" + b"1,2,3\n" * 9999, mtime=0)[:-20],
            "cannot",
        ),
        ("a.csv", "user_id,item_id,timestamp\né,1,1\n".encode("latin-1"), "not UTF-8"),
        ("a.csv", "user_id,item_id,timestamp,é\n1,1,1,1\n".encode("latin-1"), "not UTF-8"),
        ("a.csv", b"user_id,item_id,timestamp\n1,2\n", "cannot be read"),
        (
            "a.csv",
            b"user_id,item_id,timestamp,item_id\n1,2,3,4\n",
            "more than one column 'item_id'",
        ),
        ("a.xlsx", b"whatever", "no known format"),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    for engine in ("pandas", "duckdb"):
        with pytest.raises(UserError, match=message) as caught:
            prepare(tmp_path / name, tmp_path / "out", time_column="timestamp", engine=engine)
        assert "\n" not in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == [name]


COLUMN_TYPES = [
    ("user_id", ["a", "b"], "int64", "string"),
    ("timestamp", [1.5, 2.5], "int64", "double"),
    ("timestamp", pd.to_datetime(["2020-01-01", "2020-01-02"]), "int64", "timestamp"),
]


@pytest.mark.parametrize(("column", "values", "before", "after"), COLUMN_TYPES)
def test_a_type_that_changes_between_files_is_named(
    tmp_path: Path, column: str, values: Any, before: str, after: str
) -> None:
    frame = pd.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1, 2]})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.assign(**{column: values}).to_parquet(tmp_path / "b.parquet")
    wanted = rf"'{column}' is (large_)?{after}.* in .*b\.parquet and {before} in .*a\.parquet"
    with pytest.raises(UserError, match=wanted):
        prepare(tmp_path / "*.parquet", tmp_path / "out", time_column="timestamp")
    assert not (tmp_path / "out").exists()


def test_integers_of_other_widths_and_columns_that_are_not_read_may_change(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "note": ["x", "y"]})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.assign(note=[1.5, 2], user_id=pd.array([3, None], "Int32")).to_parquet(
        tmp_path / "b.parquet"
    )
    for engine in ("pandas", "duckdb"):
        data = prepare(tmp_path, tmp_path / "data" / engine, engine=engine)
        assert data.user_vocabulary["id"].tolist() == ["1", "2", "3"]


def test_a_pattern_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file matches '.*nothing.*csv'"):
        load(str(tmp_path / "nothing*.csv"))
    with pytest.raises(UserError, match="no input"):
        load([])
