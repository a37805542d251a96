"""Choosing among what was measured, and measuring beside the source on the same users."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxrec.compression import Quantized, num_bytes
from jaxrec.compression.measuring import (
    Measured,
    choose,
    format_page,
    format_table,
    measure,
    pareto,
)
from jaxrec.compression.search import Candidate, Source, candidates
from jaxrec.data import PairData, SequenceData, Taught
from jaxrec.data.dataset import Dataset
from jaxrec.distillation import Distillation
from jaxrec.evaluation import EvaluationConfig
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import FullSoftmax, SampledSoftmax, SquaredError
from jaxrec.optim import OptimizerConfig
from jaxrec.training import Experiment, ExperimentConfig, TrainingConfig
from jaxrec.typing import UserError


def row(name: str, size: int, change: float) -> Measured:
    return Measured(
        name=name,
        num_bytes=size,
        share=size / 1000,
        latency_ms={1: 0.5, 32: 2.0},
        metric=0.1 * (1 + change),
        interval=(0.09, 0.11),
        change=change,
        difference=(0.1 * change - 0.001, 0.1 * change + 0.001),
        significant_loss=0.1 * change + 0.001 < 0,
    )


ROWS = [row("source", 1000, 0.0), row("a", 260, -0.005), row("b", 150, -0.03), row("c", 200, -0.04)]


@pytest.mark.parametrize(
    ("aim", "name"),
    [
        ({"max_metric_drop": 0.0}, "source"),
        ({"max_metric_drop": 0.01}, "a"),
        ({"max_metric_drop": 0.05}, "b"),
        ({"target_bytes": 150}, "b"),
        ({"target_bytes": 259}, "b"),  # c is larger and worse
        ({"target_bytes": 260}, "a"),
        ({"target_bytes": 5000}, "source"),
    ],
)
def test_the_smallest_that_is_good_or_the_best_that_is_small(aim: Any, name: str) -> None:
    assert choose(ROWS, **aim).name == name


def test_what_cannot_be_reached_names_what_was() -> None:
    with pytest.raises(UserError, match=r"149 bytes or less: the smallest is b with 150 \(-3.0%\)"):
        choose(ROWS, target_bytes=149)
    with pytest.raises(UserError, match=r"more than 0.1%: a loses least, 0.5%, with 260 bytes"):
        choose(ROWS[1:], max_metric_drop=0.001)
    aims: list[dict[str, Any]] = [{}, {"target_bytes": 1, "max_metric_drop": 0.1}]
    for aim in aims:
        with pytest.raises(UserError, match="either a number of bytes or a metric drop"):
            choose(ROWS, **aim)


def test_the_front_is_what_no_other_beats_in_both() -> None:
    assert [r.name for r in pareto(ROWS)] == ["b", "a", "source"]
    lines = format_table(ROWS, "ndcg@10").splitlines()
    assert [line[:2] for line in lines[1:]] == ["* ", "  ", "* ", "* "]  # b, c, a, source
    assert "200" in lines[2] and "-4.00%" in lines[2] and lines[2].endswith("significant")
    assert not lines[3].endswith("significant")
    page = format_page(ROWS, "ndcg@10", "runs/<a>")
    assert "runs/&lt;a&gt;" in page and page.count("<polyline") == 1  # the front
    for name in ("a", "b", "c", "source"):
        assert f"<title>{name}: " in page


@pytest.fixture(scope="module")
def source(random_dataset: Callable[..., Dataset]) -> Candidate:
    dataset = random_dataset(0, num_users=40, num_items=30, mean_length=8)
    config = ExperimentConfig(
        data=PairData(),
        model=matrix_factorization.Config(dim=7, global_mean=0.0),
        objective=SquaredError(),
        # Rating models are compared by how they rank.
        evaluation=EvaluationConfig(ks=(10,), batch_size=16, rmse=True, monitor="rmse"),
        training=TrainingConfig(epochs=10),
    )
    experiment = Experiment.of(config, dataset)
    random = np.random.default_rng(0)
    shapes = experiment.model.shapes
    params = jax.tree.map(
        lambda x: jax.numpy.asarray(random.normal(size=x.shape), jax.numpy.float32), shapes
    )
    return Candidate("source", experiment, params)


def test_a_candidate_is_measured_beside_the_source_user_by_user(source: Candidate) -> None:
    first, per_user = measure(source, source, "test")
    assert first.change == 0 and first.difference == (0, 0) and not first.significant_loss
    assert first.share == 1 and first.metric == pytest.approx(per_user.mean())
    upside_down = jax.tree.map(lambda x: x, source.params)
    upside_down["items"]["table"] = -upside_down["items"]["table"]
    other = dataclasses.replace(source, name="other", params=upside_down)
    found, values = measure(other, source, "test", per_user=per_user)
    assert found.metric == pytest.approx(values.mean())
    assert found.change == pytest.approx(values.mean() / per_user.mean() - 1)
    random = np.random.default_rng(5)
    means = [
        (values - per_user)[random.integers(0, len(values), len(values))].mean()
        for _ in range(4000)
    ]
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(found.difference, expected, atol=0.1 * np.ptp(expected))
    assert found.significant_loss == (found.difference[1] < 0)
    assert set(found.latency_ms) == {1, 32} and min(found.latency_ms.values()) > 0


def test_methods_make_what_they_are_named_after(source: Candidate, tmp_path: Any) -> None:
    what = Source(source.experiment, source.params, tmp_path, tmp_path)
    made = list(candidates(what, ["int8", "int4", "pq"]))
    # The tables are 8 wide, a bias included.
    names = [
        "int8",
        "int4",
        "int4 group 4",
        "int4 group 2",
        "pq 4 parts",
        "pq 2 parts",
        "pq 1 parts",
    ]
    assert [c.name for c in made] == names
    sizes = [num_bytes(c.params) for c in made[:4]]
    rows = 41 + 31
    assert sizes == [rows * (8 + 2), rows * (4 + 2), rows * (4 + 4), rows * (4 + 8)]
    assert what.shorter.training.epochs == 5
    with pytest.raises(
        UserError, match="no method 'int2'. There are: int8, int4, pq, qat, prune, distil"
    ):
        list(candidates(what, ["int8", "int2"]))
    model: Any = made[0].experiment.config.model
    assert isinstance(model, Quantized)
    with pytest.raises(UserError, match="quantised already"):
        list(candidates(Source(made[0].experiment, made[0].params, tmp_path, tmp_path), ["int8"]))


def test_smaller_models_are_taught_where_the_objective_ranks(
    source: Candidate, tmp_path: Path
) -> None:
    what = Source(source.experiment, source.params, tmp_path / "run", tmp_path)
    assert what.taught.config.objective == SquaredError()
    model = sasrec.Config(max_len=4, dim=4, num_blocks=1, hidden=4, dropout=0.5)
    plain = SampledSoftmax(num_negatives=4)
    for objective, top_k in ((FullSoftmax(), 0), (plain, 50)):
        config = ExperimentConfig(
            data=Taught(data=SequenceData(max_len=4), labels="gone"),
            model=model,
            objective=Distillation(objective=objective),
            training=TrainingConfig(steps=9, trained=("blocks",)),
            optimizer=OptimizerConfig(l2_to_start=0.1, layer_decay=0.5, unfreeze_every=3),
        )
        experiment = Experiment.of(config, source.experiment.dataset)
        found = dataclasses.replace(what, experiment=experiment).taught.config
        assert found.data == SequenceData(max_len=4) and found.training.steps == 4
        assert found.training.trained == () and found.optimizer == OptimizerConfig()
        assert found.objective == Distillation(
            objective=objective,
            teacher=str(tmp_path / "run"),
            weight=0.5,
            augment=0.2,
            top_k=top_k,
        )
        assert found.model.dropout == 0.1
