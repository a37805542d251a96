"""Fixtures: a small dataset, tiny experiments, and one trained run to look at."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxrec.data import Dataset, PairData, SequenceData, open_dataset, prepare
from jaxrec.data.synthetic import synthetic
from jaxrec.evaluation import EvaluationConfig
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import BPR, FullSoftmax, SampledSoftmax, SquaredError
from jaxrec.optim import OptimizerConfig
from jaxrec.training import ExperimentConfig, TrainingConfig, train

SEQUENCES = SequenceData(max_len=8)
SASREC = sasrec.Config(max_len=8, dim=8, num_blocks=1, num_heads=1, hidden=16)
PAIRS, MF = PairData(), matrix_factorization.Config(dim=4)
EVALUATION = EvaluationConfig(ks=(5, 10), batch_size=64)
PARTS: dict[str, dict[str, Any]] = {
    "full": {"data": SEQUENCES, "model": SASREC, "objective": FullSoftmax()},
    "sampled": {"data": SEQUENCES, "model": SASREC, "objective": SampledSoftmax(num_negatives=4)},
    "bpr": {"data": PAIRS, "model": MF, "objective": BPR(num_negatives=2)},
    "ratings": {
        "data": PAIRS,
        "model": MF,
        "objective": SquaredError(l2=0.01),
        "evaluation": dataclasses.replace(EVALUATION, rmse=True, monitor="rmse"),
    },
}


def _config_of(name: str = "full", **changes: Any) -> ExperimentConfig:
    """A tiny experiment. Changes are fields of the training config, or whole parts by name."""
    fields = {f.name for f in dataclasses.fields(ExperimentConfig)}
    parts = {key: value for key, value in changes.items() if key in fields}
    rhythm: dict[str, Any] = {
        "steps": 20,
        "batch_size": 8,
        "log_every": 4,
        "evaluate_every": 10,
        "checkpoint_every": 7,
    }
    rhythm |= {key: value for key, value in changes.items() if key not in fields}
    usual: dict[str, Any] = {
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "evaluation": EVALUATION,
        "training": TrainingConfig(**rhythm),
    }
    return ExperimentConfig(**(usual | PARTS[name] | parts))


def _make_data(path: Path, seed: int = 0, num_users: int = 60, **options: Any) -> Dataset:
    events, items = synthetic(seed, num_users=num_users, num_items=60, max_events=24)
    columns = {"time_column": "timestamp", "label_column": "rating"}
    prepare(events, path, items=items, **(columns | options))
    return open_dataset(path)


@pytest.fixture(scope="session")
def config_of() -> Callable[..., ExperimentConfig]:
    return _config_of


@pytest.fixture(scope="session")
def make_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dataset]:
    """Prepares 60 invented users and 60 items with ratings; options as `prepare`."""

    def make(**options: Any) -> Dataset:
        return _make_data(tmp_path_factory.mktemp("data") / "dataset", **options)

    return make


@pytest.fixture(scope="session")
def dataset(make_data: Callable[..., Dataset]) -> Dataset:
    return make_data()


@pytest.fixture(scope="session")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of one run of `config_of()`. Tests that change it work on a copy."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    train(_config_of(), dataset, workdir, quiet=True)
    return workdir
