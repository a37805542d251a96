"""Exported programs against the recommender that they come from, and against plain NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jax import export

from jaxrec.data.dataset import Dataset
from jaxrec.evaluation import requests_of
from jaxrec.export.golden import difference_of_lists
from jaxrec.export.programs import PLATFORMS, Spec, make_programs
from jaxrec.typing import UserError

MAX_LEN = 8
NAMES = ["sasrec", "ligr", "mf", "bfloat16", "int8", "pq", "lora", "content"]
SLOW = ["post_norm", "int4", "aware", "pruned", "heads"]


@pytest.fixture(params=[*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def model(request: pytest.FixtureRequest, exported: Callable[[str], Any]) -> Any:
    return exported(request.param)


def asked(model: Any, dataset: Dataset, count: int) -> tuple[dict[str, np.ndarray], Any]:
    """What the first users of the test split are shown, and the requests."""
    requests = requests_of(dataset, "test")
    rows = np.arange(count)
    if model.artefact.shown == ("users",):
        return {"users": requests.users[rows]}, requests
    return {"history": requests.padded_history(MAX_LEN, rows)}, requests


@pytest.mark.grid(quick=4)
def test_lists_are_those_of_the_recommender(model: Any, dataset: Dataset) -> None:
    shown, requests = asked(model, dataset, 9)
    seen = requests.padded_seen(np.arange(9), int(requests.history_lengths.max()))
    recommender = model.experiment.recommender(model.params)
    for exclude, mask_seen in ((seen, True), (None, False)):
        items, scores = model.artefact.recommend(**shown, exclude=exclude, mask_seen=mask_seen)
        expected_scores, expected = recommender.rank(requests, 7, mask_seen=mask_seen)
        # In bfloat16 the width of a batch decides how a product is rounded.
        exact = model.artefact.vectors.dtype == np.float32
        wanted = expected[:9], expected_scores[:9]
        assert not difference_of_lists((items, scores), wanted, 1e-5 if exact else 1e-2)
        np.testing.assert_allclose(scores, expected_scores[:9], rtol=1e-6 if exact else 1e-2)


@pytest.mark.grid(quick=4)
def test_scores_are_products_and_neighbours_have_the_largest_cosines(
    model: Any, dataset: Dataset
) -> None:
    shown, _ = asked(model, dataset, 3)
    batch = model.experiment.config.data.requests(
        shown.get("users", np.zeros(3, np.int32)), shown.get("history", np.zeros((3, 1), np.int32))
    )
    users = np.asarray(model.experiment.user_vectors(model.params, batch), np.float64)
    vectors = np.asarray(model.experiment.item_vectors(model.params, np.arange(31)), np.float64)
    everything = np.tile(np.arange(31), (3, 1))
    scores = np.asarray(model.artefact.score(everything, **shown))
    assert np.all(scores[:, 0] == -np.inf)
    exact = model.artefact.vectors.dtype == np.float32
    off = 1e-5 if exact else 0.1
    np.testing.assert_allclose(scores[:, 1:], (users @ vectors.T)[:, 1:], rtol=off, atol=off)

    varying = vectors[:, np.ptp(vectors[1:], axis=0) > 0]
    assert varying.shape[1] == vectors.shape[1] - 2 * (model.artefact.shown == ("users",))
    units = varying / np.linalg.norm(varying, axis=1, keepdims=True)
    cosines = units @ units.T
    cosines[:, 0] = -np.inf
    np.fill_diagonal(cosines, -np.inf)
    items, found = (np.asarray(x) for x in model.artefact.similar(np.array([1, 30, 12])))
    best = np.sort(cosines[[1, 30, 12]], axis=1)[:, :-8:-1]
    np.testing.assert_allclose(found, best, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(cosines[[1, 30, 12]], items, 1), best, atol=1e-6)


def test_masks_are_shared_lists_of_what_is_allowed(
    exported: Callable[[str], Any], dataset: Dataset
) -> None:
    model = exported("sasrec")
    shown, _ = asked(model, dataset, 4)
    masks = np.ones((3, 31), bool)
    masks[1, 16:] = False  # a list that ends with a chunk
    masks[2] = False
    masks[2, [0, 3, 17, 30]] = True  # fewer than k
    mask, seen = np.array([0, 2, 1, 2]), np.array([True, False, False, True])
    exclude = np.array([[5, 0], [17, 17], [0, 0], [0, 0]])
    scores = np.asarray(model.artefact.score(np.tile(np.arange(31), (4, 1)), **shown))
    scores = np.where(masks[mask], scores, -np.inf)
    scores[0, 5] = scores[1, 17] = -np.inf
    for row in (0, 3):
        scores[row, shown["history"][row]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    best = np.take_along_axis(scores, order, axis=1)
    items, values = model.artefact.recommend(
        **shown, exclude=exclude, masks=masks, mask=mask, mask_seen=seen
    )
    wanted = np.where(best == -np.inf, 0, order), best
    assert not difference_of_lists((items, values), wanted, 1e-5)
    np.testing.assert_allclose(values, best, rtol=1e-5, atol=1e-6)
    assert np.asarray(items)[1].tolist()[2:] == [0] * 5


def test_a_short_history_needs_no_padding(exported: Callable[[str], Any]) -> None:
    artefact = exported("sasrec").artefact
    short, padded = np.array([[4, 9]]), np.array([[0, 0, 0, 0, 0, 0, 4, 9]])
    one, other = artefact.recommend(history=short), artefact.recommend(history=padded)
    assert not difference_of_lists(one, other, 1e-5)
    np.testing.assert_allclose(one[1], other[1], rtol=1e-5)


def test_models_that_are_shown_something_else_are_refused(
    exported: Callable[[str], Any],
) -> None:
    model = exported("mf").experiment.model
    for shown in ((), ("users", "features")):
        with pytest.raises(UserError, match="shown users or history; this one"):
            make_programs(Spec(model, shown, 30, 0, 7, 16), model.shapes)


@pytest.mark.parametrize("name", ["sasrec", "mf"])
def test_programs_are_for_all_platforms_and_say_nothing_of_where_they_were_made(
    name: str, exported: Callable[[str], Any]
) -> None:
    artefact = exported(name).artefact
    for program, told in artefact.manifest["programs"].items():
        data = (artefact.path / told["file"]).read_bytes()
        assert b".py" not in data and b"/" + b"jaxrec" not in data
        lowered = export.deserialize(bytearray(data))
        assert lowered.platforms == PLATFORMS and lowered.fun_name == program
        shapes = [[str(n) for n in x.shape] for x in lowered.in_avals]
        plain = [x for x in told["inputs"] if x["name"] != "weights"]
        last = shapes[len(shapes) - len(plain) :]
        assert last == [[str(n) for n in x["shape"]] for x in plain]
