"""Losses against a teacher: values and gradients against NumPy, what they do not see, masks."""

import jax
import numpy as np
import pytest

from jaxrec import losses


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_labels_are_the_divergence_and_pull_by_the_difference(temperature: float) -> None:
    random = np.random.default_rng(0)
    students, teachers = random.normal(size=(2, 3, 5)).astype(np.float32)
    p, q = softmax(teachers / temperature), softmax(students / temperature)
    found = losses.soft_labels(students, teachers, temperature=temperature)
    np.testing.assert_allclose(
        found, temperature**2 * (p * np.log(p / q)).sum(axis=-1), rtol=1e-4, atol=1e-6
    )
    gradient = jax.grad(lambda s: losses.soft_labels(s, teachers, temperature=temperature).sum())(
        students
    )
    np.testing.assert_allclose(gradient, temperature * (q - p), rtol=1e-4, atol=1e-6)


def test_soft_labels_by_hand() -> None:
    # The teacher says 1/4 and 3/4, the student 1/2 and 1/2.
    found = losses.soft_labels(np.zeros((1, 2), np.float32), np.log([[0.25, 0.75]]))
    np.testing.assert_allclose(found, [0.25 * np.log(0.5) + 0.75 * np.log(1.5)], rtol=1e-6)


def test_soft_labels_of_the_same_scores_are_zero_and_pull_nowhere() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    assert (losses.soft_labels(scores, scores + 3) < 1e-6).all()
    gradient = jax.grad(lambda s: losses.soft_labels(s, scores).sum())(scores)
    assert (np.abs(gradient) < 1e-6).all()  # q - p, each of them up to 1


def test_candidates_that_are_left_out_do_not_count() -> None:
    students, teachers = np.random.default_rng(0).normal(size=(2, 1, 5)).astype(np.float32)
    where = np.array([[True, True, True, False, False]])
    wanted = losses.soft_labels(students[:, :3], teachers[:, :3])
    teachers[:, 3:] = -np.inf
    np.testing.assert_allclose(
        losses.soft_labels(students, teachers, where=where), wanted, rtol=1e-6
    )
    none, gradient = jax.value_and_grad(
        lambda s: losses.soft_labels(s, teachers, where=where & False).sum()
    )(students)
    assert none == 0
    assert (gradient == 0).all()


def relations(students: np.ndarray, teachers: np.ndarray) -> np.ndarray:
    """What the loss is, pair by pair."""
    tables = []
    for vectors in (students, teachers):
        apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
        tables.append(apart / apart[~np.eye(len(apart), dtype=bool)].mean())
    gap = np.abs(tables[0] - tables[1])
    huber = np.where(gap < 1, gap**2 / 2, gap - 0.5)
    return np.asarray(huber.sum(axis=1) / (len(students) - 1))


def test_relational_distance_is_the_huber_loss_of_pairs() -> None:
    random = np.random.default_rng(0)
    students = random.normal(size=(6, 3)).astype(np.float32)
    students[0] *= 20  # a gap above 1
    teachers = random.normal(size=(6, 5)).astype(np.float32)
    found = losses.relational_distance(students, teachers)
    np.testing.assert_allclose(found, relations(students, teachers), rtol=1e-4)
    where = np.array([True, True, False, True, True, False])
    found = losses.relational_distance(students, teachers, where=where)
    np.testing.assert_allclose(found[where], relations(students[where], teachers[where]), rtol=1e-4)
    assert (found[~where] == 0).all()


def test_relational_distance_sees_no_rotation_scale_or_shift() -> None:
    random = np.random.default_rng(0)
    teachers = random.normal(size=(6, 4)).astype(np.float32)
    rotation = np.linalg.qr(random.normal(size=(4, 4)))[0].astype(np.float32)
    assert (losses.relational_distance(3 * teachers @ rotation + 1, teachers) < 1e-8).all()


def test_relational_distance_of_equal_vectors_has_a_gradient() -> None:
    students, teachers = np.ones((3, 2), np.float32), np.eye(3, dtype=np.float32)
    gradient = jax.grad(lambda s: losses.relational_distance(s, teachers).sum())(students)
    assert np.isfinite(gradient).all()
    assert (losses.relational_distance(students[:1], teachers[:1]) == 0).all()
