"""Items are drawn in proportion to a power of their popularity, and padding never."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrec.ops.keys import RowKey
from jaxrec.sampling import (
    cumulative_words,
    item_probabilities,
    sample_items,
    sample_uniform,
)


def test_probabilities_by_hand() -> None:
    counts = np.array([99, 1, 4, 0])
    np.testing.assert_allclose(item_probabilities(counts, 0.0), [0, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(item_probabilities(counts, 1.0), [0, 1 / 6, 4 / 6, 1 / 6])
    np.testing.assert_allclose(item_probabilities(counts, 0.5), [0, 1 / 4, 2 / 4, 1 / 4])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_draws_have_their_distribution(power: float) -> None:
    counts = np.array([0, 100, 1, 50, 0, 7, 300, 20])
    probabilities = item_probabilities(counts, power)
    drawn = sample_items(jax.random.key(1), (100, 500), cumulative_words(probabilities))
    assert drawn.shape == (100, 500) and drawn.dtype == jnp.int32
    seen = np.bincount(np.asarray(drawn).ravel(), minlength=8)
    assert len(seen) == 8 and seen[0] == 0
    assert stats.chisquare(seen[1:], probabilities[1:] * 50_000).pvalue > 1e-3


def test_the_extreme_words_are_items_of_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    words = cumulative_words(item_probabilities(np.array([0, 1, 1, 1]), 0.0))
    words_drawn = jnp.array([0, 1, 2**32 - 2, 2**32 - 1], jnp.uint32)
    extremes = jnp.stack([words_drawn, words_drawn], axis=-1)
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: extremes)
    np.testing.assert_array_equal(sample_items(jax.random.key(0), (4,), words), [1, 1, 3, 3])


def test_a_catalogue_of_one_item_is_always_that_item() -> None:
    words = cumulative_words(item_probabilities(np.array([0, 5]), 1.0))
    np.testing.assert_array_equal(sample_items(jax.random.key(0), (50,), words), 1)


def test_eight_million_items_keep_their_resolution() -> None:
    num_items = 8_000_000
    words = cumulative_words(item_probabilities(np.zeros(num_items + 1), 0.0))
    width = np.diff(words[0].astype(np.float64) + words[1] * 2.0**-32)
    # Each item is worth 2**32 / 8e6 = 536.87 upper words.
    np.testing.assert_allclose(width, 2**32 / num_items, rtol=1e-6)
    drawn = np.asarray(sample_items(jax.random.key(2), (100_000,), words))
    assert drawn.min() >= 1 and drawn.max() <= num_items
    # Of 100,000 draws of 8e6 some 625 pairs fall together, and odd items are half.
    assert abs(len(np.unique(drawn)) - (100_000 - 625)) < 5 * 25
    assert abs((drawn % 2).mean() - 0.5) < 5 * 0.5 / np.sqrt(100_000)
    blocks = np.bincount((drawn - 1) // 500_000, minlength=16)
    assert stats.chisquare(blocks).pvalue > 1e-3


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_a_billion_items_are_worth_what_they_should(
    power: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last thousand of 10^9: the others weigh together what they would."""
    counts = np.random.default_rng(0).integers(1, 9, 1001).astype(np.float64)
    weights = counts**power
    weights[0] = (10**9 - 1000) * weights[1:].mean()
    words = cumulative_words(weights / weights.sum())
    edges = words[0].astype(object) * 2**32 + words[1]
    worth = np.diff(edges).astype(np.float64) / 2**64
    np.testing.assert_allclose(worth[:-1], (weights / weights.sum())[1:-1], rtol=1e-5)
    # What lies just below and at an edge is the item before and after it.
    drawn = np.array([[e - 1, e] for e in edges[1:-1]], object).reshape(-1)
    bits = np.stack([drawn // 2**32, drawn % 2**32], axis=-1).astype(np.uint32)
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: jnp.asarray(bits))
    found = sample_items(jax.random.key(0), (len(drawn),), words)
    wanted = np.repeat(np.arange(1, len(edges) - 1), 2) + np.tile([0, 1], len(edges) - 2)
    np.testing.assert_array_equal(found, wanted)


def test_a_billion_items_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    # With 32 bits some items have 4 of them and others 5: a quarter more.
    num_items, item = 10**9, 123_456_789
    first, last = (-(-(i * 2**64) // num_items) for i in (item, item + 1))
    drawn = [first - 1, first, last - 1, last]
    bits = jnp.asarray(np.array([[d // 2**32, d % 2**32] for d in drawn], np.uint32))
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: bits)
    found = sample_uniform(jax.random.key(0), (4,), np.array(num_items, np.int32))
    assert found.tolist() == [item, item + 1, item + 1, item + 2]


def test_draws_depend_on_the_key_alone() -> None:
    words = cumulative_words(item_probabilities(np.arange(100), 0.5))
    first, again, other = (sample_items(jax.random.key(s), (64,), words) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("num_items", [1, 7, 65_535, 65_536, 65_537, 1_000_000_007, 2**31 - 1])
def test_uniform_draws_are_the_upper_half_of_a_product(
    num_items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, (1000, 2), dtype=np.uint32)
    bits[:4] = [0, 0], [0, 1], [2**32 - 1, 2**32 - 1], [2**31, 0]
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: jnp.asarray(bits))
    drawn = sample_uniform(jax.random.key(0), (1000,), np.array(num_items, np.int32))
    assert drawn.dtype == jnp.int32
    whole = bits[:, 0].astype(object) * 2**32 + bits[:, 1]
    expected = whole * num_items // 2**64 + 1
    np.testing.assert_array_equal(drawn, expected.astype(np.int64))
    assert drawn.min() >= 1 and drawn.max() <= num_items


def test_uniform_draws_have_their_distribution() -> None:
    drawn = np.asarray(sample_uniform(jax.random.key(3), (100, 500), np.array(9, np.int32)))
    assert stats.chisquare(np.bincount(drawn.ravel(), minlength=10)[1:]).pvalue > 1e-3


def test_rows_in_parts_draw_what_the_whole_draws() -> None:
    key, words = jax.random.key(4), cumulative_words(item_probabilities(np.arange(50), 1.0))
    for draw, about in ((sample_items, words), (sample_uniform, np.array(49, np.int32))):
        whole = np.asarray(draw(RowKey.of(key), (8, 3), about))
        parts = [np.asarray(draw(RowKey(key, jnp.int32(i)), (2, 3), about)) for i in (0, 2, 4, 6)]
        np.testing.assert_array_equal(whole, np.concatenate(parts))
        assert len({tuple(row) for row in whole}) == 8
