"""Reading: every format gives the same frame, every damage one sentence."""

import gzip
import importlib.util
from pathlib import Path

import pandas as pd
import pytest

from jaxrec.data.readers import find_files, read
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
    return read(path, COLUMNS, text=COLUMNS[:2], engine=engine)  # type: ignore[arg-type]


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


@pytest.mark.filterwarnings("ignore")  # those of Spark about pandas 3 are not ours
@pytest.mark.parametrize("engine", ["duckdb", "spark"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.parquet"])
def test_engines_give_the_same_frame(tmp_path: Path, engine: str, name: str) -> None:
    pytest.importorskip({"spark": "pyspark"}.get(engine, engine), reason="an optional extra")
    check(load(write(tmp_path, name), engine))


@pytest.mark.parametrize("engine", ["duckdb", "spark"])
def test_an_engine_that_is_absent_is_named_with_its_extra(tmp_path: Path, engine: str) -> None:
    if importlib.util.find_spec({"spark": "pyspark"}.get(engine, engine)):
        pytest.skip(f"{engine} is installed")
    with pytest.raises(UserError, match=rf"pip install jaxrec\[{engine}\]"):
        load(write(tmp_path, "a.csv"), engine)


def test_a_frame_is_projected_and_left_alone() -> None:
    check(load(FRAME.set_index(pd.Index([5, 6, 7]))))
    assert "review" in FRAME


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


def test_missing_words_are_null(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('user_id,item_id,timestamp\nNULL,"",1\nnone,NaN,\n')
    assert load(path).isna().to_numpy().tolist() == [[True, True, False], [False, True, True]]


def test_a_missing_column_names_the_closest_and_all(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv")
    with pytest.raises(
        UserError, match=r"'userid'. Did you mean 'user_id'\? It has: user_id, item_"
    ):
        read(path, ["userid"])
    with pytest.raises(UserError, match="the data frame has no column 'zzz'. It has: "):
        read(FRAME, ["zzz"])


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,2,3\n", encoding="utf-8-sig")
    assert load(tmp_path / "a.csv").to_numpy().tolist() == [["1", "2", 3]]


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
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_pattern_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file matches '.*nothing.*csv'"):
        load(str(tmp_path / "nothing*.csv"))
    with pytest.raises(UserError, match="no input"):
        load([])
