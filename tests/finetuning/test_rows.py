"""Mixtures of old rows for new ones, by hand."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import Dataset
from jaxrec.finetuning.rows import by_content, by_neighbours, deviation, mean_row, mixed
from jaxrec.typing import UserError

OLD = pd.DataFrame({"id": ["a", "b", "c"], "vector": [[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]})


def content_of(old: pd.DataFrame, nearest: int = 3, **columns: list) -> np.ndarray:
    """The mixtures of items that are all new."""
    count = len(next(iter(columns.values())))
    new = pd.DataFrame({"id": [f"n{i}" for i in range(count)], **columns})
    return by_content(old, new, np.array([0, *[-1] * count]), nearest).toarray()


def test_neighbours_are_counted_on_both_sides_within_a_user_and_in_training_alone(
    dataset_of: Callable[..., Dataset],
) -> None:
    """Items 3 and 5 are new; the old rows of items 1, 2 and 4 are 7, 6 and 5."""
    rows = np.array([0, 7, 6, -1, 5, -1])
    user1 = [(1, 1, 0), (1, 3, 0), (1, 2, 0), (1, 3, 0), (1, 2, 0), (1, 4, 1)]
    user2 = [(2, 5, 0), (2, 3, 0), (2, 3, 2)]
    data = dataset_of([*user1, *user2], num_items=5)
    # Item 3 has 1 and 2 around it, then 2 and 2; item 5 has item 3 alone, which is new itself.
    found = by_neighbours(data, rows, 9, 1).toarray()
    np.testing.assert_allclose(found, [[0.0] * 6 + [0.75, 0.25, 0.0], [0.0] * 9])
    # Within three events, each of the first two 3s has 1, 2 and 2 around it.
    found = by_neighbours(data, rows, 9, 3).toarray()
    np.testing.assert_allclose(found[0], [0, 0, 0, 0, 0, 0, 4 / 6, 2 / 6, 0])


def test_vectors_are_compared_by_cosine() -> None:
    found = content_of(OLD, vector=[[2.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    # Cosines with a, b and c: 1, 0 and 3/5.
    np.testing.assert_allclose(found[0], [0, 1 / 1.6, 0, 0.6 / 1.6], rtol=1e-6)
    assert not found[1:].any()
    nearest = content_of(OLD, 1, vector=[[2.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(nearest, [[0, 1, 0, 0], [0, 0, 0, 1]], rtol=1e-6)


def test_columns_weigh_the_same_and_one_that_is_missing_does_not_count() -> None:
    old = OLD.assign(genres=pd.Series(["x|y", "x", None]))
    found = content_of(old, vector=[[0.0, 5.0], None], genres=["x", ["y", "unheard of"]])
    # With a: (0 + 1/sqrt 2) / 2; with b: (1 + 1) / 2; with c, which has no genre: 0.8 / sqrt 2.
    alike = np.array([np.sqrt(0.5) / 2, 1, 0.8 / np.sqrt(2)])
    np.testing.assert_allclose(found[0, 1:], alike / alike.sum(), rtol=1e-6)
    np.testing.assert_allclose(found[1], [0, 1, 0, 0], rtol=1e-6)


def test_titles_ids_and_vectors_of_several_lengths_are_no_content() -> None:
    old = pd.DataFrame({"id": ["a", "b"], "title": ["one", "two"], "v": [[1.0], [1.0, 2.0]]})
    with pytest.raises(UserError, match=r"the source has \['title', 'v'\], the dataset \['title'"):
        content_of(old, title=["three"], v=[[1.0]])


def test_mixtures_are_taken_of_rows_and_the_mean_stands_in() -> None:
    table = np.array([[9, 9], [1, 2], [3, 4], [5, 12]], np.float16)
    mixture = by_content(
        OLD,
        pd.DataFrame({"id": ["n", "m"], "vector": [[0.0, 1.0], None]}),
        np.array([0, -1, -1]),
        2,
    )
    found = mixed(table, mixture)
    expected = (1 * table[2] + 0.8 * table[3]) / 1.8
    np.testing.assert_allclose(found, [expected, [3, 6]], rtol=1e-3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(mean_row(table), [3, 6])
    # Squares of (-2, 0, 2) and (-4, -2, 6) over six elements.
    assert deviation(table) == pytest.approx(np.sqrt((8 + 56) / 6))
