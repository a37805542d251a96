"""Product quantisation against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.compression.products import (
    NUM_CODES,
    SAMPLE,
    ProductTable,
    encode,
    fit_codebooks,
    sample_rows,
)


def rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def test_each_part_gets_its_nearest_code_and_the_norm_that_fits_best() -> None:
    x, books = rows(40, 6), jnp.asarray(rows(3 * NUM_CODES, 2, 1).reshape(3, NUM_CODES, 2) / 2)
    books = books.astype(jnp.bfloat16)
    codes, norms = encode(jnp.asarray(x), books)
    exact = np.asarray(books, np.float64)
    for i, row in enumerate(x.astype(np.float64)):
        direction = row / np.linalg.norm(row)
        decoded = []
        for part in range(3):
            piece = direction[2 * part : 2 * part + 2]
            distances = ((exact[part] - piece) ** 2).sum(-1)
            assert distances[codes[i, part]] <= distances.min() + 1e-6
            decoded.append(exact[part, codes[i, part]])
        shape = np.concatenate(decoded)
        fitted = (row @ shape) / (shape @ shape)
        np.testing.assert_allclose(float(norms[i, 0]), fitted, rtol=2**-8)


def test_few_distinct_rows_are_stored_without_loss() -> None:
    # Powers of two and their quarter turns: directions and lengths that bfloat16 holds.
    x = np.zeros((9, 4), np.float32)
    for i in range(1, 9):
        x[i, (i - 1) % 4] = 2.0**i * (1 if i % 2 else -1)
    books = fit_codebooks(jnp.asarray(x), 2, jax.random.key(0))
    table = ProductTable(*encode(jnp.asarray(x), books), books)
    np.testing.assert_array_equal(table.whole(), x)  # the row of zeros included
    ids = np.array([[8, 1], [0, 3]])
    np.testing.assert_array_equal(table.rows(ids), x[ids])
    assert np.isnan(table.rows(np.array([99]))).all()


def test_codebooks_reach_what_k_means_of_numpy_reaches() -> None:
    x = rows(1500, 4, 2)
    books = np.asarray(fit_codebooks(jnp.asarray(x), 2, jax.random.key(1)), np.float64)
    directions = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float64)
    for part in range(2):
        pieces = directions[:, 2 * part : 2 * part + 2]
        book = pieces[np.random.default_rng(0).permutation(1500)[:NUM_CODES]]
        for _ in range(25):
            nearest = ((pieces[:, None] - book[None]) ** 2).sum(-1).argmin(1)
            for code in np.unique(nearest):
                book[code] = pieces[nearest == code].mean(0)
        errors = [
            ((pieces[:, None] - b[None]) ** 2).sum(-1).min(1).mean() for b in (book, books[part])
        ]
        assert errors[1] < 1.1 * errors[0]


def test_the_seed_decides_and_rows_of_zeros_do_not() -> None:
    x = rows(300, 4)
    one, again, other = (fit_codebooks(jnp.asarray(x), 2, jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (np.asarray(one) != np.asarray(other)).any()
    zeros = fit_codebooks(jnp.zeros((5, 4)), 2, jax.random.key(0))
    assert np.isfinite(np.asarray(zeros, np.float32)).all()


@pytest.mark.parametrize("num_rows", [2, 100, SAMPLE + 500])
def test_codebooks_are_made_from_distinct_rows_without_padding(num_rows: int) -> None:
    chosen = sample_rows(num_rows, 0)
    assert len(chosen) == min(num_rows - 1, SAMPLE)
    assert chosen[0] >= 1 and chosen[-1] < num_rows and (np.diff(chosen) > 0).all()
