"""Names, encodings, separators and quotes that trip readers up: engines read what is there."""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxrec.data import Dataset, prepare
from jaxrec.data.files import find_files
from jaxrec.data.report import format_report
from jaxrec.data.streams import BLOCK_BYTES
from jaxrec.typing import UserError

ENGINES = ("duckdb", "pandas")
TIMED: dict[str, Any] = {"time_column": "timestamp"}
LOG = pd.DataFrame(
    {"user_id": ["u1", "u1", "u2"], "item_id": ["i1", "i2", "i3"], "timestamp": [1, 2, 3]}
)
TEXT = LOG.to_csv(index=False)


def both(source: Any, directory: Path, **options: Any) -> Dataset:
    """Prepares with both engines and checks that they agree."""
    number = len(list(directory.glob("out-*")))
    found = [
        prepare(source, directory / f"out-{number}-{e}", engine=e, **(TIMED | options))
        for e in ENGINES
    ]
    assert found[0].manifest == found[1].manifest
    return found[0]


def events(data: Dataset) -> list[tuple[str, str, int]]:
    users = data.user_vocabulary["id"].to_numpy()[data.users - 1]
    items = data.item_vocabulary["id"].to_numpy()[data.items - 1]
    return list(zip(users.tolist(), items.tolist(), data.times.tolist(), strict=True))


EXPECTED = [("u1", "i1", 1), ("u1", "i2", 2), ("u2", "i3", 3)]


@pytest.mark.parametrize(
    "name",
    ["log[1]", "a?b", "a*b", "it's", "días", "a\\b", "{x,y}", "%20#1"],
)
@pytest.mark.parametrize("end", [".parquet", ".csv"])
def test_a_path_that_is_there_is_no_pattern(tmp_path: Path, name: str, end: str) -> None:
    others = {"log[1]": "log1", "a?b": "axb", "a*b": "aab"}
    for file, frame in ((name, LOG), (others.get(name, "other"), LOG.assign(user_id="wrong"))):
        path = tmp_path / f"{file}{end}"
        frame.to_parquet(path) if end == ".parquet" else frame.to_csv(path, index=False)
    assert events(both(str(tmp_path / f"{name}{end}"), tmp_path)) == EXPECTED


@pytest.mark.parametrize("folder", ["timestamp=99", "user_id=zzz/item_id=9", "x.parquet", "[a]*"])
def test_a_folder_is_no_partition_and_no_file(tmp_path: Path, folder: str) -> None:
    (tmp_path / "in" / folder).mkdir(parents=True)
    LOG.to_parquet(tmp_path / "in" / folder / "part.parquet")
    (tmp_path / "in" / "_SUCCESS").touch()
    (tmp_path / "in" / ".hidden.parquet").write_bytes(b"no parquet")
    (tmp_path / "in" / "_temporary").mkdir()
    (tmp_path / "in" / "_temporary" / "x.parquet").write_bytes(b"no parquet")
    (tmp_path / "in" / "README.md").touch()
    data = both(tmp_path / "in", tmp_path)
    assert events(data) == EXPECTED
    assert "files passed over, 1: such as" in format_report(data.manifest.report)


NAMES = ["user.id", 'a"b', "a`b", " user_id", "user_id ", "ü", "1", "row"]


@pytest.mark.parametrize("name", [*NAMES, "time", "file_row_number"])
@pytest.mark.parametrize("end", [".parquet", ".csv"])
def test_names_of_columns_are_exact(tmp_path: Path, name: str, end: str) -> None:
    frame = LOG.rename(columns={"user_id": name}).assign(USER_ID="wrong", **{name.upper() + "_": 1})
    frame = frame.assign(Timestamp="wrong", ITEM_ID="wrong")
    path = tmp_path / f"a{end}"
    frame.to_parquet(path) if end == ".parquet" else frame.to_csv(path, index=False)
    assert events(both(path, tmp_path, user_column=name)) == EXPECTED


TYPES = [
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]


@pytest.mark.parametrize("kind", TYPES)
def test_types_of_arrow_are_read_as_what_they_stand_for(tmp_path: Path, kind: pa.DataType) -> None:
    users = pa.array(["u1", "u1", "u2"]).cast(
        kind.value_type if pa.types.is_dictionary(kind) else kind
    )
    users = users.dictionary_encode() if pa.types.is_dictionary(kind) else users
    table = pa.table({"user_id": users, "item_id": ["i1", "i2", "i3"], "timestamp": [1, 2, 3]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    assert events(both(tmp_path / "a.parquet", tmp_path)) == EXPECTED


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        (pa.uint64(), ["9223372036854775809", "12"]),
        (pa.decimal128(9, 2), ["12", "1.5"]),
        (pa.float32(), ["2.2", "12"]),
        (pa.int8(), ["3", "12"]),
    ],
)
def test_numbers_of_every_type_are_ids(tmp_path: Path, kind: pa.DataType, ids: list[str]) -> None:
    users = pa.array([*ids, None]).cast(kind)
    table = pa.table({"user_id": users, "item_id": [1, 2, 3], "timestamp": [1, 2, 3]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    data = both(tmp_path / "a.parquet", tmp_path)
    assert sorted(data.user_vocabulary["id"]) == sorted(ids)


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("latin-1", "latin-1"), ("cp1250", "cp1250"), ("utf-16", "utf-16"), ("utf-16-le", "utf-16-le")]
    + [("utf-8-sig", "utf-8-sig"), (None, "utf-8-sig"), ("UTF8", "utf-8"), ("shift_jis", "cp932")],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_encodings(tmp_path: Path, encoding: str | None, written: str, end: str) -> None:
    name = "日本" if written == "cp932" else "é" if written != "cp1250" else "ř"
    raw = TEXT.replace("u1", name).encode(written)
    (tmp_path / f"a.csv{end}").write_bytes(gzip.compress(raw) if end else raw)
    data = both(tmp_path / f"a.csv{end}", tmp_path, encoding=encoding)
    assert sorted(events(data)) == sorted((name if u == "u1" else u, i, t) for u, i, t in EXPECTED)


@pytest.mark.parametrize("separator", [";", "::", "|", "\t", "\\t", "¦", ", ", " "])
def test_separators(tmp_path: Path, separator: str) -> None:
    text = TEXT.replace(",", separator.replace("\\t", "\t"))
    (tmp_path / "a.dat").write_text(text)
    assert events(both(tmp_path / "a.dat", tmp_path, separator=separator)) == EXPECTED
    lines = text.partition("\n")[2]
    (tmp_path / "b.txt").write_text(lines)
    named = both(
        *(tmp_path / "b.txt", tmp_path),
        separator=separator,
        column_names="user_id,item_id,timestamp",
    )
    assert events(named) == EXPECTED


def test_a_long_separator_over_the_end_of_a_block(tmp_path: Path) -> None:
    long = "x" * (BLOCK_BYTES // 2 - 20)
    rows = "".join(f"u::i{n}::{long}{'y' * n}::{n}\n" for n in range(8))
    (tmp_path / "a.dat").write_text("user_id::item_id::note::timestamp\n" + rows)
    data = both(tmp_path / "a.dat", tmp_path, separator="::")
    assert events(data) == [("u", f"i{n}", n) for n in range(8)]


def test_what_is_not_as_usual_is_refused_with_the_option_to_say(tmp_path: Path) -> None:
    for text, message in (
        (TEXT.replace(",", ";"), "try separator=';'"),
        (TEXT.replace(",", "::"), "try separator='::'"),
        (TEXT.replace(",", "\t"), r"try separator='\\t'"),
        (TEXT.partition("\n")[2], "column_names="),
        (TEXT.replace("u1", "é").encode("latin-1"), "encoding=latin-1"),
        (TEXT.encode("utf-16"), "encoding=utf-16"),
    ):
        path = tmp_path / "a.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        for engine in ENGINES:
            with pytest.raises(UserError, match=message):
                prepare(path, tmp_path / "out", engine=engine, **TIMED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "nothing"}, "is not known"),
        ({"separator": ""}, "cannot separate"),
        ({"quoting": "all"}, "Choose minimal or none"),
        ({"column_names": "a,a"}, "each once"),
        ({"column_names": "a,b"}, "2 names, and the first row of .* has 3"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.csv").write_text(TEXT)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "a.csv", tmp_path / "out", **TIMED, **options)
    LOG.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"for text files|is not known|cannot|Choose|once"):
        prepare(tmp_path / "a.parquet", tmp_path / "out", **TIMED, **options)


TAGS = (
    "user_id\titem_id\ttag\ttimestamp\nu1\ta\tok\t1\nu1\tb\t{}\t2\nu1\tc\tfine\t3\nu1\td\t{}\t4\n"
)


def test_lone_quotes_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    for one, other in (('"open', "x"), ('"a" b', '5" disk'), ('6"', '"')):
        path.write_text(TAGS.format(one, other))
        data = both(path, tmp_path)
        assert [time for _, _, time in events(data)] == [1, 2, 3, 4]
        assert "quotes are taken for characters" in format_report(data.manifest.report)
    path.write_text(TAGS.format('"open', 'closing"'))
    with pytest.raises(UserError, match="3 rows if double quotes .* 5 .*quoting=none"):
        both(path, tmp_path)
    assert len(events(both(path, tmp_path, quoting="none"))) == 4
    assert len(events(both(path, tmp_path, quoting="minimal"))) == 2


def test_right_quotes_are_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'user_id,item_id,review,timestamp\n"u1",a,"good, really\n\ngood ""x""",1\n"u1","b",5" y,2\n'
    )
    assert events(both(path, tmp_path)) == [("u1", "a", 1), ("u1", "b", 2)]
    path.write_text('user_id,item_id,t,timestamp\nu1,a,"He said \\"hi\\", ok",1\n')
    with pytest.raises(UserError, match="row 1 .*Double the quotes"):
        both(path, tmp_path)


def test_atomic_files_are_read_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "ml.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1\t5\t881251050\n"
        "2\t1\t4\t881251051\n"
    )
    (folder / "ml.item").write_text("item_id:token\ttitle:token_seq\n1\tToy Story\n")
    data = both(folder, tmp_path, items=folder / "ml.item", label_column="rating")
    assert events(data) == [("1", "1", 881251050 * 10**9), ("2", "1", 881251051 * 10**9)]
    assert data.item_names([1]) == ["Toy Story"]  # type: ignore[arg-type]
    assert "files passed over, 1" in format_report(data.manifest.report)


@pytest.mark.parametrize(
    ("name", "pack"),
    [("A.CSV", bytes), ("a.csv.GZ", gzip.compress), ("a.Csv.Bz2", bz2.compress), ("a.TSV", bytes)],
)
def test_endings_have_no_case(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    text = TEXT.replace(",", "\t") if "TSV" in name else TEXT
    (tmp_path / name).write_bytes(pack(text.encode()))
    assert events(both(tmp_path / name, tmp_path)) == EXPECTED


@pytest.mark.parametrize("name", ["a.xlsx", "a.zip", "a.json", "a.ndjson", "a.xyz", "a"])
def test_other_formats_are_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(UserError, match="of no known format") as caught:
        prepare(tmp_path / name, tmp_path / "out", **TIMED)
    assert "\n" not in str(caught.value)


def test_a_home_directory_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text(TEXT)
    assert find_files("~/a.csv") == find_files("~/*.csv") == [tmp_path / "a.csv"]


def test_rows_are_counted_over_chunks_files_and_blank_lines(tmp_path: Path) -> None:
    rows = "".join(f"u,{i % 50},{i}\n" for i in range(700_000))
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n" + rows)
    (tmp_path / "b.csv").write_text(
        "\nuser_id,item_id,timestamp\n\n" + rows + "u,1,soon\n" + rows[:100]
    )
    for engine in ENGINES:
        with pytest.raises(UserError, match=r"'soon' in row 700001 of .*b\.csv"):
            prepare(
                [tmp_path / "a.csv", tmp_path / "b.csv"],
                tmp_path / "out",
                engine=engine,
                **TIMED,
            )
