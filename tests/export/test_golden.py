"""Golden requests are answered as they were, and snapshots tell what NumPy counts."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.dataset import Dataset
from jaxrec.export import Artefact, check_golden
from jaxrec.export.samples import Answers, snapshot_of
from jaxrec.typing import UserError


def with_answers(
    artefact: Artefact, change: Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]
) -> Artefact:
    """An artefact whose `recommend` gives something else."""

    def recommend(*given: Any) -> tuple[Any, Any]:
        items, scores = (np.array(x) for x in artefact.programs["recommend"](*given))
        return change(items, scores)

    return dataclasses.replace(artefact, programs={**artefact.programs, "recommend": recommend})


@pytest.mark.parametrize("name", ["sasrec", "mf", "bfloat16", "pq"])
def test_an_artefact_answers_as_when_it_was_made(name: str, exported: Callable[[str], Any]) -> None:
    artefact = exported(name).artefact
    check_golden(artefact)
    golden = artefact.golden
    assert len(golden["items"]) == len(golden["scores"]) == 16
    assert golden["shown"].keys() == set(artefact.shown)
    assert np.array(golden["items"]).shape == (16, 7)
    other = dataclasses.replace(artefact, vectors=artefact.vectors[::-1])
    with pytest.raises(UserError, match="does not answer as it did when it was made"):
        check_golden(other)


def test_golden_histories_are_training_events(
    exported: Callable[[str], Any], dataset: Dataset
) -> None:
    artefact = exported("sasrec").artefact
    known = set()
    for user in range(1, dataset.num_users + 1):
        events = dataset.items[(dataset.users == user) & (dataset.split == 0)]
        known.add(tuple(events[-8:].tolist()))
    golden = artefact.golden
    for row, items in zip(golden["shown"]["history"], golden["items"], strict=True):
        history = tuple(item for item in row if item)
        assert history in known and row[-1] > 0
        assert not set(history) & set(items)


def test_a_score_may_be_off_by_the_tolerance_and_no_more(
    exported: Callable[[str], Any],
) -> None:
    artefact = exported("sasrec").artefact
    assert artefact.golden["tolerance"] == 1e-4
    biggest = max(1.0, *(abs(x) for x in artefact.golden["scores"][0]))

    def off(by: float) -> Artefact:
        def change(items: np.ndarray, scores: np.ndarray) -> tuple[Any, Any]:
            scores[0, 2] += by
            return items, scores

        return with_answers(artefact, change)

    check_golden(off(5e-5))
    with pytest.raises(UserError, match="place 3 of golden request 1 is item"):
        check_golden(off(1.1e-4 * biggest))
    with pytest.raises(UserError, match="score nan"):
        check_golden(off(np.nan))


def test_items_change_places_only_where_they_tie(exported: Callable[[str], Any]) -> None:
    artefact = exported("sasrec").artefact

    def swap(items: np.ndarray, scores: np.ndarray) -> tuple[Any, Any]:
        items[3, [1, 2]] = items[3, [2, 1]]
        return items, scores

    with pytest.raises(UserError, match="place [23] of golden request 4"):
        check_golden(with_answers(artefact, swap))
    tied = json.loads(json.dumps(artefact.golden))
    tied["scores"][3][2] = tied["scores"][3][1] - 1e-5

    def swap_tied(items: np.ndarray, scores: np.ndarray) -> tuple[Any, Any]:
        scores[3, 2] = scores[3, 1]
        return swap(items, scores)

    other = with_answers(artefact, swap_tied)
    vars(other)["golden"] = tied
    check_golden(other)


def test_a_list_that_ends_early_is_refused(exported: Callable[[str], Any]) -> None:
    def cut(items: np.ndarray, scores: np.ndarray) -> tuple[Any, Any]:
        items[1, 6], scores[1, 6] = 0, -np.inf
        return items, scores

    with pytest.raises(UserError, match="place 7 of golden request 2 is no item, and was item"):
        check_golden(with_answers(exported("mf").artefact, cut))


def test_popularity_counts_training_events(
    exported: Callable[[str], Any], dataset: Dataset
) -> None:
    counts = np.bincount(dataset.items[dataset.split == 0], minlength=31)
    found = exported("mf").artefact.popularity
    np.testing.assert_array_equal(found, counts)
    assert found.dtype == np.int64


def test_a_snapshot_spreads_over_bins_as_counted_by_hand() -> None:
    lengths = [1, 1, 1, 1, 2, 3, 4, 5, 6, 10]
    items = np.array([[1, 2, 0]] * 9 + [[0, 0, 0]])
    scores = np.array([[i, i - 1.0, -np.inf] for i in range(9)] + [[-np.inf] * 3])
    answers = Answers([np.ones(n, int) for n in lengths], {}, np.zeros((10, 1)), items, scores)
    features = snapshot_of(answers, np.array([0, 0, 9]))
    length = features["history_length"]
    assert length["sample"] == lengths
    shares = [sum(low < x <= high for x in lengths) / 10 for low, high in _bins(length["edges"])]
    assert length["shares"] == shares and length["edges"][0] == 1 and shares[0] == 0.4
    assert features["top_score"]["sample"] == list(range(9))
    assert features["mean_score"]["sample"] == [i - 0.5 for i in range(9)]
    assert features["popularity"]["sample"] == pytest.approx([np.log(10) / 2] * 9)
    assert features["popularity"]["shares"] == [1, 0]
    assert all(sum(told["shares"]) == pytest.approx(1) for told in features.values())


def _bins(edges: list[float]) -> Any:
    return zip([-np.inf, *edges], [*edges, np.inf], strict=True)


def test_a_snapshot_is_of_the_artefact(exported: Callable[[str], Any], dataset: Dataset) -> None:
    artefact = exported("sasrec").artefact
    features = artefact.snapshot
    lengths = np.bincount(dataset.users[dataset.split == 0], minlength=41)
    assert set(features["history_length"]["sample"]) == {n for n in lengths.tolist() if n}
    golden = [row[0] for row in artefact.golden["scores"]]
    assert set(golden) <= set(features["top_score"]["sample"])
    assert len(features["popularity"]["shares"]) == len(features["popularity"]["edges"]) + 1
    assert jnp.isfinite(jnp.array(features["mean_score"]["sample"])).all()
