"""Softmax losses against arithmetic, and the sampled one against the full one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.losses import in_batch_softmax, sampled_softmax, softmax_cross_entropy


def log_sum(*scores: float) -> float:
    return float(np.logaddexp.reduce(scores))


def test_cross_entropy_by_hand_leaves_padding_out() -> None:
    logits = jnp.array([[50.0, 1.0, 2.0, 3.0], [-50.0, 0.0, 0.0, 0.0]])
    expected = [log_sum(1, 2, 3) - 2, np.log(3)]
    np.testing.assert_allclose(
        softmax_cross_entropy(logits, jnp.array([2, 1])), expected, rtol=1e-6
    )


def test_label_smoothing_spreads_mass_over_all_items() -> None:
    logits = jnp.array([[9.0, 1.0, 2.0, 3.0]])
    losses = [log_sum(1, 2, 3) - score for score in (1, 2, 3)]
    expected = 0.7 * losses[2] + 0.3 * (losses[0] + losses[1] + losses[2]) / 3
    loss = softmax_cross_entropy(logits, jnp.array([3]), label_smoothing=0.3)
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)


def test_cross_entropy_keeps_leading_axes() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    targets = np.array([[1, 2, 3], [4, 1, 2]])
    expected = [
        [log_sum(*logits[b, t, 1:]) - logits[b, t, targets[b, t]] for t in range(3)]
        for b in range(2)
    ]
    np.testing.assert_allclose(softmax_cross_entropy(logits, targets), expected, rtol=1e-5)


def test_sampled_softmax_by_hand() -> None:
    positives, negatives = jnp.array([1.0, 2.0]), jnp.array([[0.5, -1.0], [3.0, 2.0]])
    expected = [log_sum(1, 0.5, -1) - 1, log_sum(2, 3, 2) - 2]
    np.testing.assert_allclose(sampled_softmax(positives, negatives), expected, rtol=1e-6)


def test_sampled_softmax_subtracts_log_q() -> None:
    loss = sampled_softmax(
        jnp.array([1.0]),
        jnp.array([[0.5, -1.0]]),
        log_q_positives=jnp.log(jnp.array([0.2])),
        log_q_negatives=jnp.log(jnp.array([0.5, 0.1])),
    )
    positive = 1 - np.log(0.2)
    expected = log_sum(positive, 0.5 - np.log(0.5), -1 - np.log(0.1)) - positive
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)


def test_negatives_that_do_not_count_are_as_if_absent() -> None:
    positives, negatives = jnp.array([1.0, 2.0]), jnp.array([[0.5, 9.0], [3.0, 2.0]])
    where = jnp.array([[True, False], [False, False]])
    loss = sampled_softmax(positives, negatives, where_negatives=where)
    np.testing.assert_allclose(loss, [log_sum(1, 0.5) - 1, 0], rtol=1e-6, atol=1e-7)


def test_in_batch_softmax_by_hand() -> None:
    users, items = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, 1.0], [3.0, -1.0]])
    # Scores: user 0 has 1 and 3; user 1 has 2 and -2.
    expected = [log_sum(1, 3) - 1, log_sum(2, -2) + 2]
    loss = in_batch_softmax(users, items, jnp.array([7, 8]))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    log_q = jnp.log(jnp.array([0.25, 0.5]))
    corrected = in_batch_softmax(users, items, jnp.array([7, 8]), log_q=log_q)
    a, b = np.log(4), np.log(2)
    expected = [log_sum(1 + a, 3 + b) - 1 - a, log_sum(2 + a, -2 + b) + 2 - b]
    np.testing.assert_allclose(corrected, expected, rtol=1e-6)


def test_the_same_item_elsewhere_in_the_batch_is_no_negative() -> None:
    users, items = jnp.array([[1.0], [2.0], [1.0]]), jnp.array([[1.0], [1.0], [4.0]])
    loss = in_batch_softmax(users, items, jnp.array([5, 5, 6]))
    expected = [log_sum(1, 4) - 1, log_sum(2, 8) - 2, log_sum(1, 1, 4) - 4]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_rows_that_do_not_count_are_no_negatives() -> None:
    users, items = jnp.array([[1.0], [2.0], [1.0]]), jnp.array([[1.0], [3.0], [4.0]])
    where = jnp.array([True, False, True])
    loss = in_batch_softmax(users, items, jnp.array([1, 2, 3]), where=where)
    np.testing.assert_allclose(loss[0], log_sum(1, 4) - 1, rtol=1e-6)
    np.testing.assert_allclose(loss[2], log_sum(1, 4) - 4, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_scores_of_ten_thousand_stay_finite(scale: float) -> None:
    positives, negatives = jnp.array([scale, 0.0]), jnp.array([[0.0, scale], [scale, -scale]])
    vectors = jnp.array([[scale], [1.0]])
    for loss in (
        lambda x: sampled_softmax(positives * x, negatives),
        lambda x: softmax_cross_entropy(negatives * x, jnp.array([1, 1]), label_smoothing=0.1),
        lambda x: in_batch_softmax(vectors * x, jnp.ones((2, 1)), jnp.array([1, 2])),
    ):
        value, slope = jax.jvp(loss, (jnp.float32(1),), (jnp.float32(1),))
        assert np.isfinite(value).all() and np.isfinite(slope).all()


def test_bfloat16_scores_give_float32_losses() -> None:
    scores = jnp.array([[1.0, 2.0, 3.0]], jnp.bfloat16)
    assert softmax_cross_entropy(scores, jnp.array([1])).dtype == jnp.float32
    assert sampled_softmax(scores[:, 0], scores).dtype == jnp.float32
    assert in_batch_softmax(scores, scores, jnp.array([1])).dtype == jnp.float32


@pytest.mark.parametrize("num_negatives", [50, 400])
def test_with_log_q_the_expected_gradient_is_close_to_the_full_softmax(num_negatives: int) -> None:
    items, target = 30, 4
    scores = jax.random.normal(jax.random.key(0), (items,))
    q = jax.nn.softmax(jax.random.normal(jax.random.key(1), (items,)))
    full = jax.nn.softmax(scores) - jax.nn.one_hot(target, items)

    def gradient(key: jax.Array, corrected: bool) -> jax.Array:
        drawn = jax.random.choice(key, items, (num_negatives,), p=q)
        log_q = jnp.log(q[drawn]) + np.log(num_negatives)

        def loss(scores: jax.Array) -> jax.Array:
            return sampled_softmax(
                scores[target],
                scores[drawn],
                log_q_negatives=log_q if corrected else 0.0,
                where_negatives=drawn != target,
            )

        return jax.grad(loss)(scores)

    def mean(corrected: bool) -> jax.Array:
        keys = jax.random.split(jax.random.key(2), 8000)
        return jax.jit(jax.vmap(lambda key: gradient(key, corrected)))(keys).mean(axis=0)

    error = float(jnp.linalg.norm(mean(True) - full) / jnp.linalg.norm(full))
    plain = float(jnp.linalg.norm(mean(False) - full) / jnp.linalg.norm(full))
    # Normalising by a sample biases the gradient in the order of 1 / num_negatives.
    assert error < 5 / num_negatives
    assert error < plain / 3
