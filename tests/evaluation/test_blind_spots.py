"""What an evaluation cannot see is counted, said, and never chosen by."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jaxrec.data import Dataset, PairData, SequenceData
from jaxrec.evaluation import EvaluationConfig, Popularity, evaluate, requests_of
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import BPR, FullSoftmax
from jaxrec.sharding import MeshConfig
from jaxrec.training import Experiment, ExperimentConfig

# Users 1 and 2 train; user 3 has no training event, only one for validation. Item 4 is in no
# training event, item 5 in none at all.
EVENTS = [
    *((1, 1, 0), (1, 2, 0), (1, 3, 1), (1, 1, 2)),
    *((2, 2, 0), (2, 3, 0), (2, 1, 1), (2, 4, 2)),
    *((3, 3, 1), (3, 2, 2)),
    (4, 2, 2),
]


@pytest.fixture(scope="module")
def dataset(dataset_of: Callable[..., Dataset]) -> Dataset:
    return dataset_of(EVENTS, num_items=5)


def test_what_cannot_be_seen_is_counted(dataset: Dataset) -> None:
    spots = evaluate(Popularity(dataset), dataset, "test").blind_spots
    assert (spots.num_users, spots.without_history, spots.num_targets) == (3, 1, 3)
    assert (spots.masked_targets, spots.cold_targets, spots.later_histories) == (1, 1, 0)
    assert not spots.nothing_to_find
    said = "\n".join(spots.sentences())
    assert "1 users with a target are left out: they have no history" in said
    assert "1 of 3 targets were seen before and cannot be found" in said
    assert "1 of 3 targets never occur in training" in said
    seen = evaluate(Popularity(dataset), dataset, "test", EvaluationConfig(mask_seen=False))
    assert seen.blind_spots.masked_targets == 0


def test_an_evaluation_that_sees_everything_says_nothing(
    dataset_of: Callable[..., Dataset],
) -> None:
    events = [(1, 1, 0), (1, 2, 0), (1, 3, 2), (2, 3, 0), (2, 1, 2)]
    whole = dataset_of(events, num_items=3)
    assert evaluate(Popularity(whole), whole, "test").blind_spots.sentences() == []


@pytest.mark.parametrize("split", ["valid", "test"])
def test_histories_later_than_a_target_are_no_forecast(
    dataset_of: Callable[..., Dataset], split: str
) -> None:
    mark = {"valid": 1, "test": 2}[split]
    events = [(1, 1, 0), (1, 2, mark), (1, 3, 0), (2, 1, 0), (2, 2, mark), (3, 2, 0)]
    random = dataset_of(events, num_items=3)
    assert requests_of(random, split).later_histories == 1
    (sentence,) = evaluate(Popularity(random), random, split).blind_spots.sentences()
    assert sentence.startswith("1 of 2 users have histories with events later than their targets")


@pytest.mark.parametrize("masked", [True, False])
def test_a_metric_must_be_0_when_nothing_can_be_found(
    dataset_of: Callable[..., Dataset], masked: bool
) -> None:
    again = dataset_of([(1, 1, 0), (1, 2, 0), (1, 1, 2), (2, 2, 0), (2, 2, 2)], num_items=2)
    config = EvaluationConfig(mask_seen=masked)
    found = evaluate(Popularity(again), again, "test", config)
    assert found.must_be_zero("ndcg@10") == masked
    assert (found.metrics["ndcg@10"] == 0) == masked
    assert not found.must_be_zero("rmse") and not found.must_be_zero("click/auc")


def experiment_of(dataset: Dataset, kind: str, **mesh: Any) -> Experiment:
    parts: dict[str, Any] = {
        "users": {
            "data": PairData(),
            "model": matrix_factorization.Config(dim=2),
            "objective": BPR(),
        },
        "histories": {
            "data": SequenceData(max_len=4),
            "model": sasrec.Config(max_len=4, dim=4, num_blocks=1, num_heads=1, hidden=4),
            "objective": FullSoftmax(),
        },
    }[kind]
    evaluation = EvaluationConfig(ks=(5,), batch_size=4, mask_seen=False, monitor="ndcg@5")
    config = ExperimentConfig(**parts, evaluation=evaluation, mesh=MeshConfig(**mesh))
    return Experiment.of(config, dataset)


@pytest.mark.parametrize(
    ("kind", "served"), [("users", [True, True, False]), ("histories", [True, True, True])]
)
@pytest.mark.parametrize("mesh", [{}, {"data": 2, "model": 2}, {"data": 1, "model": 3}])
def test_rows_that_were_never_trained_are_in_no_list(
    dataset: Dataset, kind: str, served: list[bool], mesh: dict[str, int]
) -> None:
    experiment = experiment_of(dataset, kind, **mesh)
    optimizer = experiment.optimizer(1)
    built = experiment.config.mesh.build()
    layout = experiment.plan(optimizer, built).layout
    params = experiment.born(optimizer, built, layout).params
    lists = experiment.recommender(params).recommend(
        requests_of(dataset, "test"), 5, mask_seen=False
    )
    assert (lists > 0).any(axis=1).tolist() == served
    assert set(lists[lists > 0].tolist()) == {1, 2, 3}  # 4 and 5 have no training event
    spots = experiment.evaluate(params, "test").blind_spots
    assert spots.unknown_users == served.count(False) and spots.left_out_items


def test_a_history_is_shown_without_items_that_were_never_trained(
    dataset_of: Callable[..., Dataset],
) -> None:
    # Item 4 comes in a history between two others, for the first time in validation.
    log = [(1, 1, 0), (1, 2, 0), (1, 4, 1), (1, 3, 2), (2, 3, 0), (2, 1, 0), (2, 2, 2)]
    with_cold, without = dataset_of(log, num_items=4), dataset_of([*log[:2], *log[3:]], num_items=4)
    params = experiment_of(with_cold, "histories").model.init(jax.random.key(0))
    ranked = []
    for data in (with_cold, without):
        recommender = experiment_of(data, "histories").recommender(params)
        ranked.append(recommender.rank(requests_of(data, "test"), 3, mask_seen=False))
    np.testing.assert_array_equal(ranked[0][0], ranked[1][0])
    np.testing.assert_array_equal(ranked[0][1], ranked[1][1])
