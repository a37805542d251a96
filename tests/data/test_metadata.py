"""Metadata by the rules of logs: cells as written, ids in one spelling, nothing lost unsaid."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import Dataset, build, open_dataset, prepare, write_content
from jaxrec.data.content import content_matrix
from jaxrec.data.report import format_report
from jaxrec.typing import UserError

LOG = pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [1, 2, 3, 4], "timestamp": [1, 2, 3, 4]})
TIMED: dict[str, Any] = {"time_column": "timestamp"}


def with_items(directory: Path, text: str, name: str = "items.csv", **options: Any) -> Dataset:
    (directory / name).write_text(text)
    return prepare(LOG, directory / "out", items=directory / name, **(TIMED | options))


def said(data: Dataset) -> str:
    return format_report(data.manifest.report)


def cells(data: Dataset, name: str) -> list[Any]:
    return [None if pd.isna(v) else v for v in data.item_vocabulary[name].tolist()]


def test_cells_are_as_they_are_written(tmp_path: Path) -> None:
    rows = "1,1984,00,1990,NA,0.5,1e3\n2,300,01,2000,x,1.25,7\n3,none,02,,y,-2.0,8\n"
    rows += "4,007,02,1,,0.5,9\n"
    data = with_items(tmp_path, "item_id,title,category,year,country,weight,odd\n" + rows)
    for opened in (data, open_dataset(tmp_path / "out")):
        assert cells(opened, "title") == ["1984", "300", "none", "007"]
        assert cells(opened, "category") == ["00", "01", "02", "02"]
        assert cells(opened, "year") == [1990, 2000, None, 1]
        assert [str(year) for year in cells(opened, "year")[:2]] == ["1990", "2000"]
        assert cells(opened, "country") == ["NA", "x", "y", None]
        assert cells(opened, "weight") == [0.5, 1.25, -2.0, 0.5]
        assert cells(opened, "odd") == ["1e3", "7", "8", "9"]


def test_a_title_is_shown_as_it_was_written_and_an_item_without_one_by_its_id(
    tmp_path: Path,
) -> None:
    data = with_items(tmp_path, "item_id,title\n1,1984\n2,300\n3,\n4,9\n")
    assert data.item_names(np.array([1, 2, 3, 4])) == ["1984", "300", "3", "9"]


@pytest.mark.parametrize("bad", ["1,Matrix, The\n2,b\n", "2,b\n1\n"])
def test_shifted_rows_are_refused_with_the_row(tmp_path: Path, bad: str) -> None:
    row = 1 if bad.startswith("1") else 2
    with pytest.raises(UserError, match=rf"items\.csv cannot be read: row {row} "):
        with_items(tmp_path, "item_id,title\n" + bad)


def test_ids_match_in_every_spelling_and_counts_are_said(tmp_path: Path) -> None:
    data = with_items(tmp_path, "item_id,title\n1.0,A\n 2,B\n3,\n9,Z\nNA,N\n")
    assert cells(data, "title") == ["A", "B", None, None]
    assert "item metadata: for 3 of 4 items; titles for 2 of 4 items; 1 rows are of no" in said(
        data
    )
    assert "item metadata: 1 rows have no id (such as 'NA')" in said(data)


def test_metadata_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of 0 of 4 items: its ids are such as '91', and .* '1'"):
        with_items(tmp_path, "item_id,title\n91,One\n92,Two\n")
    with pytest.raises(UserError, match="of 0 of 2 users"):
        build(LOG, users=pd.DataFrame({"user_id": ["x"], "age": [3]}), **TIMED)


def test_doubled_ids_are_reported_if_they_are_equal_and_refused_if_not(tmp_path: Path) -> None:
    data = with_items(tmp_path, "item_id,title\n1,A\n1.0,A\n2,B\n")
    assert "1 rows are of an id that came before, 1 of them equal to its first row" in said(data)
    differing = "item_id,title\n1,A\n2,B\n1.0,C\n"
    with pytest.raises(UserError, match="different things of '1', in rows 1 and 3 .*=first"):
        build(LOG, items=_write(tmp_path, differing), **TIMED)
    frame = pd.DataFrame({"item_id": [1, 2, 1], "vector": [[1.0], [2.0], [1.0]]})
    assert "1 of them equal" in said(build(LOG, items=frame, **TIMED))
    first = build(LOG, items=_write(tmp_path, differing), metadata_duplicates="first", **TIMED)
    assert cells(first, "title") == ["A", "B", None, None]


def _write(directory: Path, text: str) -> Path:
    path = directory / "differing.csv"
    path.write_text(text)
    return path


def test_all_files_of_a_pattern_are_read(tmp_path: Path) -> None:
    (tmp_path / "i1.csv").write_text("item_id,title\n1,A\n")
    (tmp_path / "i2.csv").write_text("title,item_id\nB,2\n")
    data = build(LOG, items=str(tmp_path / "i*.csv"), **TIMED)
    assert cells(data, "title") == ["A", "B", None, None]


def test_columns_keep_one_type_over_appended_metadata(tmp_path: Path) -> None:
    with_items(tmp_path, "item_id,title,year\n1,Alpha,1990\n2,B,1991\n3,C,1992\n4,D,1993\n")
    day = LOG.assign(item_id=[7, 8, 8, 8], timestamp=9)
    (tmp_path / "more.csv").write_text("item_id,title,year\n7,1984,2000\n")
    data = prepare(day, tmp_path / "out", items=tmp_path / "more.csv", append=True)
    assert cells(data, "title") == ["Alpha", "B", "C", "D", "1984", None]
    assert cells(data, "year") == [1990, 1991, 1992, 1993, 2000, None]
    assert [str(year) for year in cells(data, "year")[:5]] == [
        "1990",
        "1991",
        "1992",
        "1993",
        "2000",
    ]


@pytest.fixture(name="content")
def content_of() -> Callable[[Any], np.ndarray]:
    def content(vectors: list[Any]) -> np.ndarray:
        items = pd.DataFrame({"item_id": [1, 2, 3, 4], "vector": vectors})
        return content_matrix(build(LOG, items=items, **TIMED), ["vector"])

    return content


def test_an_item_without_a_vector_gets_zeros_and_integers_are_numbers(
    content: Callable[[Any], np.ndarray],
) -> None:
    nothings: list[Any] = [None, [], np.nan]
    for nothing in nothings:
        rows = content([[3.0, 4.0], nothing, [0, 2], np.array([1, 0], np.int8)])
        expected = np.array([[0.6, 0.8], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        np.testing.assert_allclose(rows[1:], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0], [1.0, np.nan], None, None], "item '2' has a number that is not finite"),
        ([[1.0, 2.0], [1.0, np.inf], None, None], "item '2' has a number that is not finite"),
        ([[1.0, 2.0], [1.0], None, None], "item '2' has 1 numbers, and others have 2"),
        ([[1.0, 2.0], ["a", "b"], None, None], "item '2' holds something else than numbers"),
        ([[1.0, 2.0], "a", None, None], "item '2' holds 'a'"),
        (["0.1 0.2", "0.3 0.4", None, None], "several numbers in a text"),
        (["9.90", "3", None, None], "holds fractions"),
    ],
)
def test_what_is_no_vector_is_refused(
    content: Callable[[Any], np.ndarray], vectors: list[Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        content(vectors)


def test_vectors_in_text_files_are_vectors(tmp_path: Path) -> None:
    rows = '1,"[3.0, 4.0]"\n2,"[0.0 2.0]"\n3,[]\n'
    data = with_items(tmp_path, "item_id,vector\n" + rows)
    write_content(data, tmp_path / "content", ["vector"])
    matrix = np.load(tmp_path / "content" / "content.npy")
    expected = np.array([[0.6, 0.8], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(matrix[1:], expected, rtol=1e-6)
    names = "item_id:token\ttitle:token_seq\tv:float_seq\tw:float\n"
    atomic = with_items(
        tmp_path, names + "1\tToy Story\t3.0 4.0\t7\n2\t8\t\t\n", "x.item", overwrite=True
    )
    assert cells(atomic, "title")[:2] == ["Toy Story", "8"]
    assert cells(atomic, "w")[:2] == [7.0, None]
    np.testing.assert_allclose(content_matrix(atomic, ["v"])[1:3], expected[[0, 2]], rtol=1e-6)


def test_names_that_are_taken_or_there_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than one column 'a'"):
        with_items(tmp_path, "item_id,a,a\n1,2,3\n")
    with pytest.raises(UserError, match="row 2 .*truth value"):
        build(
            LOG,
            items=pd.DataFrame({"item_id": [1, True, 3], "x": [1, 2, 3]}, dtype=object),
            **TIMED,
        )
