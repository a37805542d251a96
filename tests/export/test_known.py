"""Rows that no event trained are unknown: in artefacts, in the server's catalogue, after growth."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxrec.data import PairData, write_content
from jaxrec.data.dataset import Dataset
from jaxrec.evaluation import EvaluationConfig
from jaxrec.export import Artefact, check_golden, load_artefact
from jaxrec.export.run import FORMATS, export_run
from jaxrec.finetuning import grow_run
from jaxrec.models import matrix_factorization
from jaxrec.models.content import WithContent
from jaxrec.objectives import BPR
from jaxrec.serving.catalogue import Catalogue
from jaxrec.serving.engine import Engine, Query, Sizes
from jaxrec.serving.rules import load_rules
from jaxrec.training import Experiment, ExperimentConfig, load_trained, save_trained
from jaxrec.training.known import known_rows

# User 4 and item 6 are there for validation and test alone; item 7 in no event at all.
EVENTS = [(1, 1, 0), (1, 2, 0), (2, 3, 0), (2, 6, 1), (3, 4, 0), (3, 5, 0), (4, 6, 2), (4, 1, 2)]
COLD_USER, COLD_ITEMS = 4, [6, 7]
EVALUATION = EvaluationConfig(ks=(3,), monitor="ndcg@3", bootstrap_samples=0)


@pytest.fixture(scope="module")
def cold(dataset_of: Callable[..., Dataset]) -> Dataset:
    made: Dataset = dataset_of(EVENTS, num_items=7, num_users=4)
    return made


def saved(dataset: Dataset, model: Any, workdir: Path) -> tuple[Experiment, Any]:
    config = ExperimentConfig(
        data=PairData(), model=model, objective=BPR(num_negatives=1), evaluation=EVALUATION
    )
    experiment = Experiment.of(config, dataset)
    params = experiment.model.init(jax.random.key(0))
    # What was never trained would come first.
    table = params["items"]["table"].at[np.array(COLD_ITEMS), -1].set(50.0)
    params["items"]["table"] = table
    save_trained(experiment, params, workdir)
    return experiment, params


@pytest.fixture(scope="module")
def artefact(cold: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    folder = tmp_path_factory.mktemp("cold")
    saved(cold, matrix_factorization.Config(dim=3), folder / "run")
    options: dict[str, Any] = {"formats": tuple(FORMATS), "k": 5, "measure": False}
    export_run(folder / "run", cold, folder / "out", **options)
    return load_artefact(folder / "out")


def test_items_without_training_events_are_not_recommended(artefact: Artefact) -> None:
    check_golden(artefact)
    users = np.array([1, 2, 3])
    everything = np.ones((1, 8), bool)
    for masks in (None, everything):
        items, scores = (np.asarray(x) for x in artefact.recommend(users=users, masks=masks))
        assert not np.isin(items, COLD_ITEMS).any() and (items > 0).sum() == 15
    scores = np.asarray(artefact.score(np.arange(8)[None], users=users[:1]))
    assert np.flatnonzero(~np.isfinite(scores[0])).tolist() == [0, *COLD_ITEMS]
    items, cosines = (np.asarray(x) for x in artefact.similar(np.array([1, 2])))
    assert not np.isin(items, COLD_ITEMS).any()
    assert np.all((items > 0) == np.isfinite(cosines)) and np.all(
        np.diff((items > 0).astype(int)) <= 0
    )


def test_a_server_takes_them_for_unknown(artefact: Artefact) -> None:
    catalogue = Catalogue(artefact)
    ids = catalogue.ids
    users = artefact.user_ids
    assert users is not None
    assert catalogue.user(users[1]) == 1 and catalogue.user(users[COLD_USER]) == 0
    found, unknown = catalogue.items.known_indices([ids[1], ids[6], "never"])
    assert found.tolist() == [1] and unknown == [ids[6], "never"]
    assert sorted(catalogue.popular.tolist()) == [1, 2, 3, 4, 5]
    assert catalogue.items.index(ids[6]) == 6  # rules may name it, and pin it
    engine = Engine(artefact, Sizes.of(artefact, max_batch=1))
    rules = load_rules(None, catalogue.items)
    from jaxrec.serving.masks import NO_FILTERS, Filters

    for filters in (NO_FILTERS, Filters(allow=[ids[2], ids[6]], deny=None, categories=None)):
        allowed, make = rules.mask(filters, {}, 0.0)
        query = Query("recommend", user=1, allowed=allowed, make_allowed=make)
        (answer,) = engine.run(engine.lane_of(query), [query])
        assert not np.isin(answer.items, COLD_ITEMS).any() and answer.items[0] > 0


def test_items_that_the_model_knows_by_content_are_known(cold: Dataset, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 3))
    vectors[6] = 0  # nothing is known of item 7
    vocabulary = cold.item_vocabulary.assign(vector=list(vectors))
    described = dataclasses.replace(cold, item_vocabulary=vocabulary)
    write_content(described, tmp_path / "content", ["vector"])
    model = WithContent(model=matrix_factorization.Config(dim=3), content=str(tmp_path / "content"))
    config = ExperimentConfig(
        data=PairData(), model=model, objective=BPR(num_negatives=1), evaluation=EVALUATION
    )
    experiment = Experiment.of(config, described)
    known = known_rows(experiment, experiment.model.init(jax.random.key(0)))
    assert known["item"].tolist() == [False, *[True] * 6, False]
    assert known["user"].tolist() == [False, True, True, True, False]


def test_what_an_earlier_run_trained_stays_known(
    cold: Dataset, dataset_of: Callable[..., Dataset], tmp_path: Path
) -> None:
    saved(cold, matrix_factorization.Config(dim=3), tmp_path / "run")
    # Today nobody has an event with item 1, which retired; item 6 is trained now.
    today = dataset_of([(1, 2, 0), (4, 6, 0)], num_items=7, num_users=4)
    assert not today.trained["item"][1]
    grow_run(tmp_path / "run", today, tmp_path / "grown")
    experiment, params, _ = load_trained(tmp_path / "grown", today)
    known = known_rows(experiment, params)
    assert np.flatnonzero(known["item"]).tolist() == [1, 2, 3, 4, 5, 6]
    assert known["user"].tolist() == [False, True, True, True, True]
