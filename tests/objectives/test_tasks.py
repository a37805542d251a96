"""Tasks of heads: losses and metrics by hand, and training on a trunk."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data import Dataset, PairData, SequenceData
from jaxrec.evaluation import EvaluationConfig, requests_of
from jaxrec.finetuning import LoRA
from jaxrec.functional import functional_of
from jaxrec.models import Head, WithHeads, matrix_factorization, sasrec
from jaxrec.objectives import (
    BCE,
    Category,
    Click,
    FullSoftmax,
    MultiTask,
    Rating,
    SampledSoftmax,
)
from jaxrec.objectives.tasks import head_outputs
from jaxrec.optim import OptimizerConfig
from jaxrec.paths import flatten
from jaxrec.training import (
    ExperimentConfig,
    TrainingConfig,
    init_state,
    load_trained,
    make_step,
    train,
)
from jaxrec.typing import Batch, UserError

TRUNK = sasrec.Config(max_len=6, dim=8, num_blocks=1, num_heads=2, hidden=12)
HEADS = (Head(name="category", outputs=3, sees_item=False), Head(name="rating"), Head(name="click"))
TASKS = (Category(weight=0.5), Rating(weight=2.0), Click(threshold=3.0))
CONFIG = WithHeads(model=TRUNK, heads=HEADS)


def labelled(dataset: Dataset) -> Dataset:
    """The dataset with labels from 1 to 5, and genres that follow from the item."""
    rng = np.random.default_rng(0)
    ids = np.arange(1, dataset.num_items + 1)
    genres = np.array(["Art", "Beat|Art", "Craft|Dance"])[ids % 3].astype(object)
    genres[0] = None
    vocabulary = dataset.item_vocabulary.assign(genres=genres)
    labels = rng.integers(1, 6, len(dataset.items)).astype(np.float32)
    return dataclasses.replace(dataset, labels=labels, item_vocabulary=vocabulary)


@pytest.fixture(scope="module")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    return labelled(random_dataset(0, num_users=60, num_items=30, mean_length=9))


def test_classes_are_the_first_of_a_cell(dataset: Dataset) -> None:
    classes, names = Category().classes(dataset)
    assert names == ["Art", "Beat", "Craft"]
    assert classes[:7].tolist() == [-1, -1, 2, 0, 1, 2, 0]
    assert classes.dtype == np.int32
    with pytest.raises(UserError, match="no item metadata 'colour'; there is: genres"):
        Category(column="colour").classes(dataset)


def test_losses_by_hand() -> None:
    outputs = jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    values, where = Category().losses(outputs, jnp.array([1, -1]))
    np.testing.assert_allclose(values[0], np.log(np.exp([-1.0, 0, -2]).sum()), rtol=1e-6)
    assert where.tolist() == [True, False]
    values, where = Rating().losses(jnp.array([[3.0], [1.0]]), jnp.array([5.0, 1.0]))
    np.testing.assert_allclose(values, [4.0, 0.0])
    assert where.all()
    values, _ = Click(threshold=3.0).losses(jnp.array([[2.0], [2.0]]), jnp.array([3.0, 2.9]))
    np.testing.assert_allclose(values, np.log1p(np.exp([-2.0, 2.0])), rtol=1e-6)


def test_metrics_by_hand() -> None:
    outputs = np.array([[1.0, 2.0, 0.0], [5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    assert Category().measure(outputs, np.array([1, 2, -1])) == 0.5
    np.testing.assert_allclose(Rating().measure(np.array([[3.0], [1.0]]), np.array([5, 1])), 2**0.5)
    clicks = Click(threshold=3.0)
    assert clicks.measure(np.array([[0.1], [0.9], [0.5]]), np.array([1.0, 4.0, 3.0])) == 1.0


def test_the_loss_is_the_sum_of_its_parts(dataset: Dataset) -> None:
    model = functional_of(CONFIG.fit(dataset.manifest))
    params = model.init(jax.random.key(0))
    batch = SequenceData(max_len=6, targets="last").batches(dataset, 8, 0).batch(0)
    rng = np.random.default_rng(1)
    labels, weights = rng.uniform(1, 5, 8), np.arange(8) / 4
    batch = batch.replace(labels=labels.astype(np.float32), weights=weights.astype(np.float32))

    def loss_of(*tasks: Any, objective: Any = None) -> tuple[jax.Array, jax.Array]:
        every = MultiTask(tasks=tasks, objective=objective)
        drawn = every.draw(batch, every.statistics(dataset), jax.random.key(0))
        return every.loss(model.bind(params), drawn, None)

    total, weight = loss_of(*TASKS, objective=FullSoftmax())
    plain, plain_weight = FullSoftmax().loss(model.bind(params), batch, None)
    parts = [loss_of(task)[0] for task in TASKS]
    np.testing.assert_allclose(total, plain + sum(parts), rtol=1e-5)
    np.testing.assert_allclose(weight, plain_weight)

    module = model.bind(params)
    users, items = module.user_vectors(batch), module.item_vectors(batch.positives)
    inputs = np.concatenate([users, items, users * items], axis=-1)
    flat = flatten(params)
    kernel, bias = (np.asarray(flat[f"heads/rating/{name}"]) for name in ("kernel", "bias"))
    outputs = inputs @ kernel + bias
    np.testing.assert_allclose(
        outputs, head_outputs(module, "rating", users, items), rtol=1e-4, atol=1e-6
    )
    expected = 2 * np.sum(weights * (outputs[:, 0] - labels) ** 2 * batch.where)
    np.testing.assert_allclose(parts[1], expected, rtol=1e-4)


@pytest.mark.grid
@pytest.mark.parametrize("objective", [None, BCE(num_negatives=1)], ids=["alone", "with bce"])
def test_touched_rows_give_what_the_dense_step_gives(
    objective: Any, random_dataset: Callable[..., Dataset]
) -> None:
    dataset = labelled(random_dataset(0, num_users=60, num_items=300, mean_length=9))
    trunk = dataclasses.replace(TRUNK, dropout=0.0, attention_dropout=0.0)
    model = functional_of(WithHeads(model=trunk, heads=HEADS[:1]).fit(dataset.manifest))
    optimizer = OptimizerConfig(name="adagrad", learning_rate=0.1).build(10)
    batch = SequenceData(max_len=6).batches(dataset, 4, 0).batch(0)

    def stepped(kind: Any) -> Any:
        every = kind(tasks=TASKS[:1], objective=objective)
        step = make_step(model, every, optimizer, seed=0)
        return step(init_state(model, optimizer, 0), batch, every.statistics(dataset))

    sparse, metrics = stepped(MultiTask)
    dense, _ = stepped(type("Dense", (MultiTask,), {"whole_catalogue": True}))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), sparse.params, dense.params
    )
    assert float(metrics.examples) > 0


def test_metrics_of_a_split_are_those_of_its_events(dataset: Dataset, tmp_path: Path) -> None:
    config = ExperimentConfig(
        data=SequenceData(max_len=6, labels=True),
        model=CONFIG,
        objective=MultiTask(tasks=TASKS, objective=FullSoftmax()),
        optimizer=OptimizerConfig(name="adagrad", learning_rate=0.1),
        training=TrainingConfig(steps=6, batch_size=8),
        evaluation=EvaluationConfig(batch_size=16, monitor="rating/rmse"),
    )
    result = train(config, dataset, tmp_path, quiet=True)
    experiment, params, _ = load_trained(tmp_path, dataset)
    module, requests = experiment.model.bind(params), requests_of(dataset, "test")
    ratings, expected, right = [], [], []
    assert dataset.labels is not None
    classes, _ = Category().classes(dataset)
    for row, user in enumerate(requests.users):
        (event,) = np.flatnonzero((dataset.users == user) & (dataset.split == 2))
        history = Batch(history=requests.padded_history(6, np.array([row])))
        vector = module.user_vectors(history)
        item = module.item_vectors(dataset.items[event : event + 1])
        ratings.append(float(head_outputs(module, "rating", vector, item)[0, 0]))
        expected.append(dataset.labels[event])
        guess = int(head_outputs(module, "category", vector).argmax())
        if classes[dataset.items[event]] >= 0:
            right.append(guess == classes[dataset.items[event]])
    rmse = np.sqrt(np.mean(np.square(np.array(ratings) - np.array(expected))))
    np.testing.assert_allclose(result["test"]["rating/rmse"], rmse, rtol=1e-4)
    np.testing.assert_allclose(result["test"]["category/accuracy"], np.mean(right))
    assert 0 <= result["test"]["click/auc"] <= 1
    assert "ndcg@10" in result["test"]


def test_a_head_learns_what_its_trunk_can_tell(dataset: Dataset) -> None:
    """The category of an item is known from the item itself, which the head does not see."""
    users = matrix_factorization.Config(dim=4, init_std=0.3)
    config = WithHeads(model=users, heads=(Head(name="rating"),)).fit(dataset.manifest)
    model, objective = functional_of(config), MultiTask(tasks=(Rating(),))
    # Labels that the item decides alone.
    dataset = dataclasses.replace(dataset, labels=(dataset.items % 5 + 1).astype(np.float32))
    optimizer = OptimizerConfig(name="adagrad", learning_rate=0.3).build(300)
    step, state = make_step(model, objective, optimizer, seed=0), init_state(model, optimizer, 0)
    batches, losses = PairData().batches(dataset, 64, 0), []
    for number in range(300):
        state, metrics = step(state, batches.batch(number), objective.statistics(dataset))
        losses.append(metrics.loss)
    assert float(losses[-1]) < 0.2 < float(losses[0])


def test_heads_keep_the_paths_of_the_trunk() -> None:
    config = dataclasses.replace(TRUNK, num_items=9)
    trunk = functional_of(config)
    model = functional_of(WithHeads(model=config, heads=HEADS))
    plain, more = (flatten(m.init(jax.random.key(0))) for m in (trunk, model))
    assert {path for path in more if path not in plain} == {
        f"heads/{name}/{leaf}"
        for name in ("category", "rating", "click")
        for leaf in ("kernel", "bias")
    }
    for path, value in plain.items():
        np.testing.assert_array_equal(value, more[path])
    assert model.tables == trunk.tables
    assert model.layers == (*trunk.layers, ("heads",))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: WithHeads(model=TRUNK, heads=()), "at least one"),
        (lambda: WithHeads(model=TRUNK, heads=(HEADS[1], HEADS[1])), "different names"),
        (lambda: WithHeads(model=LoRA(model=TRUNK), heads=HEADS), r"LoRA\(model=WithHeads"),
        (lambda: MultiTask(tasks=()), "at least one"),
        (lambda: MultiTask(tasks=(Rating(weight=0.0),)), "above 0"),
    ],
)
def test_options_that_do_not_fit(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_what_is_missing_is_named(dataset: Dataset) -> None:
    plain = dataclasses.replace(dataset, labels=None)
    with pytest.raises(UserError, match=r"rating, click want labels .* --label_column"):
        MultiTask(tasks=TASKS).statistics(plain)
    objective = MultiTask(tasks=TASKS)
    with pytest.raises(UserError, match=r"data\.labels=true"):
        batch = SequenceData(max_len=6).batches(dataset, 4, 0).batch(0)
        objective.draw(batch, objective.statistics(dataset), jax.random.key(0))
    with pytest.raises(UserError, match="a head 'rating' and the model has none"):
        bound = functional_of(dataclasses.replace(TRUNK, num_items=9)).bind
        module = bound(
            functional_of(dataclasses.replace(TRUNK, num_items=9)).init(jax.random.key(0))
        )
        head_outputs(module, "rating", jnp.zeros((1, 8)))
    with pytest.raises(UserError, match="metric of no task; the objective's are: rating/rmse"):
        ExperimentConfig(
            data=SequenceData(max_len=6),
            model=CONFIG,
            objective=MultiTask(tasks=(Rating(),), objective=SampledSoftmax()),
            evaluation=EvaluationConfig(monitor="click/auc"),
        )


def test_an_adapted_trunk_has_its_heads_trained(dataset: Dataset) -> None:
    config = LoRA(model=CONFIG, rank=2, on=("blocks",), also=("heads",)).fit(dataset.manifest)
    model = functional_of(config)
    assert "heads/rating/kernel" not in model.frozen
    assert "items/table" in model.frozen
