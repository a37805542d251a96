"""Formats answer as the model does, loops included, or nothing is left behind."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxrec.data import SequenceData
from jaxrec.data.dataset import Dataset, Manifest
from jaxrec.evaluation import EvaluationConfig
from jaxrec.export import onnx_operations
from jaxrec.export.golden import difference
from jaxrec.export.run import check_formats, export_run
from jaxrec.layers import Embedding
from jaxrec.objectives import FullSoftmax
from jaxrec.ops.keys import Key
from jaxrec.training import Experiment, ExperimentConfig, save_trained
from jaxrec.typing import Array, Batch, UserError

pytest.importorskip("onnxruntime")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recurrent:
    """A gated recurrent model, as somebody would write it: a scan over the history."""

    num_items: int = 0
    max_len: int = 6
    dim: int = 4

    def fit(self, manifest: Manifest) -> "Recurrent":
        return dataclasses.replace(self, num_items=manifest.num_items)

    def build(self, rngs: nnx.Rngs) -> "RecurrentModule":
        return RecurrentModule(self, rngs)


class RecurrentModule(nnx.Module):
    def __init__(self, config: Recurrent, rngs: nnx.Rngs):
        self.items = Embedding(config.num_items, config.dim, std=0.5, rngs=rngs)
        self.gates = nnx.Linear(2 * config.dim, 2 * config.dim, rngs=rngs)
        self.new = nnx.Linear(2 * config.dim, config.dim, rngs=rngs)

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        return {"items": ("history", "positives", "negatives")}

    def user_vectors(self, batch: Batch, *, key: Key | None = None) -> jax.Array:
        rows, there = self.items(batch.history), batch.history > 0

        def step(state: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            row, where = given
            both = jnp.concatenate([state, row], axis=-1)
            reset, keep = jnp.split(nnx.sigmoid(self.gates(both)), 2, axis=-1)
            new = jnp.tanh(self.new(jnp.concatenate([reset * state, row], axis=-1)))
            moved = keep * state + (1 - keep) * new
            return jnp.where(where[:, None], moved, state), None

        begin = jnp.zeros_like(rows[:, 0])
        return lax.scan(step, begin, (rows.swapaxes(0, 1), there.T))[0]

    def item_vectors(self, ids: Array | None = None) -> jax.Array:
        return self.items(ids)


@pytest.fixture(scope="module")
def recurrent(dataset: Dataset) -> tuple[Experiment, Any]:
    config = ExperimentConfig(
        data=SequenceData(max_len=6),
        model=Recurrent(),
        objective=FullSoftmax(),
        evaluation=EvaluationConfig(ks=(5,), monitor="ndcg@5", bootstrap_samples=0),
    )
    experiment = Experiment.of(config, dataset)
    return experiment, experiment.model.init(jax.random.key(0))


def test_a_recurrent_model_answers_alike_in_all_formats(recurrent: Any) -> None:
    check_formats(*recurrent)


def test_a_format_that_answers_otherwise_leaves_nothing_behind(
    recurrent: Any, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, params = recurrent
    save_trained(experiment, params, tmp_path / "run")

    monkeypatch.setitem(onnx_operations.LOWERINGS, "scan", _skipped)
    with pytest.raises(UserError, match="ONNX program 'recommend' does not answer as the model"):
        export_run(tmp_path / "run", dataset, tmp_path / "out", formats=("stablehlo", "onnx"), k=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def _skipped(graph: Any, equation: Any, inputs: list[Any]) -> list[Any]:
    """A loop that does nothing."""
    carried = len(equation.outvars)
    first = next(
        i
        for i, atom in enumerate(equation.invars)
        if atom.aval.shape == equation.outvars[0].aval.shape
    )
    found: list[Any] = inputs[first : first + carried]
    return found


@pytest.mark.parametrize(
    ("items", "scores", "told"),
    [
        ([[3, 5, 9]], [[2.0, 1.0, 0.5]], ""),
        ([[5, 3, 9]], [[2.0, 1.0, 0.5]], "place 2"),  # other places, without a tie
        ([[3, 5, 7]], [[2.0, 1.0, 0.50001]], ""),  # a tie over the end
        ([[3, 5, 7]], [[2.0, 1.0, 0.6]], "place 3"),
        ([[3, 5, 5]], [[2.0, 1.0, 0.5]], "place 3"),  # one item twice hides another
        ([[3, 5, 0]], [[2.0, 1.0, -np.inf]], "place 3"),
        ([[3, 5, 9]], [[2.0, np.nan, 0.5]], "place 2"),
    ],
)
def test_lists_are_compared_by_their_scores(items: Any, scores: Any, told: str) -> None:
    wanted = [[3, 5, 9]], [[2.0, 1.0, 0.5]]
    found = difference(*wanted, np.array(items), np.array(scores), 1e-4)
    assert found.startswith(told) and bool(found) == bool(told)


def test_ties_in_the_middle_may_change_places() -> None:
    wanted = [[3, 5, 9]], [[2.0, 1.00001, 1.0]]
    assert not difference(*wanted, np.array([[3, 9, 5]]), np.array([[2.0, 1.0, 1.0]]), 1e-4)


def test_onnx_wants_both_packages(
    exported: Callable[[str], Any],
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "onnxruntime" or None)
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[onnx\]'"):
        export_run(exported("mf").workdir, dataset, tmp_path / "out", formats=["onnx"])


def test_what_a_score_is_stands_in_the_manifest_and_the_card(
    exported: Callable[[str], Any],
) -> None:
    path = exported("ligr").artefact.path
    told = json.loads((path / "manifest.json").read_text())["score"]
    assert told["objective"] == "FullSoftmax" and told["head"] is None
    assert told["means"].startswith("the cosine of user and item, divided by 0.1; a logit of a")
    assert f"A score is {told['means']}" in (path / "model_card.md").read_text()
