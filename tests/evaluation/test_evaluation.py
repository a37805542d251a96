"""Evaluation of recommenders against loops over users."""

from math import log2

import numpy as np
import pytest

from jaxrec.evaluation import (
    EvaluationConfig,
    accuracy,
    evaluate,
    rating_errors,
    requests_at,
    requests_of,
)
from jaxrec.typing import UserError


class Fixed:
    """Recommends the same lists whatever is asked."""

    def __init__(self, lists):
        self.lists = np.asarray(lists)

    def recommend(self, requests, k, *, mask_seen):
        return self.lists


# Targets: user 1 has item 3; user 2 has items 1, 2 and 5; user 3 has item 4, seen before.
EVENTS = [(1, 1, 0), (1, 2, 0), (1, 3, 2), (2, 3, 0), (2, 1, 2), (2, 2, 2), (2, 5, 2)]
EVENTS += [(3, 4, 0), (3, 4, 2)]
CONFIG = EvaluationConfig(ks=(1, 3), monitor="ndcg@3")
LISTS = [[4, 3, 5], [1, 4, 2], [1, 2, 0]]


@pytest.fixture(scope="module")
def small(dataset_of):
    return dataset_of(EVENTS, num_items=6)


def test_hand_worked_metrics(small):
    evaluation = evaluate(Fixed(LISTS), small, "test", CONFIG)
    ndcg = [1 / log2(3), (1 + 1 / 2) / (1 + 1 / log2(3) + 1 / 2), 0]
    expected = {
        "ndcg@1": (0 + 1 + 0) / 3,
        "ndcg@3": sum(ndcg) / 3,
        "recall@1": (0 + 1 / 3 + 0) / 3,
        "recall@3": (1 + 2 / 3 + 0) / 3,
        "hit@3": (1 + 1 + 0) / 3,
        "mrr@3": (1 / 2 + 1 + 0) / 3,
        "map@3": (1 / 2 + (1 + 2 / 3) / 3 + 0) / 3,
        "precision@3": (1 / 3 + 2 / 3 + 0) / 3,
        "coverage@1": 2 / 6,
        "coverage@3": 5 / 6,
        # Training events: one each of items 1, 2, 3 and 4. Eight places are filled.
        "average_popularity@3": (1 + 1 + 0 + 1 + 1 + 1 + 1 + 1) / 8,
        "novelty@3": 2.0,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(evaluation.metrics[name], value, err_msg=name)
    np.testing.assert_allclose(evaluation.per_user, ndcg)
    assert evaluation.num_users == 3


def test_accuracy_at_events_asks_for_each_on_its_own(small):
    # Positions 2 and 5 are item 3 of user 1 and item 2 of user 2; only the history is looked at.
    requests = requests_at(small, np.array([2, 5]))
    values = accuracy(Fixed([[4, 3, 5], [1, 4, 2]]), requests, CONFIG)
    np.testing.assert_allclose(values["ndcg@3"], [1 / log2(3), 1 / 2])
    np.testing.assert_allclose(values["hit@1"], [0, 0])
    with pytest.raises(UserError, match=r"shape \(2, 3\)"):
        accuracy(Fixed(LISTS), requests, CONFIG)


def test_every_metric_is_a_plain_float_at_every_k(small):
    evaluation = evaluate(Fixed(LISTS), small, "test", CONFIG)
    kinds = ["ndcg", "recall", "hit", "mrr", "map", "precision", "coverage", "gini", "novelty"]
    kinds.append("average_popularity")
    assert set(evaluation.metrics) == {f"{kind}@{k}" for kind in kinds for k in (1, 3)}
    assert {type(value) for value in evaluation.metrics.values()} == {float}


def test_intervals_enclose_the_accuracy_metrics_only(small):
    evaluation = evaluate(Fixed(LISTS), small, "test", CONFIG)
    assert "coverage@3" not in evaluation.intervals
    for name, (low, high) in evaluation.intervals.items():
        assert low <= evaluation.metrics[name] <= high
    none = EvaluationConfig(ks=(3,), monitor="ndcg@3", bootstrap_samples=0)
    assert evaluate(Fixed(LISTS), small, "test", none).intervals == {}


def test_groups_by_popularity_and_history(small):
    evaluation = evaluate(Fixed(LISTS), small, "test", CONFIG)
    history = {group.name: (group.count, group.recall) for group in evaluation.by_history}
    assert history["1–2"] == (3, pytest.approx((1 + 2 / 3 + 0) / 3))
    assert history["100+"] == (0, 0.0)
    # From least popular: items 5, 6, 1, 2, 3, 4; six items spread over ten tenths.
    popularity = {group.name: (group.count, group.recall) for group in evaluation.by_popularity}
    assert popularity["1"] == (1, 0.0)  # item 5
    assert popularity["4"] == (1, 1.0)  # item 1
    assert popularity["9"] == (1, 0.0)  # item 4
    assert sum(group.count for group in evaluation.by_popularity) == 5


def test_equals_a_loop_over_users(random_dataset):
    dataset = random_dataset(1, num_users=60, num_items=20, mean_length=6, num_targets=2)
    requests = requests_of(dataset, "test")
    random = np.random.default_rng(0)
    lists = np.stack([random.permutation(20)[:5] + 1 for _ in range(len(requests))])
    lists[::3, 3:] = 0
    config = EvaluationConfig(ks=(2, 5), monitor="recall@5")
    evaluation = evaluate(Fixed(lists), dataset, "test", config)
    targets = [
        set(dataset.items[(dataset.users == user) & (dataset.split == 2)])
        for user in requests.users
    ]
    for k in config.ks:
        found = [[item in t for item in row[:k]] for row, t in zip(lists, targets, strict=True)]
        recall = [sum(hit) / len(t) for hit, t in zip(found, targets, strict=True)]
        ndcg = [
            sum(1 / log2(i + 2) for i, h in enumerate(hit) if h)
            / sum(1 / log2(i + 2) for i in range(min(len(t), k)))
            for hit, t in zip(found, targets, strict=True)
        ]
        np.testing.assert_allclose(evaluation.metrics[f"recall@{k}"], np.mean(recall))
        np.testing.assert_allclose(evaluation.metrics[f"ndcg@{k}"], np.mean(ndcg))
    np.testing.assert_allclose(evaluation.per_user, recall)


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        (np.zeros((3, 2), int), r"shape \(3, 3\)"),
        (np.zeros((3, 3)), "float64"),
        ([[7, 1, 2]] * 3, "from 1 to 7"),
        ([[-1, 1, 2]] * 3, "from -1 to 2"),
        ([[1, 2, 3], [1, 2, 3], [2, 1, 2]], "user 3 got item 2 twice"),
    ],
)
def test_wrong_recommendations_are_explained(small, lists, sentence):
    with pytest.raises(UserError, match=sentence):
        evaluate(Fixed(lists), small, "test", CONFIG)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ks": ()}, "ks"),
        ({"ks": (0, 10)}, "ks"),
        ({"ks": (5,)}, "monitor='ndcg@10'"),
        ({"monitor": "rmse"}, "monitor='rmse'"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_configs_are_explained(options, sentence):
    with pytest.raises(UserError, match=sentence):
        EvaluationConfig(**options)


@pytest.fixture
def rated(dataset_of):
    return dataset_of(
        [(1, 1, 0), (1, 2, 2), (1, 3, 2), (2, 1, 0), (2, 3, 2)],
        num_items=3,
        labels=[1, 2, 3, 4, 5],
    )


def test_rating_errors_do_not_depend_on_the_batch_size(rated):
    def predict(users, items):
        return users + items  # 3, 4 and 5 for the labels 2, 3 and 5

    for size in (1, 2, 3, 100):
        errors = rating_errors(predict, rated, "test", size)
        assert errors == {"rmse": pytest.approx((2 / 3) ** 0.5), "mae": pytest.approx(2 / 3)}


def test_rating_errors_join_the_metrics_on_request(rated):
    config = EvaluationConfig(ks=(1,), monitor="rmse", rmse=True)
    lists = Fixed([[2], [3]])
    evaluation = evaluate(
        lists, rated, "test", config, predict_ratings=lambda users, items: users + items
    )
    np.testing.assert_allclose(evaluation.metrics["rmse"], (2 / 3) ** 0.5)
    assert evaluation.metrics["hit@1"] == 1
    assert len(evaluation.per_user) == 0
    with pytest.raises(UserError, match="does not predict ratings"):
        evaluate(lists, rated, "test", config)


def test_rating_errors_need_labels(small):
    with pytest.raises(UserError, match="--label_column"):
        rating_errors(lambda users, items: users, small, "test")
