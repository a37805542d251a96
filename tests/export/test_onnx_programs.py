"""ONNX programs in ONNX Runtime against the StableHLO programs of the same artefact."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from jaxrec.data.dataset import Dataset
from jaxrec.evaluation import requests_of
from jaxrec.export import load_artefact
from jaxrec.export.golden import difference_of_lists
from jaxrec.export.run import export_run

onnxruntime = pytest.importorskip("onnxruntime")

NAMES = ["sasrec", "ligr", "mf", "int8", "int4", "pq", "lora", "content"]
SLOW = ["bfloat16", "aware", "pruned", "heads"]
ALL = [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@functools.cache
def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path)


def run(artefact: Any, program: str, **given: np.ndarray) -> list[np.ndarray]:
    return session(artefact.path / f"{program}.onnx").run(None, given)


def shown_to(artefact: Any, dataset: Dataset, rows: int, columns: int) -> dict[str, np.ndarray]:
    requests = requests_of(dataset, "test")
    if artefact.shown == ("users",):
        return {"users": requests.users[:rows]}
    return {"history": requests.padded_history(columns, np.arange(rows))}


@pytest.mark.grid(quick=4)
@pytest.mark.parametrize("name", ALL)
def test_every_model_gives_what_its_other_programs_give(
    name: str, exported: Callable[[str], Any], dataset: Dataset
) -> None:
    artefact, random = exported(name).artefact, np.random.default_rng(0)
    for rows, columns, width, lists in ((1, 3, 1, 1), (9, 8, 4, 3), (4, 1, 2, 2)):
        shown = shown_to(artefact, dataset, rows, columns)
        limits: dict[str, np.ndarray] = {
            "exclude": random.integers(0, 31, (rows, width)).astype(np.int32),
            "masks": random.random((lists, 31)) < 0.6,
            "mask": random.integers(0, lists, rows).astype(np.int32),
        }
        if artefact.shown == ("history",):
            limits["mask_seen"] = random.random(rows) < 0.5
        items, scores = run(artefact, "recommend", **shown, **limits)
        assert not difference_of_lists((items, scores), artefact.recommend(**shown, **limits))
        assert items.dtype == np.int32 and scores.dtype == np.float32

        candidates = random.integers(0, 31, (rows, 5)).astype(np.int32)
        (scores,) = run(artefact, "score", **shown, items=candidates)
        expected_scores = artefact.score(candidates, **shown)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-4)

        item = random.integers(1, 31, rows).astype(np.int32)
        items, scores = run(artefact, "similar", item=item)
        assert not difference_of_lists((items, scores), artefact.similar(item))


def test_a_model_of_half_precision_computes_in_float32(
    exported: Callable[[str], Any], dataset: Dataset
) -> None:
    artefact = exported("post_norm").artefact
    shown = shown_to(artefact, dataset, 6, 8)
    everything = np.tile(np.arange(31, dtype=np.int32), (6, 1))
    (scores,) = run(artefact, "score", **shown, items=everything)
    half = np.asarray(artefact.score(everything, **shown))
    off = np.abs(scores[:, 1:] - half[:, 1:])
    assert 1e-4 < off.max() < 0.1 * np.abs(half[:, 1:]).max()


def test_lists_end_where_nothing_is_left(exported: Callable[[str], Any]) -> None:
    artefact = exported("sasrec").artefact
    masks = np.zeros((1, 31), bool)
    masks[0, [0, 4, 9]] = True
    items, scores = run(
        artefact,
        "recommend",
        history=np.array([[4, 7]], np.int32),
        exclude=np.zeros((1, 1), np.int32),
        masks=masks,
        mask=np.zeros(1, np.int32),
        mask_seen=np.ones(1, bool),
    )
    assert items.tolist() == [[9, 0, 0, 0, 0, 0, 0]] and np.all(scores[0, 1:] == -np.inf)


@pytest.mark.parametrize("name", ["sasrec", "mf"])
def test_the_manifest_tells_what_programs_take(name: str, exported: Callable[[str], Any]) -> None:
    artefact = exported(name).artefact
    for program, told in artefact.manifest["onnx"].items():
        path = artefact.path / told["file"]
        onnx.checker.check_model(path, full_check=True)
        found = session(path)
        for there, described in (
            (found.get_inputs(), told["inputs"]),
            (found.get_outputs(), told["outputs"]),
        ):
            assert [(x.name, x.shape) for x in there] == [
                (x["name"], x["shape"]) for x in described
            ]
        others = artefact.manifest["programs"][program]["inputs"]
        assert told["inputs"] == [x for x in others if x["name"] not in ("weights", "vectors")]


def test_programs_share_the_file_of_constants(exported: Callable[[str], Any]) -> None:
    artefact = exported("sasrec").artefact
    assert (artefact.path / "recommend.onnx").stat().st_size < 60_000
    places = set()
    for program in ("recommend", "score"):
        model = onnx.load(artefact.path / f"{program}.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            told = {entry.key: entry.value for entry in tensor.external_data}
            if tensor.dims == [1]:
                assert not told
            if tensor.dims == [31, 8]:
                places.add(told["offset"])
    assert len(places) == 1


def test_onnx_alone_is_no_artefact_to_load_but_runs(
    exported: Callable[[str], Any], dataset: Dataset, tmp_path: Path
) -> None:
    manifest = export_run(
        exported("mf").workdir, dataset, tmp_path / "out", formats=["onnx"], measure=False
    )
    assert not manifest["programs"] and "recommend" in manifest["onnx"]
    with pytest.raises(Exception, match="no programs"):
        load_artefact(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "recommend.onnx" in text and "stablehlo" not in text
