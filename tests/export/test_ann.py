"""Approximate search against exact search."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrec.data.dataset import Dataset
from jaxrec.export import load_artefact
from jaxrec.export.ann import build_index, measure_index, read_index, write_index
from jaxrec.export.golden import difference_of_lists
from jaxrec.export.run import export_run
from jaxrec.typing import UserError

pytest.importorskip("faiss")
KINDS = ["hnsw", "ivf"]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(2001, 16)).astype(np.float32)
    vectors[0] = 100  # padding is never found
    return vectors


def exact(users: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    scores = users @ vectors.T
    scores[:, 0] = -np.inf
    return np.argsort(-scores, axis=1)[:, :k]


@pytest.mark.parametrize("kind", KINDS)
def test_recall_and_effort_are_what_they_say(kind: Any, vectors: np.ndarray) -> None:
    users = np.random.default_rng(1).normal(size=(50, 16)).astype(np.float32)
    wanted = exact(users, vectors, 20)
    index, measured = measure_index(build_index(vectors, kind), users, wanted)
    items, scores = index.search(users, 20)
    found = [len(set(a) & set(b)) for a, b in zip(items.tolist(), wanted.tolist(), strict=True)]
    assert measured[-1]["recall"] == pytest.approx(np.mean(found) / 20, abs=1e-4) and min(found) > 0
    assert measured[-1]["recall"] >= 0.99 > max([x["recall"] for x in measured[:-1]], default=0)
    assert index.effort == measured[-1]["effort"]
    assert all(0 < x["p50_ms"] <= x["p99_ms"] for x in measured)
    np.testing.assert_allclose(
        scores, np.einsum("bd,bkd->bk", users, vectors[items]), rtol=1e-4, atol=1e-4
    )
    assert np.all(np.diff(scores, axis=1) <= 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_vectors_make_the_same_file(
    kind: Any, vectors: np.ndarray, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        write_index(build_index(vectors, kind), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again = read_index(tmp_path / "one", kind, 64)
    users = vectors[5:8]
    np.testing.assert_array_equal(
        again.search(users, 5)[0],
        dataclasses.replace(build_index(vectors, kind), effort=64).search(users, 5)[0],
    )


def test_what_is_left_out_is_replaced_by_what_comes_next(vectors: np.ndarray) -> None:
    users = np.random.default_rng(1).normal(size=(6, 16)).astype(np.float32)
    index = dataclasses.replace(build_index(vectors, "ivf"), effort=1000)  # looks everywhere
    best = exact(users, vectors, 2000)
    masks = np.ones((3, 2001), bool)
    masks[1, 1001:] = False
    masks[2] = False
    masks[2, best[5, 1999]] = True  # what only an exact search would find
    mask = np.array([0, 0, 1, 1, 0, 2])
    exclude = best[:, [0, 2]] * (np.arange(6) != 4)[:, None]
    items, scores = index.search_among(users, 10, exclude, masks, mask)
    for row in range(5):
        left = [i for i in best[row] if masks[mask[row], i] and i not in exclude[row]]
        assert items[row].tolist() == left[:10]
    assert np.all(items[5] == 0) and np.all(scores[5] == -np.inf)


@pytest.mark.grid
@pytest.mark.parametrize("name", ["sasrec", "mf"])
def test_an_artefact_searches_as_it_recommends(
    name: str, exported: Callable[[str], Any], dataset: Dataset, tmp_path: Path
) -> None:
    export_run(exported(name).workdir, dataset, tmp_path / "out", k=7, ann="hnsw", measure=False)
    artefact = load_artefact(tmp_path / "out")
    told = artefact.manifest["ann"]
    assert told["recall"] == 1.0 and told["kind"] == "hnsw"  # 30 items are all looked at
    card = (tmp_path / "out" / "model_card.md").read_text()
    assert "| effort | recall@7 | p50 ms | p99 ms |" in card and "| 64 | 1.0000 |" in card
    shown: dict[str, Any] = {"users": np.array([3, 9])}
    if name == "sasrec":
        shown = {"history": np.array([[0, 4, 17], [3, 9, 9]])}
    limits: dict[str, Any] = {"exclude": np.array([[5], [6]]), "mask": np.array([1, 0])}
    limits["masks"] = np.random.default_rng(0).random((2, 31)) < 0.7
    for given in (shown, shown | limits, shown | {"mask_seen": np.array([True, False])}):
        items, scores = artefact.search_ann(**given)
        if name == "mf":
            given = {key: value for key, value in given.items() if key != "mask_seen"}
        expected, expected_scores = artefact.recommend(**given)
        assert not difference_of_lists((items, scores), (expected, expected_scores), 1e-5)


def test_without_an_index_or_without_faiss_it_is_said_what_to_do(
    exported: Callable[[str], Any],
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = exported("sasrec")
    with pytest.raises(UserError, match="has no index. Export the model with --ann=hnsw"):
        model.artefact.search_ann(history=np.array([[1]]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "faiss" or None)
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[ann\]'"):
        export_run(model.workdir, dataset, tmp_path / "out", ann="hnsw")


def test_an_index_that_this_faiss_does_not_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"nothing" * 20)
    with pytest.raises(UserError, match=r"faiss .* does not read .*index"):
        read_index(tmp_path / "index", "hnsw", 64)
