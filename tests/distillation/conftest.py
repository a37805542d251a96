"""Fixtures: a dataset, and trained runs that teach."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrec.data import Dataset, PairData, SequenceData, build
from jaxrec.evaluation import EvaluationConfig
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import BPR, FullSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.training import ExperimentConfig, TrainingConfig, train

SASREC = sasrec.Config(
    max_len=8, dim=8, num_blocks=1, num_heads=2, hidden=8, dropout=0.0, attention_dropout=0.0
)
FACTORS = matrix_factorization.Config(dim=4, init_std=0.3)


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """60 users with 3 to 8 events of 90 items; the last two of each user are for measurement."""
    import pandas as pd

    random = np.random.default_rng(0)
    lengths = random.integers(3, 9, 60)
    users = np.repeat(np.arange(60), lengths)
    # Every item once, so that all are in the vocabulary.
    items = np.concatenate([np.arange(90), random.integers(0, 90, lengths.sum() - 90)])
    log = pd.DataFrame({"user_id": users, "item_id": random.permutation(items)})
    log["timestamp"] = np.arange(len(log))
    return build(log, time_column="timestamp", split="leave_last_out")


def _run(data: object, model: object, objective: object) -> ExperimentConfig:
    return ExperimentConfig(
        data=data,
        model=model,
        objective=objective,
        optimizer=OptimizerConfig(learning_rate=3e-2),
        training=TrainingConfig(steps=20, batch_size=16, evaluate_every=20),
        evaluation=EvaluationConfig(ks=(10,), batch_size=32),
    )


@pytest.fixture(scope="session")
def teacher(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a SASRec."""
    workdir = tmp_path_factory.mktemp("runs") / "sasrec"
    train(_run(SequenceData(max_len=8), SASREC, FullSoftmax()), dataset, workdir, quiet=True)
    return workdir


@pytest.fixture(scope="session")
def factors(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a matrix factorisation, which knows users."""
    workdir = tmp_path_factory.mktemp("runs") / "factors"
    train(_run(PairData(), FACTORS, BPR()), dataset, workdir, quiet=True)
    return workdir


@pytest.fixture(scope="session")
def config_of() -> Callable[..., ExperimentConfig]:
    return _run


@pytest.fixture(autouse=True)
def _compile_fast() -> Iterator[None]:
    """Many tiny programs: the compiler does not optimise them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
