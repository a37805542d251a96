"""The training step: touched rows against dense, parts against the whole, devices against one."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
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
from jaxrec.optim import OptimizerConfig
from jaxrec.training import StepMetrics, TrainState, init_state, make_step
from jaxrec.typing import Batch

SASREC = sasrec.Config(
    max_len=6, dim=8, num_blocks=1, num_heads=2, hidden=8, dropout=0.0, attention_dropout=0.0
)
SEQUENCES, PAIRS = SequenceData(max_len=6), PairData()
FACTORS = matrix_factorization.Config(dim=4, init_std=0.3)


@pytest.fixture(scope="module")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    dataset = random_dataset(0, num_users=150, num_items=300, mean_length=12)
    labels = np.random.default_rng(0).uniform(1, 5, len(dataset.items)).astype(np.float32)
    return dataclasses.replace(dataset, labels=labels)


@functools.cache
def compiled(
    config: Any, objective: Any, optimizer: OptimizerConfig, **options: Any
) -> tuple[TrainState, Any]:
    """The first state, on the host, and the step; kept, as compiling is what takes time here."""
    model, transform = functional(config.build), optimizer.build(100)
    state = init_state(model, transform, 3, average=options.get("average", 0) > 0)
    step = make_step(model, objective, transform, seed=3, **options)
    return jax.device_get(state), step


@functools.cache
def dense(kind: Any) -> Any:
    """The same objective, whose step is made to take whole tables."""
    return type(f"Dense{kind.__name__}", (kind,), {"whole_catalogue": True})


@dataclasses.dataclass(frozen=True)
class Run:
    """Some steps of one experiment on the first batches of a dataset."""

    dataset: Dataset
    data: Any
    model: Any
    objective: Any
    optimizer: OptimizerConfig = OptimizerConfig(name="adagrad", learning_rate=0.1)
    batch_size: int = 8

    def dense(self) -> "Run":
        """The same run whose objective wants whole tables."""
        values = {
            f.name: getattr(self.objective, f.name) for f in dataclasses.fields(self.objective)
        }
        kind: Any = type(self.objective)
        return dataclasses.replace(self, objective=dense(kind)(**values))

    def batches(self, steps: int) -> list[Batch]:
        batches = self.data.batches(self.dataset, self.batch_size, 0)
        return [jax.tree.map(jnp.asarray, batches.batch(step)) for step in range(steps)]

    def __call__(
        self, batches: list[Batch], **options: Any
    ) -> tuple[list[TrainState], list[StepMetrics]]:
        config = self.model.fit(self.dataset.manifest)
        start, step = compiled(config, self.objective, self.optimizer, **options)
        state: TrainState = jax.device_put(start)
        statistics = jax.device_put(self.objective.statistics(self.dataset))
        states, metrics = [start], []
        for batch in batches:
            state, told = step(state, batch, statistics)
            states.append(jax.device_get(state))
            metrics.append(jax.device_get(told))
        return states, metrics


def distinct(batch: Batch, *fields: str) -> set[int]:
    ids = np.concatenate([np.ravel(getattr(batch, field)) for field in fields])
    return set(ids.tolist()) | {0}


CASES = {
    "sasrec_bce": (SEQUENCES, SASREC, BCE(num_negatives=2)),
    "sasrec_untied_bce": (SEQUENCES, dataclasses.replace(SASREC, tied=False), BCE()),
    "factors_sampled": (PAIRS, FACTORS, SampledSoftmax(num_negatives=20, power=0.5)),
    "factors_in_batch": (PAIRS, FACTORS, InBatchSoftmax()),
    "factors_bpr": (PAIRS, FACTORS, BPR(num_negatives=2, l2=0.01)),
    "factors_ratings": (PAIRS, FACTORS, SquaredError(l2=0.01)),
}
OPTIMIZERS = {
    "sgd": OptimizerConfig(name="sgd", learning_rate=0.5),
    "adagrad": OptimizerConfig(name="adagrad", learning_rate=0.1),
    "clipped": OptimizerConfig(name="sgd", learning_rate=0.5, clip_norm=0.05),
}


def with_duplicates(batch: Batch) -> Batch:
    """Half of the rows are copies of the others, so that ids come many times."""
    return jax.tree.map(lambda x: jnp.concatenate([x[:4], x[:4]]), batch)


@pytest.mark.grid(quick=4)
@pytest.mark.parametrize(
    ("case", "optimizer"),
    [(case, "adagrad") for case in CASES] + [("factors_bpr", "sgd"), ("factors_bpr", "clipped")],
)
def test_touched_rows_give_the_dense_step(case: str, optimizer: str, dataset: Dataset) -> None:
    data, model, objective = CASES[case]
    run = Run(dataset, data, model, objective, OPTIMIZERS[optimizer])
    batches = [with_duplicates(batch) for batch in run.batches(4)]
    states, metrics = run(batches)
    reference, told = run.dense()(batches)
    chex.assert_trees_all_close(states[-1], reference[-1], rtol=2e-4, atol=2e-6)
    chex.assert_trees_all_close(metrics, told, rtol=1e-5)
    assert not np.array_equal(
        states[0].params["items"]["table"], states[-1].params["items"]["table"]
    )


@pytest.mark.parametrize("name", ["adam", "lion"])
def test_rows_and_moments_that_a_batch_does_not_touch_stay(name: Any, dataset: Dataset) -> None:
    optimizer = OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.1, decay_tables=True)
    run = Run(dataset, PAIRS, FACTORS, SquaredError(), optimizer)
    batches = run.batches(2)
    # Optax raises a Python number to the power of an integer count.
    with jax.numpy_dtype_promotion("standard"):
        states, _ = run(batches)
        reference, _ = run.dense()(batches)
    chex.assert_trees_all_close(
        states[1].params["users"]["table"][batches[0].users],
        reference[1].params["users"]["table"][batches[0].users],
        rtol=1e-4,
    )
    for number, batch in enumerate(batches):
        for table, field in (("users", "users"), ("items", "positives")):
            before, after = (
                jax.tree_util.tree_leaves_with_path((s.params, s.optimizer))
                for s in states[number : number + 2]
            )
            size = states[0].params[table]["table"].shape[0]
            untouched = sorted(set(range(size)) - distinct(batch, field))
            touched = sorted(distinct(batch, field) - {0})
            for (path, old), (_, new) in zip(before, after, strict=True):
                if f"'{table}'" in jax.tree_util.keystr(path):
                    np.testing.assert_array_equal(old[untouched], new[untouched])
                    assert (old[touched] != new[touched]).any()
    old, new = (s.params["items"]["table"] for s in reference[1:])
    assert (old != new).any(axis=1).sum() > len(distinct(batches[1], "positives"))


def test_overflow_counts_the_distinct_rows_beyond_capacity(dataset: Dataset) -> None:
    run = Run(dataset, PAIRS, FACTORS, InBatchSoftmax(), batch_size=24)
    batches = run.batches(1)
    batches = [batches[0].replace(users=batches[0].users // 2 + 1)]
    counts = [len(distinct(batches[0], field) - {0}) for field in ("users", "positives")]
    assert min(counts) > 5
    for capacity in (5, max(counts)):
        expected = sum(max(0, count - capacity) for count in counts)
        states, metrics = run(batches, capacity=capacity)
        assert int(metrics[0].overflow) == expected
        if not expected:
            whole, _ = run(batches)
            chex.assert_trees_all_close(states, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.grid
@pytest.mark.parametrize(
    ("data", "model", "objective"),
    [
        (SEQUENCES, SASREC, FullSoftmax()),
        (PAIRS, FACTORS, BCE(num_negatives=2)),
        (PAIRS, FACTORS, SquaredError(l2=0.01)),
    ],
    ids=["full", "bce", "ratings"],
)
def test_four_parts_give_the_whole_batch(
    data: Any, model: Any, objective: Any, dataset: Dataset
) -> None:
    run = Run(dataset, data, model, objective)
    batches = run.batches(2)
    # Parts with different numbers of examples, one of them empty.
    where = [b.where & (jnp.arange(8) < 6).reshape(8, *[1] * (b.where.ndim - 1)) for b in batches]
    batches = [b.replace(where=w) for b, w in zip(batches, where, strict=True)]
    states, metrics = run(batches, accumulate=4)
    whole, told = run(batches)
    chex.assert_trees_all_close(states, whole, rtol=1e-4, atol=2e-6)
    chex.assert_trees_all_close(metrics, told, rtol=1e-5)


def test_parts_of_a_batch_add_up_in_float32(dataset: Dataset) -> None:
    ones = np.ones(512, np.int32)
    batch = Batch(users=ones, positives=ones, labels=np.full(512, 4.0, np.float32))
    model = functional(FACTORS.fit(dataset.manifest).build)
    optimizer = OptimizerConfig(name="sgd", momentum=0.9).build(1)
    found = []
    for accumulate in (1, 512):
        step = make_step(model, SquaredError(), optimizer, seed=0, accumulate=accumulate)
        state = init_state(model, optimizer, 0, table_dtype="bfloat16")
        found.append(step(state, batch, {})[0].optimizer[0].trace["items"]["table"][1])
    np.testing.assert_allclose(found[1], found[0], rtol=2**-7)


def test_negatives_and_dropout_are_drawn_anew_at_each_step(dataset: Dataset) -> None:
    still = OptimizerConfig(name="sgd", learning_rate=1e-12)
    dropping = dataclasses.replace(SASREC, dropout=0.5)
    cases: Any = (
        (PAIRS, FACTORS, BPR()),
        (SEQUENCES, dropping, FullSoftmax()),
        (PAIRS, FACTORS, SquaredError()),
    )
    drawn = []
    for data, model, objective in cases:
        run = Run(dataset, data, model, objective, still)
        batch = run.batches(1)[0]
        _, metrics = run([batch, batch])
        _, again = run([batch])
        assert metrics[0].loss == again[0].loss
        drawn.append(abs(float(metrics[0].loss) - float(metrics[1].loss)) > 1e-4)
    assert drawn == [True, True, False]


def test_a_batch_without_examples_has_loss_zero_and_moves_nothing(dataset: Dataset) -> None:
    for data, model, objective in CASES.values():
        run = Run(dataset, data, model, objective)
        batch = run.batches(1)[0]
        states, metrics = run([batch.replace(where=jnp.zeros_like(batch.where))])
        assert metrics[0].loss == 0 and metrics[0].examples == 0
        chex.assert_trees_all_equal(states[0].params, states[1].params)


def test_metrics_are_the_weighted_mean_and_the_sum_of_weights(dataset: Dataset) -> None:
    run = Run(dataset, PAIRS, FACTORS, SquaredError())
    batch = run.batches(1)[0].replace(weights=jnp.arange(8.0))
    states, metrics = run([batch])
    users, items = (states[0].params[name]["table"] for name in ("users", "items"))
    p, q = users[batch.users], items[batch.positives]
    scores = (p[:, :-1] * q[:, :-1]).sum(1) + p[:, -1] + q[:, -1]
    errors = (scores - np.asarray(batch.labels)) ** 2
    np.testing.assert_allclose(metrics[0].loss, (errors * np.arange(8)).sum() / 28, rtol=1e-5)
    assert metrics[0].examples == 28
    assert [int(state.step) for state in states] == [0, 1]


def test_the_average_follows_the_parameters(dataset: Dataset) -> None:
    run = Run(dataset, SEQUENCES, SASREC, FullSoftmax())
    states, _ = run(run.batches(3), average=0.15)
    chex.assert_trees_all_equal(states[0].average, states[0].params)
    average = states[0].params
    for state, keep in zip(states[1:], (1 / 10, 0.15, 0.15), strict=True):
        average = jax.tree.map(lambda a, p, k=keep: k * a + (1 - k) * p, average, state.params)
        chex.assert_trees_all_close(state.average, average, rtol=1e-4, atol=1e-6)


def test_seeds_decide_the_parameters(dataset: Dataset) -> None:
    model = functional(FACTORS.fit(dataset.manifest).build)
    optimizer = OptimizerConfig().build(10)
    first, again, other = (init_state(model, optimizer, seed) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert (first.params["items"]["table"][1:] != other.params["items"]["table"][1:]).all()


@pytest.mark.grid(quick=2)
@pytest.mark.parametrize("name", ["adam", "momentum"])
@pytest.mark.parametrize("whole", [True, False])
def test_row_0_of_every_table_stays_0(whole: bool, name: str, dataset: Dataset) -> None:
    optimizers = {
        "adam": OptimizerConfig(learning_rate=0.1, weight_decay=0.1, decay_tables=True),
        "momentum": OptimizerConfig(name="sgd", learning_rate=0.5, momentum=0.9, l2_to_start=0.1),
    }
    objective: Any = FullSoftmax() if whole else BCE(num_negatives=2)
    untied = dataclasses.replace(SASREC, tied=False)
    run = Run(dataset, SequenceData(max_len=6, targets="all"), untied, objective, optimizers[name])
    # Padding is looked up: at empty places of histories, and as the targets there.
    with jax.numpy_dtype_promotion("standard"):
        states, _ = run(run.batches(2))
    for table in ("items", "outputs"):
        assert (states[0].params[table]["table"][0] == 0).all()
        assert (states[-1].params[table]["table"][0] == 0).all()
        assert (states[-1].params[table]["table"][1:] != 0).any()


def test_gradients_of_bfloat16_are_scaled_in_float32(dataset: Dataset) -> None:
    """A sum of 3 by a weight of 3 examples is 1 and not what bfloat16 makes of a third."""
    model = functional(FACTORS.fit(dataset.manifest).build)
    momentum = OptimizerConfig(name="sgd", learning_rate=1.0, momentum=0.9).build(1)
    ones = np.ones(3, np.int32)
    batch = Batch(users=ones, positives=ones, labels=np.full(3, 4.0, np.float32))
    wide, narrow = (
        make_step(model, SquaredError(), momentum, seed=0)(
            init_state(model, momentum, 0, table_dtype=dtype), batch, {}
        )[0]
        for dtype in ("float32", "bfloat16")
    )
    gradient = narrow.optimizer[0].trace["items"]["table"][1]
    assert gradient.dtype == jnp.float32
    # The sum of three, which is what bfloat16 holds, divided once.
    thrice = np.asarray(gradient, np.float64) * 3
    as_held = np.asarray(jnp.asarray(thrice, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(thrice, as_held, rtol=1e-6)
    np.testing.assert_allclose(
        gradient, wide.optimizer[0].trace["items"]["table"][1], rtol=2**-6, atol=1e-3
    )
