"""One log, three engines, one dataset: down to the bytes of its files."""

import errno
import gzip
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import Dataset, prepare
from jaxrec.data.engines import open_engine
from jaxrec.typing import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def spark() -> Iterator[None]:
    """A local session with few partitions: Spark's default of 200 is for clusters."""
    pytest.importorskip("pyspark", reason="an optional extra")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # its workers import jaxrec as well
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        session = builder.config("spark.sql.shuffle.partitions", "2").getOrCreate()
        yield
        session.stop()


def invented(seed: int, count: int = 400) -> pd.DataFrame:
    """A log with ties, duplicates, repeats, missing values and ids that mix numbers and texts."""
    random = np.random.default_rng(seed)
    users = random.choice(np.array(["7", "007", "12", "-3", "ann", "é", "b c", "1.5"]), count)
    frame = pd.DataFrame(
        {
            "user": pd.Series(users, dtype="str").where(random.random(count) > 0.03),
            "item": random.integers(0, 40, count).astype(str),
            "when": random.integers(1_500_000_000, 1_500_000_040, count),
            "stars": random.integers(1, 6, count) / 2,
            "part": random.choice(["Train", "test", " valid"], count),
        }
    )
    return pd.concat([frame, frame.sample(20, random_state=seed)], ignore_index=True)


def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Ids as integers, with nulls among the labels; the plainest of Parquet files."""
    users = frame["user"].fillna("0").map(lambda text: sum(text.encode()) + 10**17)
    return frame.assign(user=users, item=frame["item"].astype("Int64"), stars=frame["stars"])


def dates(frame: pd.DataFrame) -> pd.DataFrame:
    """Times as texts, some of them only days."""
    stamps = pd.to_datetime(frame["when"], unit="s", utc=True)
    texts = stamps.dt.strftime("%Y-%m-%dT%H:%M:%S+00:00").to_numpy()
    return frame.assign(when=np.where(np.arange(len(frame)) % 9, texts, "2017-07-14"))


def floats(frame: pd.DataFrame) -> pd.DataFrame:
    """Everything that can be is a float, with NaN where something is missing."""
    items = frame["item"].astype(float).where(np.arange(len(frame)) % 11 > 0)
    return frame.assign(item=items, when=frame["when"] + 0.25, user=frame["user"])


def stamps(frame: pd.DataFrame) -> pd.DataFrame:
    """Times of a date type, with a zone."""
    return frame.assign(when=pd.to_datetime(frame["when"], unit="s", utc=True).dt.as_unit("us"))


def write(directory: Path, kind: str) -> list[Path]:
    """Writes two files of a log; the second holds other ids and ties with the first."""
    change: dict[str, Any] = {"numbers": numbers, "floats": floats, "stamps": stamps}
    parts = [change.get(kind, dates)(invented(seed)) for seed in (1, 2)]
    end = ".csv.gz" if kind == "dates.csv.gz" else ".tsv" if kind == "dates.tsv" else ".parquet"
    paths = [directory / f"{name}{end}" for name in ("b", "a")]
    for path, part in zip(paths, parts, strict=True):
        if end == ".parquet":
            part.to_parquet(path, row_group_size=100)
        else:
            part.to_csv(path, index=False, sep="\t" if end == ".tsv" else ",")
    return paths


KINDS = ("numbers", "floats", "stamps", "dates.parquet", "dates.csv.gz", "dates.tsv")
COLUMNS: dict[str, Any] = {"user_column": "user", "item_column": "item", "time_column": "when"}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"label_column": "stars"},
    "strict": {
        "label_column": "stars",
        "min_label": 1.0,
        "keep": "last",
        "min_user_events": 3,
        "min_item_events": 6,
        "split": "temporal",
    },
    "random": {"split": "random", "keep": "first", "seed": 5},
    "given": {"split": "given", "split_column": "part"},
    "untimed": {"time_column": None, "rows_in_time_order": True, "min_item_events": 15},
}


def same_bytes(one: Path, other: Path) -> None:
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in other.iterdir())
    for name in files:
        if name.endswith((".npy", ".json")):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def compare(directory: Path, engine: str, kind: str, recipe: dict[str, Any]) -> Dataset:
    paths = write(directory, kind)
    options = COLUMNS | recipe
    expected = prepare(paths, directory / "pandas", engine="pandas", **options)
    found = prepare(paths, directory / engine, engine=engine, **options)
    assert found.manifest == expected.manifest
    same_bytes(directory / engine, directory / "pandas")
    pd.testing.assert_frame_equal(found.user_vocabulary, expected.user_vocabulary)
    pd.testing.assert_frame_equal(found.item_vocabulary, expected.item_vocabulary)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_duckdb_makes_the_dataset_of_pandas(tmp_path: Path, kind: str) -> None:
    for name, recipe in RECIPES.items():
        (tmp_path / name).mkdir()
        compare(tmp_path / name, "duckdb", kind, recipe)


@pytest.mark.filterwarnings("ignore")  # Spark's own about pandas 3 and unclosed sockets
@pytest.mark.parametrize(
    ("kind", "recipe"),
    [("numbers", "strict"), ("floats", "random"), ("stamps", "given"), ("dates.csv.gz", "plain")],
)
def test_spark_makes_the_dataset_of_pandas(
    tmp_path: Path, spark: None, kind: str, recipe: str
) -> None:
    compare(tmp_path, "spark", kind, RECIPES[recipe])


def hostile(directory: Path) -> list[tuple[Any, dict[str, Any]]]:
    """Logs of one meaning in files that trip readers up, and the options that say how to read."""
    frame = dates(invented(4)).assign(item=lambda f: f["item"].where(f.index % 7 > 0, " 3.0"))
    frame["user"] = frame["user"].where(frame.index % 13 > 0, "NA")
    folder = directory / "when=1" / "a[1]*?.parquet"
    folder.mkdir(parents=True)
    odd = frame.rename(columns={"user": "us.er`"}).assign(USER="wrong", When="wrong")
    odd.to_parquet(folder / "part[0].parquet", row_group_size=150)
    (folder / "_SUCCESS").touch()
    stamps(frame.assign(when=invented(4)["when"])).assign(
        user=frame["user"].str.encode("utf-8")
    ).to_parquet(directory / "bytes.parquet", row_group_size=90)
    text = frame.to_csv(index=False, sep=";", quoting=2)
    (directory / "x y?.csv.GZ").write_bytes(gzip.compress(text.encode("utf-16")))
    lines = frame.to_csv(index=False, header=False, sep="\t").replace("\t", "::")
    (directory / "a.dat").write_text(lines, encoding="latin-1")
    names = ",".join(map(str, frame))
    return [
        (directory / "when=1", {"user_column": "us.er`"}),
        (directory / "bytes.parquet", {}),
        (str(directory / "x y?.csv.GZ"), {"separator": ";", "encoding": "utf-16"}),
        (
            directory / "a.dat",
            {"separator": "::", "encoding": "latin-1", "column_names": names},
        ),
    ]


def compare_hostile(directory: Path, engine: str) -> None:
    for number, (source, options) in enumerate(hostile(directory)):
        all_options = COLUMNS | {"label_column": "stars"} | options
        outs = [directory / f"{number}-{name}" for name in ("pandas", engine)]
        prepare(source, outs[0], engine="pandas", **all_options)
        prepare(source, outs[1], engine=engine, **all_options)
        same_bytes(*outs)


def test_duckdb_reads_hostile_files_as_pandas_does(tmp_path: Path) -> None:
    compare_hostile(tmp_path, "duckdb")


@pytest.mark.filterwarnings("ignore")  # Spark's own about pandas 3 and unclosed sockets
def test_spark_reads_hostile_files_as_pandas_does(tmp_path: Path, spark: None) -> None:
    compare_hostile(tmp_path, "spark")


@pytest.mark.parametrize("engine", ["pandas", "duckdb"])
@pytest.mark.parametrize(
    ("role", "value", "message"),
    [
        ("when", "soon", r"'when' holds 'soon' in row 3 of .*a\.csv .*neither a number nor a date"),
        ("stars", "good", r"'stars' holds 'good' in row 3 of .*a\.csv .*no finite number"),
    ],
)
def test_a_bad_value_is_named_with_its_file_and_row(
    tmp_path: Path, engine: str, role: str, value: str, message: str
) -> None:
    frame = invented(0).head(5).astype("str")
    frame.to_csv(tmp_path / "b.csv", index=False)
    frame.loc[2, role] = value
    frame.to_csv(tmp_path / "a.csv", index=False)
    paths = [tmp_path / "b.csv", tmp_path / "a.csv"]
    options = COLUMNS | {"label_column": "stars"}
    with pytest.raises(UserError, match=message):
        prepare(paths, tmp_path / "out", engine=engine, **options)


def test_ids_beyond_floats_stay_exact_beside_missing_ones(tmp_path: Path) -> None:
    users = pd.array([2**60 + 1, None, 2**60 + 3], "Int64")
    pd.DataFrame({"user_id": users, "item_id": [1, 2, 3]}).to_parquet(tmp_path / "a.parquet")
    for engine in ("pandas", "duckdb"):
        data = prepare(tmp_path / "a.parquet", tmp_path / engine, engine=engine)
        assert data.user_vocabulary["id"].tolist() == [str(2**60 + 1), str(2**60 + 3)]


def test_a_sort_larger_than_memory_goes_through_the_disk(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    count = 1_500_000
    frame = pd.DataFrame(
        {
            "user_id": random.integers(0, 50_000, count),
            "item_id": random.integers(0, 1000, count),
            "t": random.integers(0, 10**9, count),
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    options: dict[str, Any] = {"time_column": "t", "time_unit": "counter"}
    small = prepare(tmp_path / "a.parquet", tmp_path / "out", memory_limit="60MB", **options)
    large = prepare(tmp_path / "a.parquet", tmp_path / "two", engine="pandas", **options)
    assert small.manifest.fingerprint == large.manifest.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "out", "two"]


def test_a_disk_that_fills_while_duckdb_sorts_leaves_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ids = random.integers(0, 50_000, (2, 1_500_000))
    frame = pd.DataFrame({"user_id": ids[0], "item_id": ids[1], "t": random.permutation(ids[1])})
    frame.to_parquet(tmp_path / "a.parquet")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            prepare(tmp_path / "a.parquet", tmp_path / "out", time_column="t", memory_limit="60MB")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_memory_limit_must_be_a_size_and_go_with_duckdb() -> None:
    with (
        pytest.raises(UserError, match="'much' is no size. Write it like 4GB"),
        open_engine("duckdb", memory_limit="much"),
    ):
        pass
    with pytest.raises(UserError, match="only read with engine=duckdb"):
        open_engine("pandas", memory_limit="4GB")


def test_too_little_memory_is_one_sentence(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user_id": np.arange(300_000).astype(str), "item_id": 1})
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"limit \(1MB\).*Raise --memory_limit"):
        prepare(tmp_path / "a.parquet", tmp_path / "out", memory_limit="1MB")
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_an_engine_that_is_absent_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)  # as if it was not installed
    with pytest.raises(UserError, match=r"pip install jaxrec\[spark\]"), open_engine("spark"):
        pass


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    invented(3).to_csv(tmp_path / "a.csv", index=False)
    data = prepare(
        tmp_path / "a.csv", tmp_path / "out", progress=lambda *step: told.append(step), **COLUMNS
    )
    left = next(row for row in data.manifest.report if row["rule"] == "missing time")
    assert told[-1] == ("sorted", left["left_events"], left["left_events"])
