"""A log that goes by: what is asked for, what is kept out of training, and what is learned."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from jaxrec.data import TEST
from jaxrec.evaluation import requests_at
from jaxrec.typing import UserError


@pytest.fixture(scope="module")
def freshness(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("freshness")


def log_of(events: list[tuple[str, str, int]]) -> pd.DataFrame:
    return pd.DataFrame(events, columns=["user_id", "item_id", "timestamp"])


# Two windows of two events would part the moment 5; and u has two equal events.
EVENTS = log_of(
    [
        *[("u", "a", 1), ("v", "a", 2), ("u", "b", 3), ("u", "b", 3), ("u", "c", 4)],
        *[("v", "d", 5), ("w", "c", 5), ("u", "d", 6), ("v", "c", 7)],
    ]
)


def test_windows_hold_every_event_once_and_no_moment_twice(freshness: Any) -> None:
    parts = freshness.cut(EVENTS.iloc[::-1], 0.5, 2)
    assert [part["timestamp"].tolist() for part in parts] == [[1, 2, 3, 4], [5, 5], [6, 7]]
    parts = freshness.cut(EVENTS, 5 / 8, 1)
    assert [part["timestamp"].tolist() for part in parts] == [[1, 2, 3, 4], [5, 5, 6, 7]]


def test_invented_items_come_and_go(freshness: Any) -> None:
    log = freshness.invent(num_users=300, num_items=120)
    assert log.shape == (len(log), 3) and not log.duplicated(["user_id", "item_id"]).any()
    place = (log["item_id"] - 1) % 120
    span = log.groupby("item_id")["timestamp"].agg(["min", "max"])
    assert (span["max"] - span["min"]).max() < 500 * 86_400
    # In one place of the catalogue, one item ends before the next begins.
    ends = span.assign(place=(span.index - 1) % 120).sort_values(["place", "min"])
    follows = ends["place"].to_numpy()[1:] == ends["place"].to_numpy()[:-1]
    assert (ends["min"].to_numpy()[1:] > ends["max"].to_numpy()[:-1])[follows].all()
    assert place.nunique() == 120 and follows.sum() >= 60


@pytest.fixture
def log(freshness: Any, tmp_path: Path) -> Any:
    parts = freshness.cut(EVENTS, 0.5, 2)
    parts[0] = freshness.hold_out(parts[0])
    return freshness.Log([parts[0], *(p.assign(split="train") for p in parts[1:])], tmp_path / "a")


def told(requests: Any, dataset: Any) -> list[tuple[str, list[str], str]]:
    users, items = (x["id"].tolist() for x in (dataset.user_vocabulary, dataset.item_vocabulary))
    histories = np.split(requests.history_items, requests.history_offsets[1:-1])
    return [
        (users[user - 1], [items[i - 1] for i in history], items[target - 1])
        for user, history, target in zip(
            requests.users, histories, requests.target_items, strict=True
        )
    ]


def test_requests_are_the_events_of_a_window_after_all_that_came_before(log: Any) -> None:
    last = log.datasets[2]
    assert told(log.of_window(2, 10), last) == [
        ("u", ["a", "b", "c"], "d"),
        ("v", ["a", "d"], "c"),
    ]
    # w has no history before the moment 5.
    assert told(log.of_window(1, 10), log.datasets[1]) == [("v", ["a"], "d")]


def test_at_most_so_many_requests_of_a_user_are_asked(freshness: Any, tmp_path: Path) -> None:
    first = log_of([("u", "a", 1), ("v", "b", 1)])
    second = log_of([*[("u", f"c{n}", 2 + n) for n in range(9)], ("v", "c0", 20)])
    log = freshness.Log([part.assign(split="train") for part in (first, second)], tmp_path / "a")
    assert len(log.of_window(1, 100)) == 10
    assert [len(r) for r in np.split(log.of_window(1, 4).users, [4])] == [4, 1]


def test_the_old_domain_is_asked_for_and_never_trained_on(log: Any) -> None:
    for number, dataset in enumerate(log.datasets):
        # v has too few events in the history; those that u has later do not count.
        assert told(log.of_history(number), dataset) == [("u", ["a", "b"], "c")]
        assert (dataset.split == TEST).sum() == 1


class Counting:
    """Recommends 1, 2, 3 and keeps what it was asked."""

    def recommend(self, requests: Any, k: int, *, mask_seen: bool) -> np.ndarray:
        self.asked = requests
        return np.tile(np.arange(1, k + 1, dtype=np.int32), (len(requests), 1))


def test_an_earlier_model_is_shown_what_it_knows_and_asked_for_no_more(
    freshness: Any, log: Any
) -> None:
    dataset = log.datasets[2]  # items in order of their coming: a, b, c, then d
    d = dataset.item_index("d")
    assert d == 4
    requests = requests_at(dataset, np.arange(dataset.manifest.num_events))
    inner = Counting()
    found = freshness.Knowing(inner, 1).recommend(requests, 2, mask_seen=True)
    assert inner.asked.num_items == 1
    assert inner.asked.history_items.tolist() == [1] * len(inner.asked)  # a, and nothing else
    assert (found[requests.history_lengths > 0] == [1, 2]).all()


def test_a_request_without_known_items_gets_nothing(freshness: Any, tmp_path: Path) -> None:
    first = log_of([("u", "a", 1)])
    second = log_of([("v", "b", 2), ("v", "a", 3), ("v", "c", 4), ("u", "c", 5)])
    log = freshness.Log([part.assign(split="train") for part in (first, second)], tmp_path / "a")
    requests = log.of_window(1, 10)
    assert told(requests, log.datasets[1]) == [
        *[("u", ["a"], "c"), ("v", ["b"], "a"), ("v", ["b", "a"], "c")]
    ]
    inner = Counting()
    found = freshness.Knowing(inner, 1).recommend(requests, 1, mask_seen=True)
    assert found.tolist() == [[1], [0], [1]]
    assert inner.asked.users.tolist() == [requests.users[0], requests.users[2]]


def test_users_count_the_same_however_many_requests_they_have(freshness: Any) -> None:
    values = freshness.by_user(np.array([1.0, 0.0, 0.5, 1.0]), np.array([3, 3, 3, 8]))
    np.testing.assert_allclose(values, [0.5, 1.0])


def test_the_summary_compares_users_with_cold(freshness: Any) -> None:
    spent = {"steps": 10, "step_seconds": 1.0, "seconds": 2.0}

    def cases_of(name: str, seed: int, first: float, second: float) -> list[dict[str, Any]]:
        # Two users in the first window and one in the second; the old domain has two in both.
        return [
            {
                **{"strategy": name, "seed": seed, **spent},
                "by_user": {"ndcg@10": np.array(new), "old_ndcg@10": np.array([new[0], 0.5])},
            }
            for new in ([first, first + 0.3], [second])
        ]

    cases = cases_of("frozen", 0, 0.1, 0.2) + cases_of("cold", 0, 0.2, 0.5)
    cases += cases_of("frozen", 1, 0.1, 0.2) + cases_of("cold", 1, 0.4, 0.5)
    frozen, cold = freshness.summary(cases)
    assert (frozen["steps"], frozen["steps_of_cold"], cold["steps"]) == (0, 0, 10)
    assert frozen["ndcg@10"] == pytest.approx((0.1 + 0.4 + 0.2) / 3)
    assert cold["ndcg@10"] == pytest.approx((0.3 + 0.6 + 0.5) / 3)
    assert frozen["ndcg@10_of_cold"] == pytest.approx(0.5)
    assert cold["ndcg@10_std"] == pytest.approx((1.6 - 1.2) / 3 / 2**0.5)
    assert frozen["old_ndcg@10"] == pytest.approx((0.15 + 0.5) / 2)
    assert cold["old_ndcg@10"] == pytest.approx(((0.35 + 0.45) / 2 + 0.5) / 2)
    # Each user is 0.2 to 0.3 below cold; of the old ones, one is 0.25 below and one the same.
    assert frozen["ndcg@10_minus_cold"] == [-0.3, -0.2]
    assert frozen["old_ndcg@10_minus_cold"] == [-0.25, 0]
    assert cold["ndcg@10_minus_cold"] == [0, 0]


def test_a_history_too_short_to_choose_in_is_refused(freshness: Any, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"rates": [1e-2], "epochs": 1, "most": 1, "dim": 2}
    with pytest.raises(UserError, match="8 events and a window 4: .* Raise --history or --windows"):
        freshness.tune(EVENTS.iloc[1:], 4, tmp_path / "a", {}, **sizes)


@pytest.fixture
def _quick_compilations() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.usefixtures("_quick_compilations")
def test_a_fresh_model_beats_a_frozen_one_where_items_come_and_go(
    freshness: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = freshness.cut(freshness.invent(num_users=300, num_items=120), 0.6, 2)
    parts[0] = freshness.hold_out(parts[0])
    parts[1:] = [part.assign(split="train") for part in parts[1:]]
    names = ("cold", "warm", "distil")
    strategies = {name: freshness.STRATEGIES[name] for name in names}
    sizes: dict[str, Any] = {"most": 5, "dim": 16}
    tuning = (parts[0], len(parts[1]), tmp_path / "tuning", strategies)
    chosen = freshness.tune(*tuning, rates=[1e-2], epochs=4, **sizes)
    log = freshness.Log(parts, tmp_path / "log")
    cases = freshness.follow(log, chosen, tmp_path / "seed", seed=0, **sizes)
    told = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert told == ["freshness_tuning"] * 3 + ["freshness_window"] * 4
    found = {case["strategy"]: case for case in freshness.summary(cases)}
    assert list(found) == ["frozen", *names]
    assert min(found[name]["ndcg@10"] for name in names) > 1.2 * found["frozen"]["ndcg@10"]
    assert found["warm"]["steps"] < found["cold"]["steps"]
