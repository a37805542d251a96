"""Top-k by dot product against a full score matrix and a stable sort."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.ops.topk import top_k_dot
from jaxrec.typing import UserError


def brute_force(users, items, k, exclude):
    scores = (users @ items.T).astype(np.float32)
    scores[:, 0] = -np.inf
    for row, ids in enumerate(exclude):
        scores[row, ids] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(scores, order, axis=1)
    ids = np.where(values == -np.inf, 0, order)
    short = k - ids.shape[1]
    if short > 0:
        ids = np.pad(ids, ((0, 0), (0, short)))
        values = np.pad(values, ((0, 0), (0, short)), constant_values=-np.inf)
    return values, ids


def small_integers(seed, batch, num_items, width, excluded):
    """Vectors whose scores are small integers: exact in any order of summation, full of ties."""
    random = np.random.default_rng(seed)
    users = random.integers(-2, 3, (batch, width)).astype(np.float32)
    items = random.integers(-2, 3, (num_items, width)).astype(np.float32)
    exclude = random.integers(0, num_items, (batch, excluded)).astype(np.int32)
    return users, items, exclude


@pytest.mark.parametrize("chunk", [1, 7, 16, 48, 49, 1000])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_equals_brute_force_with_ties_for_any_chunk(chunk, k):
    users, items, exclude = small_integers(0, 9, 49, 3, 6)
    values, ids = top_k_dot(users, items, k, exclude=exclude, chunk=chunk)
    expected_values, expected_ids = brute_force(users, items, k, exclude)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(values, expected_values)
    chex.assert_type([values, ids], [jnp.float32, jnp.int32])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_equals_brute_force_on_random_ties(seed):
    users, items, exclude = small_integers(seed, 5, 33, 2, 8)
    _, ids = top_k_dot(users, items, 10, exclude=exclude, chunk=10)
    np.testing.assert_array_equal(ids, brute_force(users, items, 10, exclude)[1])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.sampled_from([63, 64, 65, 700, 1000]))
@pytest.mark.parametrize("k", [1, 3, 15])
def test_equals_brute_force_where_only_some_blocks_are_looked_at(k, seed, count):
    # Many more items than k, and few different scores: blocks tie by their maxima.
    users, items, exclude = small_integers(seed, 3, count, 2, 9)
    values, ids = top_k_dot(users, items, k, exclude=exclude)
    expected_values, expected_ids = brute_force(users, items, k, exclude)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(values, expected_values)


@pytest.mark.parametrize("width", [1, 2, 64])
def test_zeros_of_either_sign_tie(width):
    users = np.ones((1, width), np.float32)
    items = np.repeat(np.array([[0.0], [-0.0], [0.0], [-0.0], [0.0]], np.float32), width, axis=1)
    assert top_k_dot(users, items, 4, chunk=3)[1].tolist() == [[1, 2, 3, 4]]


def test_padding_is_never_returned_even_with_the_best_score():
    users = np.ones((2, 1), np.float32)
    items = np.array([[9.0], [1.0], [2.0]], np.float32)
    values, ids = top_k_dot(users, items, 3)
    assert ids.tolist() == [[2, 1, 0]] * 2
    assert values.tolist() == [[2.0, 1.0, -np.inf]] * 2


def test_a_user_with_everything_excluded_gets_only_zeros():
    users, items, _ = small_integers(0, 2, 6, 3, 0)
    exclude = np.array([[1, 2, 3, 4, 5], [0, 0, 0, 0, 0]], np.int32)
    values, ids = top_k_dot(users, items, 3, exclude=exclude, chunk=4)
    assert ids[0].tolist() == [0, 0, 0]
    assert np.all(values[0] == -np.inf)
    assert np.all(ids[1] > 0)


def test_bfloat16_vectors_give_float32_scores():
    random = np.random.default_rng(0)
    users = jnp.asarray(random.normal(size=(4, 64)), jnp.bfloat16)
    items = jnp.asarray(random.normal(size=(100, 64)), jnp.bfloat16)
    values, ids = top_k_dot(users, items, 5, chunk=32)
    exact = np.asarray(users, np.float64) @ np.asarray(items, np.float64).T
    assert values.dtype == jnp.float32
    picked = np.take_along_axis(exact, np.asarray(ids), axis=1)
    np.testing.assert_allclose(values, picked, rtol=1e-5)


def test_never_holds_a_score_for_every_user_and_item():
    users, items = jnp.zeros((8, 4)), jnp.zeros((1000, 4))
    lowered = jax.jit(lambda u, v: top_k_dot(u, v, 5, chunk=64)).lower(users, items)
    text = lowered.as_text()
    assert "64x8xf32" in text
    assert "1000x8xf32" not in text and "8x1000xf32" not in text


def test_works_under_strict_promotion():
    users, items, exclude = map(jnp.asarray, small_integers(0, 3, 20, 3, 4))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        _, ids = top_k_dot(users, items, 5, exclude=exclude, chunk=8)
    np.testing.assert_array_equal(ids, brute_force(np.array(users), np.array(items), 5, exclude)[1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"users": np.ones((2, 3))}, r"\(2, 3\) and \(5, 4\)"),
        ({"k": 0}, "k=0"),
        ({"chunk": 0}, "chunk=0"),
        ({"exclude": np.ones((3, 1), np.int32)}, r"exclude \(2, S\)"),
    ],
)
def test_wrong_arguments_are_explained(arguments, sentence):
    right = {"users": np.ones((2, 4)), "items": np.ones((5, 4)), "k": 2}
    with pytest.raises(UserError, match=sentence):
        top_k_dot(**(right | arguments))


@pytest.mark.parametrize("chunk", [1, 7, 48, 1000])
def test_masks_say_what_may_be_returned(chunk):
    users, items, exclude = small_integers(0, 9, 49, 3, 6)
    random = np.random.default_rng(1)
    masks, mask = random.random((3, 49)) < 0.4, random.integers(0, 3, 9).astype(np.int32)
    denied = [np.concatenate([exclude[i], np.flatnonzero(~masks[mask[i]])]) for i in range(9)]
    values, ids = top_k_dot(users, items, 25, exclude=exclude, masks=masks, mask=mask, chunk=chunk)
    expected_values, expected_ids = brute_force(users, items, 25, denied)
    assert (expected_ids == 0).any()
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(values, expected_values)


@pytest.mark.parametrize(
    ("masks", "mask", "match"),
    [
        (np.ones((1, 6), bool), None, "together"),
        (None, np.zeros(2, np.int32), "together"),
        (np.ones((1, 5), bool), np.zeros(2, np.int32), r"\(G, 6\) bool and mask \(2,\)"),
        (np.ones((1, 6), np.int32), np.zeros(2, np.int32), "int32"),
        (np.ones((1, 6), bool), np.zeros(3, np.int32), r"and \(3,\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, mask, match):
    users, items, _ = small_integers(0, 2, 6, 3, 0)
    with pytest.raises(UserError, match=match):
        top_k_dot(users, items, 2, masks=masks, mask=mask)
