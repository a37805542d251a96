"""What objectives draw, what they leave out, and that each trains a small problem down."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data import Dataset, PairData, SequenceData
from jaxrec.functional import functional
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import (
    BCE,
    BPR,
    FullSoftmax,
    InBatchSoftmax,
    SampledSoftmax,
    SquaredError,
)
from jaxrec.ops.keys import Key
from jaxrec.optim import OptimizerConfig
from jaxrec.training import init_state, make_step
from jaxrec.typing import Array, Batch, UserError

USERS = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, -1.0]])
ITEMS = jnp.array([[9.0, 9.0], [1.0, 1.0], [0.5, -1.0], [2.0, 0.0], [-1.0, 3.0]])
SCORES = np.asarray(USERS @ ITEMS.T)


class Fixed:
    """A retriever whose vectors are given: user b of a batch is row `users[b]`."""

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        return {}

    def user_vectors(self, batch: Batch, *, key: Key | None = None) -> jax.Array:
        return USERS[batch.users]

    def item_vectors(self, ids: Array | None = None) -> jax.Array:
        return ITEMS if ids is None else ITEMS[jnp.asarray(ids)]


@pytest.fixture(scope="module")
def dataset(dataset_of: Callable[..., Dataset]) -> Dataset:
    """Even users choose among items 1 to 6 and odd ones among 7 to 12."""
    events = [(u, 1 + t + 6 * (u % 2), 0) for u in range(1, 31) for t in range(6)]
    labels = [1 + u % 3 + i % 2 for u, i, _ in events]
    return dataset_of(events, num_items=12, labels=labels)


def softplus(x: Any) -> Any:
    return np.log1p(np.exp(x))


def batch_of(**fields: Any) -> Batch:
    return Batch(users=jnp.array([0, 1, 2]), positives=jnp.array([1, 4, 3]), **fields)


NEGATIVES = jnp.array([[2, 3], [1, 4], [3, 3]])  # the second and the third name their positives
OBJECTIVES: dict[str, Any] = {
    "full": FullSoftmax(label_smoothing=0.05),
    "full_sequences": FullSoftmax(),
    "sampled": SampledSoftmax(num_negatives=8, power=0.5),
    "sampled_apart": SampledSoftmax(num_negatives=8, shared=False, logq=False),
    "in_batch": InBatchSoftmax(),
    "bce": BCE(),
    "gbce": BCE(num_negatives=4, calibration=0.75),
    "bpr": BPR(l2=1e-4),
    "bpr_shared": BPR(num_negatives=4, shared=True, l2=1e-4),
    "ratings": SquaredError(l2=1e-4),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_trains_a_small_problem_down(name: str, dataset: Dataset) -> None:
    objective = OBJECTIVES[name]
    config: Any = matrix_factorization.Config(dim=4, init_std=0.3)
    data: Any = PairData()
    if name == "full_sequences":
        config = sasrec.Config(max_len=4, dim=8, num_blocks=1, num_heads=1, hidden=8)
        data = SequenceData(max_len=4)
    model = functional(config.fit(dataset.manifest).build)
    optimizer = OptimizerConfig(name="adagrad", learning_rate=0.5).build(80)
    step = make_step(model, objective, optimizer, seed=0)
    state, batches = init_state(model, optimizer, 0), data.batches(dataset, 16, 0)
    statistics = objective.statistics(dataset)
    losses = []
    for number in range(80):
        state, metrics = step(state, batches.batch(number), statistics)
        losses.append(metrics.loss)
    values = np.asarray(jax.device_get(losses))
    assert np.isfinite(values).all()
    # Which of six items comes is left to chance: log 6 of log 12 is 0.72, and half of 2 log 2.
    assert values[-12:].mean() < 0.85 * values[:3].mean()


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize("shared", [True, False])
def test_draws_have_the_stated_shape_and_never_padding(
    shape: tuple[int, ...], shared: bool, dataset: Dataset
) -> None:
    objective = SampledSoftmax(num_negatives=5, shared=shared, power=1.0)
    batch = Batch(positives=jnp.ones(shape, jnp.int32), features={"other": jnp.ones(3)})
    statistics = objective.statistics(dataset)
    drawn = objective.draw(batch, statistics, jax.random.key(0))
    assert drawn.negatives.shape == ((5,) if shared else (*shape, 5))
    assert drawn.negatives.min() >= 1 and drawn.negatives.max() <= 12
    features = drawn.features or {}
    assert features["log_q_negatives"].shape == drawn.negatives.shape
    assert "other" in features
    counts = dataset.item_counts
    expected = np.log(counts[drawn.negatives] / counts.sum())
    np.testing.assert_allclose(features["log_q_negatives"], expected, rtol=1e-5)


def test_bce_by_hand_leaves_negatives_out_that_are_the_positive() -> None:
    total, weight = BCE().loss(
        Fixed(), batch_of(negatives=NEGATIVES, features={"beta": jnp.float32(1)}), None
    )
    expected = softplus(-SCORES[0, 1]) + softplus(SCORES[0, 2]) + softplus(SCORES[0, 3])
    expected += softplus(-SCORES[1, 4]) + softplus(SCORES[1, 1]) + softplus(-SCORES[2, 3])
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(weight) == 3


def test_bpr_by_hand_leaves_negatives_out_that_are_the_positive() -> None:
    total, _ = BPR().loss(Fixed(), batch_of(negatives=NEGATIVES), None)
    expected = (softplus(SCORES[0, 2] - SCORES[0, 1]) + softplus(SCORES[0, 3] - SCORES[0, 1])) / 2
    expected += softplus(SCORES[1, 1] - SCORES[1, 4])
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_bpr_adds_the_squared_norms_of_its_vectors() -> None:
    batch = batch_of(negatives=NEGATIVES)
    plain, _ = BPR().loss(Fixed(), batch, None)
    total, _ = BPR(l2=0.1).loss(Fixed(), batch, None)
    norms = np.asarray(ITEMS**2).sum(1)
    expected = np.asarray(USERS**2).sum() + norms[[1, 4, 3]].sum()
    expected += (norms[2] + norms[3]) / 2 + (norms[1] + norms[4]) / 2 + norms[3]
    np.testing.assert_allclose(total - plain, 0.1 * expected, rtol=1e-5)


def test_sampled_softmax_by_hand_counts_each_draw_for_its_share_of_the_catalogue() -> None:
    negatives = jnp.array([2, 3])
    log_q = jnp.log(jnp.array([0.2, 0.4]))
    batch = batch_of(negatives=negatives, features={"log_q_negatives": log_q})
    total, _ = SampledSoftmax(num_negatives=2).loss(Fixed(), batch, None)
    second, third = SCORES[:, 2] - np.log(2 * 0.2), SCORES[:, 3] - np.log(2 * 0.4)
    own = SCORES[[0, 1, 2], [1, 4, 3]]
    expected = np.log(np.exp(own) + np.exp(second) + np.exp(third)) - own
    expected[2] = np.log(np.exp(own[2]) + np.exp(second[2])) - own[2]
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)


def test_full_softmax_by_hand() -> None:
    total, weight = FullSoftmax().loss(Fixed(), batch_of(), None)
    own = SCORES[[0, 1, 2], [1, 4, 3]]
    expected = np.log(np.exp(SCORES[:, 1:]).sum(1)) - own
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)
    assert float(weight) == 3


def drawn_batch(objective: Any, dataset: Dataset) -> Batch:
    batch = batch_of(labels=jnp.array([1.0, 2.0, 3.0]))
    return objective.draw(batch, objective.statistics(dataset), jax.random.key(1))


@pytest.fixture(scope="module")
def four_items(dataset_of: Callable[..., Dataset]) -> Dataset:
    events = [(1, 1, 0), (1, 2, 0), (1, 2, 0), (2, 3, 0), (2, 4, 0)]
    return dataset_of(events, num_items=4, labels=[1.0, 2.0, 3.0, 4.0, 5.0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_order_of_a_batch_does_not_matter(name: str, four_items: Dataset) -> None:
    objective = OBJECTIVES[name]
    batch = drawn_batch(objective, four_items)
    order = jnp.array([2, 0, 1])

    def permuted(x: jax.Array) -> jax.Array:
        return x[order] if x.ndim and len(x) == 3 else x

    total, weight = objective.loss(Fixed(), batch, None)
    other = objective.loss(Fixed(), jax.tree.map(permuted, batch), None)
    np.testing.assert_allclose(other, (total, weight), rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_entries_that_do_not_count_leave_the_loss_of_the_rest(
    name: str, four_items: Dataset
) -> None:
    objective = OBJECTIVES[name]
    batch = drawn_batch(objective, four_items)

    def loss(**changes: Any) -> np.ndarray:
        return np.asarray(objective.loss(Fixed(), batch.replace(**changes), None))

    none = loss(where=jnp.zeros(3, bool))
    np.testing.assert_array_equal(none, [0, 0])
    if name != "in_batch":  # whose rows are each other's negatives
        singles = [loss(where=jnp.arange(3) == row) for row in range(3)]
        np.testing.assert_allclose(loss(), sum(singles), rtol=1e-5)
        weighted = loss(weights=jnp.array([0.5, 0.0, 2.0]))
        expected = 0.5 * singles[0] + 2 * singles[2]
        np.testing.assert_allclose(weighted, expected, rtol=1e-5)
    masked = loss(where=jnp.array([True, False, True]))
    other = batch.positives.at[1].set(0)
    np.testing.assert_allclose(
        loss(where=jnp.array([True, False, True]), positives=other), masked, rtol=1e-5
    )


def test_ratings_without_labels_are_refused(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="wants labels"):
        SquaredError().statistics(dataclasses.replace(dataset, labels=None))


@pytest.mark.parametrize(
    "make",
    [lambda: BCE(num_negatives=0), lambda: FullSoftmax(label_smoothing=1.0)],
)
def test_values_outside_of_their_range_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()


@pytest.mark.parametrize("calibration", [-0.1, 1.5])
def test_a_calibration_outside_of_its_range_is_refused_at_once(calibration: float) -> None:
    with pytest.raises(ValueError, match="calibration must be"):
        BCE(calibration=calibration)
