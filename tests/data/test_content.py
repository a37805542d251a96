"""What is known of items as vectors, by hand."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import Dataset, write_content
from jaxrec.data.content import content_matrix, read_content
from jaxrec.typing import UserError


@pytest.fixture(scope="module")
def dataset(dataset_of: Callable[..., Dataset]) -> Dataset:
    dataset = dataset_of([(1, i, 0) for i in range(1, 5)], num_items=4)
    metadata: dict[str, Any] = dict(
        attributes=["1|2", "2|1", "3", None],
        title=["The Silent Harbour", "the silent harbour!", "Harbour", "Winter"],
        tags=[["x", "y"], ["y", "x"], [], ["x"]],
        vector=[[3.0, 4.0], [0.0, 0.0], [-1.0, 0.0], [0.5, 0.5]],
        year=[1990.0, 1990.0, np.nan, 2001.0],
        price=[0.5, 1.5, 2.0, 3.0],
    )
    frame = dataset.item_vocabulary.assign(**metadata)
    return dataclasses.replace(dataset, item_vocabulary=frame)


def test_tokens_are_hashed_to_rows_of_length_one(dataset: Dataset) -> None:
    for column, length in (("attributes", 2**0.5), ("title", 3**0.5), ("tags", 2**0.5)):
        rows = content_matrix(dataset, [column], hashed_width=512)
        assert rows.shape == (5, 512)
        assert rows.dtype == np.float32
        assert (rows[0] == 0).all()
        np.testing.assert_array_equal(rows[1], rows[2])
        found = np.sort(np.abs(rows[1][rows[1] != 0]))
        np.testing.assert_allclose(found, 1 / length, rtol=1e-6)
    assert (content_matrix(dataset, ["attributes"])[4] == 0).all()
    assert (content_matrix(dataset, ["tags"])[3] == 0).all()


def test_items_are_alike_by_the_share_of_common_tokens(dataset: Dataset) -> None:
    rows = content_matrix(dataset, ["title"], hashed_width=2048)
    np.testing.assert_allclose(rows[1] @ rows[3], 1 / 3**0.5, rtol=1e-6)
    assert rows[1] @ rows[4] == 0


def test_a_token_is_at_the_same_place_in_every_catalogue_and_run(dataset: Dataset) -> None:
    other = dataclasses.replace(
        dataset, item_vocabulary=pd.DataFrame({"id": ["z"], "attributes": ["2|1"]})
    )
    np.testing.assert_array_equal(
        content_matrix(other, ["attributes"])[1], content_matrix(dataset, ["attributes"])[1]
    )
    places = np.flatnonzero(content_matrix(dataset, ["attributes"])[3])
    assert places.tolist() == [14]  # of "attributes=3", for ever


def test_vectors_stay_beside_tokens_and_whole_numbers_are_tokens(dataset: Dataset) -> None:
    rows = content_matrix(dataset, ["year", "vector"], hashed_width=16)
    assert rows.shape == (5, 18)
    np.testing.assert_allclose(rows[1:3, :2], np.array([[0.6, 0.8], [0.0, 0.0]]), rtol=1e-6)
    np.testing.assert_array_equal(rows[1, 2:], rows[2, 2:])
    assert (rows[3, 2:] == 0).all()
    years: Any = ["1990", "1990", None, "2001"]
    texts = dataset.item_vocabulary.assign(year=years)
    same = dataclasses.replace(dataset, item_vocabulary=texts)
    np.testing.assert_array_equal(content_matrix(same, ["year"]), content_matrix(dataset, ["year"]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["colour"], "no metadata 'colour'; it has: attributes, title, tags, vector, year, price"),
        (["id"], "no metadata 'id'"),
        (["price"], "holds fractions"),
        ([], "is empty"),
    ],
)
def test_columns_that_cannot_be_are_refused(
    columns: list[str], message: str, dataset: Dataset
) -> None:
    with pytest.raises(UserError, match=message):
        content_matrix(dataset, columns)


def test_content_is_read_as_it_was_written(dataset: Dataset, tmp_path: Path) -> None:
    write_content(dataset, tmp_path / "content", ["title"], hashed_width=32)
    matrix, told = read_content(tmp_path / "content")
    np.testing.assert_array_equal(matrix, content_matrix(dataset, ["title"], hashed_width=32))
    wanted: dict[str, Any] = {"items": "", "columns": ["title"], "hashed_width": 32}
    assert told == wanted
    with pytest.raises(UserError, match="holds no whole content"):
        read_content(tmp_path / "nothing")
