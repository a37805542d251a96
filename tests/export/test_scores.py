"""A score is what was trained: products of an objective over items, or the output of a head."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import objectives
from jaxrec.data import PairData, SequenceData
from jaxrec.data.dataset import Dataset
from jaxrec.distillation import Distillation
from jaxrec.evaluation import EvaluationConfig
from jaxrec.export import load_artefact, programs
from jaxrec.export.programs import Spec, by_name
from jaxrec.export.run import export_run
from jaxrec.export.scores import OBJECTIVES, TASKS, scoring_of
from jaxrec.functional import functional_of
from jaxrec.models import Head, WithHeads, matrix_factorization, sasrec
from jaxrec.objectives import BPR, Category, Click, FullSoftmax, MultiTask, Rating, SquaredError
from jaxrec.objectives.tasks import head_outputs
from jaxrec.training import Experiment, ExperimentConfig, save_trained
from jaxrec.typing import Batch, UserError

TRUNK = sasrec.Config(num_items=30, max_len=6, dim=8, num_blocks=1, num_heads=2, hidden=12)
HEADS = (Head(name="category", outputs=3, sees_item=False), Head(name="rating"), Head(name="click"))
MODEL = WithHeads(model=TRUNK, heads=HEADS)
CLICK = MultiTask(tasks=(Click(threshold=4.0),))


def config_of(objective: Any) -> ExperimentConfig:
    return ExperimentConfig(
        data=SequenceData(max_len=6, labels=True),
        model=MODEL,
        objective=objective,
        evaluation=EvaluationConfig(
            ks=(5,), monitor="click/auc" if objective == CLICK else "ndcg@5", bootstrap_samples=0
        ),
    )


def told(objective: Any, head: str | None = None) -> Any:
    return scoring_of(functional_of(MODEL), config_of(objective), head)


def test_every_objective_and_task_says_what_its_score_is() -> None:
    kinds = {kind for kind in vars(objectives).values() if inspect.isclass(kind)}
    public = {kind for kind in kinds if kind.__name__ in objectives.__all__}
    losses = {kind for kind in public if hasattr(kind, "loss") and hasattr(kind, "statistics")}
    described = {*OBJECTIVES, MultiTask, objectives.Negatives, objectives.Objective}
    assert losses <= described, f"say in jaxrec.export.scores what they are: {losses - described}"
    tasks = {kind for kind in public if hasattr(kind, "losses") and kind.__name__ != "Task"}
    assert tasks == {*TASKS, Category}


def test_products_are_exported_where_an_objective_trained_them() -> None:
    alone = told(FullSoftmax())
    assert (alone.objective, alone.head, alone.left) == ("FullSoftmax", None, ())
    beside = told(MultiTask(tasks=(Click(), Rating()), objective=BPR()))
    assert (beside.objective, beside.head, beside.left) == ("BPR", None, ("click", "rating"))
    taught = told(Distillation(objective=BPR(), teacher=""))
    assert taught.objective == "BPR" and "as far as Distillation leaves it" in taught.means


def test_the_only_head_that_scores_items_is_exported_and_others_by_name() -> None:
    assert told(CLICK).head == "click"
    assert told(CLICK).means == "the logit of the probability that the label reaches 4"
    several = MultiTask(tasks=(Click(), Rating(), Category()))
    assert told(several, "rating").left == ("click", "category")
    with pytest.raises(UserError, match=r"no ranking of items.*Say which head .*--head=click"):
        told(several)
    with pytest.raises(UserError, match="no head 'category' was trained to score items"):
        told(several, "category")
    with pytest.raises(UserError, match="no ranking of items.*Train it with an objective beside"):
        told(MultiTask(tasks=(Category(),)))
    with pytest.raises(UserError, match="no head 'click' was trained to score items; this run has"):
        told(FullSoftmax(), "click")


@pytest.fixture(scope="module")
def labelled(dataset: Dataset) -> Dataset:
    labels = np.random.default_rng(0).integers(1, 6, len(dataset.items)).astype(np.float32)
    return dataclasses.replace(dataset, labels=labels)


def test_a_run_of_a_head_alone_exports_that_head_and_its_metrics(
    labelled: Dataset, tmp_path: Any
) -> None:
    experiment = Experiment.of(config_of(CLICK), labelled)
    params = experiment.model.init(jax.random.key(3))
    save_trained(experiment, params, tmp_path / "run")
    export_run(tmp_path / "run", labelled, tmp_path / "out", k=5)
    artefact = load_artefact(tmp_path / "out")
    history, items = np.array([[0, 3, 4], [7, 8, 9]]), np.arange(1, 31)[None].repeat(2, 0)
    module = experiment.model.bind(params)
    users = module.user_vectors(Batch(history=jnp.asarray(history)))
    users = jnp.broadcast_to(users[:, None], (2, 30, 8))
    wanted = head_outputs(module, "click", users, module.item_vectors(jnp.asarray(items)))[..., 0]
    found = artefact.score(items, history=history)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    best = np.argsort(-np.asarray(wanted), axis=1)[:, :5] + 1
    recommended, _ = artefact.recommend(history=history, mask_seen=False)
    np.testing.assert_array_equal(recommended, best)
    measured = experiment.evaluate(params, "test").metrics
    metrics = artefact.manifest["metrics"]["test"]
    assert metrics["click/auc"] == measured["click/auc"]
    # Lists are those of the head as well, and not of products that nobody trained.
    ranked = dataclasses.replace(
        experiment,
        model=scoring_of(experiment.model, experiment.config).model,
        config=dataclasses.replace(
            experiment.config,
            objective=FullSoftmax(),
            evaluation=dataclasses.replace(experiment.config.evaluation, monitor="ndcg@5"),
        ),
    )
    assert metrics["ndcg@5"] == ranked.evaluate(params, "test").metrics["ndcg@5"]
    assert metrics["average_popularity@5"] != measured["average_popularity@5"]
    card = (tmp_path / "out" / "model_card.md").read_text()
    assert "`Click` of the head `click`" in card and "| click/auc |" in card
    assert "A score is the logit of the probability that the label reaches 4." in card


def test_a_predicted_rating_has_the_mean_and_both_biases(
    labelled: Dataset, random_dataset: Callable[..., Dataset]
) -> None:
    config = ExperimentConfig(
        data=PairData(),
        model=matrix_factorization.Config(dim=3, global_mean=3.5),
        objective=SquaredError(),
    )
    experiment = Experiment.of(config, labelled)
    params = experiment.model.init(jax.random.key(0))
    scoring = scoring_of(experiment.model, experiment.config)
    assert scoring.means.startswith("the label that is predicted, such as a rating")
    spec = Spec(scoring.model, ("users",), 30, 0, 5, 16)
    weights = by_name(params)
    vectors = programs.item_vectors(spec, weights)
    found = programs.score(spec, weights, vectors, jnp.array([[4]]), users=jnp.array([7]))
    user, item = params["users"]["table"][7], params["items"]["table"][4]
    wanted = user[:-1] @ item[:-1] + user[-1] + item[-1] + 3.5
    np.testing.assert_allclose(found, [[wanted]], rtol=1e-6)
