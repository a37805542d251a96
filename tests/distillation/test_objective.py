"""The objective with a teacher: numbers, what it must not change, every kind of step."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data import Dataset, PairData, SequenceData
from jaxrec.distillation import Distillation
from jaxrec.functional import functional
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import BPR, FullSoftmax, InBatchSoftmax, SampledSoftmax
from jaxrec.objectives.base import features_of
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import Layout, MeshConfig, replicate, shard_batch
from jaxrec.training import ExperimentConfig, TrainState, init_state, load_trained, make_step, train
from jaxrec.training.host import HostStep, to_host
from jaxrec.typing import Params, UserError

STUDENT = sasrec.Config(
    max_len=8, dim=4, num_blocks=1, num_heads=1, hidden=8, dropout=0.0, attention_dropout=0.0
)
FACTORS = matrix_factorization.Config(dim=3, init_std=0.3)
SGD = OptimizerConfig(name="sgd", learning_rate=0.1)
OF_PAIRS: dict[str, Any] = {"data": PairData(), "model": FACTORS}  # compiles soonest
PACKED, LAST = SequenceData(max_len=8), SequenceData(max_len=8, targets="last", buckets=())


def run(
    dataset: Dataset,
    objective: Any,
    *,
    data: Any = PACKED,
    model: Any = STUDENT,
    mesh: MeshConfig | None = None,
    steps: int = 3,
    seed: int = 0,
    **options: Any,
) -> tuple[TrainState, list[float]]:
    """Trains some steps, on a mesh with tables split by row."""
    functions, optimizer = functional(model.fit(dataset.manifest).build), SGD.build(100)
    devices = (mesh or MeshConfig()).build()
    names = ("items", "users", "outputs")
    layout = Layout(
        axes=("data", "model"), table_axis="model", placements=dict.fromkeys(names, "row")
    )
    where: dict[str, Any] = {"mesh": devices, "layout": layout} if mesh else {}
    state = init_state(functions, optimizer, seed, **where)
    step = make_step(functions, objective, optimizer, seed=0, **options, **where)
    statistics = replicate(objective.statistics(dataset), devices)
    batches, told = data.batches(dataset, 16, 0), []
    for number in range(steps):
        state, metrics = step(state, shard_batch(batches.batch(number), devices), statistics)
        assert metrics.overflow == 0
        told.append(float(metrics.loss))
    state = jax.device_get(state)
    whole = functions.shapes
    params = jax.tree.map(lambda x, s: x[: s.shape[0]] if x.ndim else x, state.params, whole)
    return dataclasses.replace(state, params=params), told


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def untaught(dataset: Dataset, weights: np.ndarray) -> tuple[Any, Params, Any]:
    """A factorisation that has learned nothing, its parameters, and pairs with these weights."""
    model = functional(FACTORS.fit(dataset.manifest).build)
    batch = PairData().batches(dataset, 16, 0).batch(0)
    return model, model.init(jax.random.key(1)), batch.replace(weights=weights)


def test_loss_and_gradient_against_numpy(dataset: Dataset, factors: Path) -> None:
    objective = Distillation(
        objective=FullSoftmax(), teacher=str(factors), weight=0.3, temperature=2.0, top_k=5
    )
    experiment, taught, _ = load_trained(factors, dataset)
    weights = np.where(np.arange(16) == 3, 0, 1 + np.arange(16) % 3).astype(np.float32)
    model, params, batch = untaught(dataset, weights)
    statistics = objective.statistics(dataset)

    def total(params: Params) -> jax.Array:
        drawn = objective.draw(batch, statistics, jax.random.key(0))
        return objective.loss(model.bind(params), drawn, None)[0]

    # By hand: every score, of which the teacher's best five are compared.
    users, items = (np.asarray(params[n]["table"], np.float64) for n in ("users", "items"))
    teach = {n: np.asarray(taught[n]["table"], np.float64) for n in ("users", "items")}
    rows = batch.users

    def scores(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        mine = users[rows]
        return np.asarray(mine[:, :-1] @ items[:, :-1].T + mine[:, -1:] + items[:, -1])

    told = scores(teach["users"], teach["items"])[:, 1:]
    best = 1 + np.argsort(-told, axis=1)[:, :5]
    mine = scores(users, items)
    p = softmax(np.take_along_axis(told, best - 1, axis=1) / 2)
    q = softmax(np.take_along_axis(mine, best, axis=1) / 2)
    plain = softmax(mine[:, 1:])
    hard = -np.log(plain[np.arange(16), batch.positives - 1])
    soft = 4 * (p * np.log(p / q)).sum(axis=1)
    wanted = (weights * (0.7 * hard + 0.3 * soft)).sum()
    pull = np.zeros_like(mine)
    pull[:, 1:] = 0.7 * plain
    pull[np.arange(16), batch.positives] -= 0.7
    for row in range(16):
        pull[row, best[row]] += 0.3 * 2 * (q - p)[row]
    pull *= weights[:, None]
    gradient = {"users": np.zeros_like(users), "items": np.zeros_like(items)}
    ones = np.ones((len(items), 1))
    np.add.at(gradient["users"], rows, pull @ np.concatenate([items[:, :-1], ones], axis=1))
    ones = np.ones((16, 1))
    gradient["items"] = pull.T @ np.concatenate([users[rows][:, :-1], ones], axis=1)

    value, found = jax.value_and_grad(total)(params)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for name in gradient:
        np.testing.assert_allclose(found[name]["table"], gradient[name], rtol=1e-4, atol=1e-5)
    assert experiment.config.model.dim != FACTORS.dim


def test_divergence_over_the_catalogue_against_numpy(dataset: Dataset, factors: Path) -> None:
    objective = Distillation(
        objective=FullSoftmax(), teacher=str(factors), weight=0.3, temperature=2.0, top_k=0
    )
    experiment, taught, _ = load_trained(factors, dataset)
    weights = (np.arange(16) % 3).astype(np.float32)
    model, params, batch = untaught(dataset, weights)
    drawn = objective.draw(batch, objective.statistics(dataset), jax.random.key(0))
    value, weight = objective.loss(model.bind(params), drawn, None)
    hard, _ = FullSoftmax().loss(model.bind(params), batch, None)

    def log_p(functions: Any, params: Params) -> np.ndarray:
        users = functions.apply(params, batch, method="user_vectors")
        items = functions.apply(params, method="item_vectors")
        scores = np.asarray(users, np.float64) @ np.asarray(items, np.float64)[1:].T / 2
        return np.asarray(np.log(softmax(scores)))

    theirs, mine = log_p(experiment.model, taught), log_p(model, params)
    soft = 4 * (np.exp(theirs) * (theirs - mine)).sum(axis=1)
    np.testing.assert_allclose(value, 0.7 * hard + 0.3 * (weights * soft).sum(), rtol=1e-5)
    assert weight == weights.sum()


@pytest.mark.grid
@pytest.mark.parametrize(
    ("data", "candidates"), [(PACKED, (10, 7)), (LAST, (10, 7)), (PACKED, (0, 0))]
)
def test_a_student_that_is_its_teacher_is_not_moved(
    data: Any, candidates: tuple[int, int], dataset: Dataset, teacher: Path
) -> None:
    experiment, params, _ = load_trained(teacher, dataset)
    objective = Distillation(
        objective=FullSoftmax(),
        teacher=str(teacher),
        weight=1.0,
        top_k=candidates[0],
        num_samples=candidates[1],
        match_hidden=1.0,
    )
    given = data.batches(dataset, 16, 0).batch(0), objective.statistics(dataset)

    def total(params: Params, objective: Any, batch: Any, statistics: Any) -> jax.Array:
        drawn = objective.draw(batch, statistics, jax.random.key(0))
        return objective.loss(experiment.model.bind(params), drawn, None)[0]

    gradient = jax.jit(jax.value_and_grad(total), static_argnums=1)

    def size(objective: Any) -> float:
        squares = jax.tree.map(lambda x: jnp.sum(x**2), gradient(params, objective, *given)[1])
        return float(jnp.sqrt(sum(jax.tree.leaves(squares))))

    assert abs(gradient(params, objective, *given)[0]) < 1e-3
    assert size(objective) < 1e-4 * size(dataclasses.replace(objective, weight=0.5))


def test_without_weight_it_is_the_plain_objective_to_the_bit(
    dataset: Dataset, teacher: Path
) -> None:
    model, plain = dataclasses.replace(STUDENT, dropout=0.3), FullSoftmax()
    objective = Distillation(objective=plain, teacher=str(teacher), weight=0.0)
    chex.assert_trees_all_equal(
        run(dataset, objective, model=model), run(dataset, plain, model=model)
    )


@pytest.mark.grid
@pytest.mark.parametrize("plain", [SampledSoftmax(num_negatives=4), InBatchSoftmax()])
def test_without_weight_negatives_too_are_those_of_the_plain_objective(
    plain: Any, dataset: Dataset, factors: Path
) -> None:
    objective = Distillation(objective=plain, teacher=str(factors), weight=0.0)
    chex.assert_trees_all_equal(
        run(dataset, objective, **OF_PAIRS), run(dataset, plain, **OF_PAIRS)
    )


@pytest.mark.parametrize("data", [PACKED, LAST], ids=["packed", "last"])
def test_some_items_of_a_history_become_the_one_before(
    data: Any, dataset: Dataset, teacher: Path
) -> None:
    plain = FullSoftmax()
    objective = Distillation(objective=plain, teacher=str(teacher), top_k=3, augment=0.4)
    batch, key = data.batches(dataset, 64, 0).batch(0), jax.random.key(0)
    statistics = objective.statistics(dataset)
    drawn = objective.draw(batch, statistics, key)
    old, new = np.asarray(batch.history), np.asarray(drawn.history)
    segments = (old > 0).astype(int) if batch.segments is None else np.asarray(batch.segments)
    allowed = np.zeros(old.shape, bool)
    allowed[:, 1:] = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    before = np.roll(old, 1, axis=1)
    np.testing.assert_array_equal(new[~allowed], old[~allowed])
    assert np.all((new == old) | (new == before))
    differs = allowed & (before != old)
    draws = [objective.draw(batch, statistics, jax.random.key(seed)) for seed in range(10)]
    moved = [np.asarray(one.history)[differs] != old[differs] for one in draws]
    assert abs(np.mean(moved) - 0.4) < 0.08
    # The teacher answered what the student is asked.
    again = dataclasses.replace(objective, augment=0.0).draw(drawn, statistics, key)
    np.testing.assert_array_equal(again.candidates, drawn.candidates)
    # Positives stay, and another key draws others.
    np.testing.assert_array_equal(drawn.positives, batch.positives)
    other = objective.draw(batch, statistics, jax.random.key(1))
    assert np.any(np.asarray(other.history) != new)


def test_negatives_stay_those_of_the_plain_objective(dataset: Dataset, teacher: Path) -> None:
    plain = SampledSoftmax(num_negatives=6)
    objective = Distillation(objective=plain, teacher=str(teacher), num_samples=3, top_k=4)
    batch, key = PACKED.batches(dataset, 4, 0).batch(0), jax.random.key(0)
    drawn = objective.draw(batch, objective.statistics(dataset), key)
    np.testing.assert_array_equal(
        drawn.negatives, plain.draw(batch, plain.statistics(dataset), key).negatives
    )
    assert drawn.candidates.shape == features_of(drawn)["teacher_scores"].shape
    assert drawn.candidates.shape == (*batch.positives.shape, 7)
    assert drawn.candidates.min() >= 1
    assert drawn.candidates.max() <= dataset.num_items


OBJECTIVES: dict[str, dict[str, Any]] = {
    "full": {"objective": FullSoftmax(), "match_hidden": 0.5, "num_samples": 3},
    "sampled": {
        "objective": SampledSoftmax(num_negatives=4),
        "match_hidden": 0.5,
        "num_samples": 2,
    },
    "own": {"objective": SampledSoftmax(num_negatives=4, shared=False), "num_samples": 3},
    "all": {"objective": FullSoftmax(), "match_hidden": 0.5, "top_k": 0, "augment": 0.3},
}
UNTIED = dataclasses.replace(STUDENT, tied=False)
WIDE, DEEP = (MeshConfig(data=n, model=8 // n, tables="row") for n in (2, 1))
# With some seeds the norm of a row of 4 is close to 0 and makes rounding of 1e-7 one of 1e-5.
CASES = [
    ("full", PACKED, STUDENT, WIDE, 1),
    pytest.param("full", LAST, UNTIED, DEEP, 0, marks=pytest.mark.slow),
    ("sampled", PACKED, STUDENT, WIDE, 0),
    pytest.param("own", LAST, STUDENT, DEEP, 0, marks=pytest.mark.slow),
    ("all", PACKED, UNTIED, DEEP, 0),
]


@pytest.mark.grid
@pytest.mark.parametrize(("name", "data", "model", "mesh", "seed"), CASES)
def test_eight_devices_give_what_one_gives(
    name: str, data: Any, model: Any, mesh: MeshConfig, seed: int, dataset: Dataset, teacher: Path
) -> None:
    options: dict[str, Any] = {"teacher": str(teacher), "top_k": 4} | OBJECTIVES[name]
    objective = Distillation(**options)
    parts: dict[str, Any] = {"data": data, "model": model, "seed": seed}
    alone, losses = run(dataset, objective, **parts)
    together, others = run(dataset, objective, mesh=mesh, **parts)
    chex.assert_trees_all_close(together.params, alone.params, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(others, losses, rtol=1e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(SampledSoftmax):
    """Sampled softmax whose step is made to take whole tables."""

    @property
    def whole_catalogue(self) -> bool:
        return True


def test_touched_rows_give_what_the_dense_step_gives(dataset: Dataset, factors: Path) -> None:
    options: dict[str, Any] = {"teacher": str(factors), "top_k": 4, "num_samples": 2}
    objective = Distillation(objective=SampledSoftmax(num_negatives=4), **options)
    touched, losses = run(dataset, objective, capacity=80, **OF_PAIRS)
    objective = Distillation(objective=Dense(num_negatives=4), **options)
    dense, others = run(dataset, objective, **OF_PAIRS)
    chex.assert_trees_all_close(touched.params, dense.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses, others, rtol=1e-6)


@pytest.mark.grid
@pytest.mark.parametrize(
    ("plain", "top_k", "num_samples"),
    [(SampledSoftmax(num_negatives=4), 4, 2), (FullSoftmax(), 0, 0)],
)
def test_parts_of_a_batch_give_the_whole(
    plain: Any, top_k: int, num_samples: int, dataset: Dataset, factors: Path
) -> None:
    objective = Distillation(
        objective=plain, teacher=str(factors), top_k=top_k, num_samples=num_samples
    )
    whole, losses = run(dataset, objective, **OF_PAIRS)
    parts, others = run(dataset, objective, accumulate=4, **OF_PAIRS)
    chex.assert_trees_all_close(parts.params, whole.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses, others, rtol=1e-5)


@pytest.mark.slow
def test_tables_on_the_host_learn_the_same(dataset: Dataset, teacher: Path) -> None:
    objective = Distillation(teacher=str(teacher), top_k=4, **OBJECTIVES["sampled"])
    wanted, _ = run(dataset, objective)
    model, optimizer = functional(STUDENT.fit(dataset.manifest).build), SGD.build(100)
    state = to_host(init_state(model, optimizer, 0), ("items",))
    step = HostStep(model, objective, optimizer, tables=("items",), seed=0)
    batches, statistics = PACKED.batches(dataset, 16, 0), objective.statistics(dataset)
    for number in range(3):
        state, _ = step(state, batches.batch(number), statistics)
    chex.assert_trees_all_close(step.settle(state).params, wanted.params, rtol=1e-5, atol=1e-6)


def test_hidden_states_are_those_of_the_last_target_of_a_row(
    dataset: Dataset, teacher: Path
) -> None:
    objective = Distillation(objective=FullSoftmax(), teacher=str(teacher), match_hidden=1.0)
    experiment, params, _ = load_trained(teacher, dataset)
    batch = PACKED.batches(dataset, 8, 0).batch(0)
    drawn = objective.draw(batch, objective.statistics(dataset), jax.random.key(0))
    vectors = np.asarray(experiment.model.apply(params, batch, method="user_vectors"))
    for row, where in enumerate(np.asarray(batch.where)):
        if where.any():
            np.testing.assert_allclose(
                features_of(drawn)["teacher_users"][row],
                vectors[row, np.flatnonzero(where)[-1]],
                rtol=1e-5,
            )


def test_a_run_learns_from_a_teacher_and_is_opened_without_it(
    dataset: Dataset, teacher: Path, tmp_path: Path, config_of: Callable[..., ExperimentConfig]
) -> None:
    objective = Distillation(objective=FullSoftmax(), teacher=str(teacher), top_k=5)
    result = train(config_of(PACKED, STUDENT, objective), dataset, tmp_path / "run", quiet=True)
    experiment, params, _ = load_trained(tmp_path / "run", dataset)
    assert experiment.config.objective == objective
    again = experiment.evaluate(params, "valid", intervals=False)
    assert again.metrics == result["valid"]


def test_a_teacher_of_another_kind_of_data_is_refused(
    dataset: Dataset, teacher: Path, factors: Path
) -> None:
    objective = Distillation(objective=FullSoftmax(), teacher=str(factors))
    with pytest.raises(UserError, match=r"batches have no users.*teach\.py.*Taught"):
        run(dataset, objective)
    objective = Distillation(objective=BPR(), teacher=str(teacher))
    with pytest.raises(UserError, match="batches have no history"):
        run(dataset, objective, data=PairData(), model=FACTORS)


def test_a_teacher_of_other_items_is_refused(
    random_dataset: Callable[..., Dataset], teacher: Path
) -> None:
    other = random_dataset(0, num_users=9, num_items=90, mean_length=9)
    objective = Distillation(objective=FullSoftmax(), teacher=str(teacher))
    with pytest.raises(UserError, match=r"cannot teach on this dataset.*another item vocabulary"):
        objective.statistics(other)


def test_batches_without_labels_are_refused(dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"no teacher and the batches carry no labels"):
        run(dataset, Distillation(objective=FullSoftmax()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, "weight must be in"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"top_k": 1, "teacher": "x"}, "at least 2 together, or both 0"),
        ({"objective": BPR(), "top_k": 0, "teacher": "x"}, "BPR does not look at"),
        ({"augment": 1.0, "teacher": "x"}, r"augment must be in \[0, 1\)"),
        ({"augment": 0.1}, "set objective.teacher=WORKDIR"),
        ({"top_k": 0}, "set objective.teacher=WORKDIR"),
        ({"match_hidden": 1.0}, "set objective.teacher=WORKDIR"),
        ({"objective": Distillation(objective=BPR())}, "one teacher"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Distillation(**({"objective": FullSoftmax()} | options))
