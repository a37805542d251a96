"""Fixtures: catalogues of the same things in other orders and sizes, and trained sources."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import pandas as pd
import pytest

from jaxrec.data import Dataset, PairData, SequenceData
from jaxrec.data.dataset import vocabulary_fingerprint
from jaxrec.evaluation import EvaluationConfig
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import BPR, FullSoftmax, SampledSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import MeshConfig
from jaxrec.training import Experiment, ExperimentConfig, TrainingConfig, TrainState, train
from jaxrec.training.host import to_host
from jaxrec.training.state import init_state

SASREC = sasrec.Config(max_len=6, dim=8, num_blocks=1, num_heads=1, hidden=8)
SEQUENCES = SequenceData(max_len=6)
PARTS: dict[str, dict[str, Any]] = {
    "tied": {"data": SEQUENCES, "model": SASREC, "objective": FullSoftmax()},
    "untied": {
        "data": SEQUENCES,
        "model": dataclasses.replace(SASREC, tied=False),
        "objective": SampledSoftmax(num_negatives=4),
        "optimizer": OptimizerConfig(name="rowwise_adagrad", learning_rate=0.05),
    },
    "pairs": {
        "data": PairData(),
        "model": matrix_factorization.Config(dim=7),
        "objective": BPR(num_negatives=2),
        "optimizer": OptimizerConfig(learning_rate=0.01, clip_norm=1.0),
    },
}
ITEMS = [f"i{n}" for n in range(40)]
USERS = [f"u{n}" for n in range(24)]


@pytest.fixture(autouse=True)
def _quick_compilations() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def _config_of(name: str = "tied", **changes: Any) -> ExperimentConfig:
    """A tiny experiment. Changes are fields of the training config, or whole parts by name."""
    fields = {f.name for f in dataclasses.fields(ExperimentConfig)}
    rhythm: dict[str, Any] = {"steps": 6, "batch_size": 8, "checkpoint_every": 3, "keep_last": 9}
    rhythm |= {key: value for key, value in changes.items() if key not in fields}
    usual: dict[str, Any] = {
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "evaluation": EvaluationConfig(ks=(5, 10), batch_size=8),
        "training": TrainingConfig(**rhythm),
    }
    parts = {key: value for key, value in changes.items() if key in fields}
    return ExperimentConfig(**(usual | PARTS[name] | parts))


@pytest.fixture(scope="session")
def config_of() -> Callable[..., ExperimentConfig]:
    return _config_of


@pytest.fixture(scope="session")
def catalogue_of(random_dataset: Callable[..., Dataset]) -> Callable[..., Dataset]:
    """A random log of these items and users, numbered in this order."""

    def make(
        items: Sequence[str] = ITEMS,
        users: Sequence[str] = USERS,
        *,
        seed: int = 0,
        metadata: dict[str, Any] | None = None,
    ) -> Dataset:
        drawn = random_dataset(seed, num_users=len(users), num_items=len(items), mean_length=9)
        item_frame = pd.DataFrame({"id": list(items), **(metadata or {})})
        user_frame = pd.DataFrame({"id": list(users)})
        manifest = dataclasses.replace(
            drawn.manifest,
            fingerprint=f"{seed} {items} {users}",
            item_fingerprint=vocabulary_fingerprint(item_frame),
            user_fingerprint=vocabulary_fingerprint(user_frame),
        )
        return dataclasses.replace(
            drawn, manifest=manifest, item_vocabulary=item_frame, user_vocabulary=user_frame
        )

    return make


@pytest.fixture(scope="session")
def source_of(
    catalogue_of: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The workdir of a short run on `catalogue_of()`, made once; tests only read it."""
    made: dict[Any, Path] = {}

    def make(name: str = "tied", mesh: MeshConfig | None = None, average: float = 0.0) -> Path:
        key = name, mesh, average
        if key not in made:
            made[key] = tmp_path_factory.mktemp("runs") / "source"
            config = _config_of(name, mesh=mesh or MeshConfig(), average=average)
            train(config, catalogue_of(), made[key], quiet=True)
        return made[key]

    return make


def _born(experiment: Experiment) -> TrainState:
    config, mesh = experiment.config, experiment.config.mesh.build()
    optimizer = config.optimizer.build(100)
    layout = experiment.plan(optimizer, mesh).layout
    where: dict[str, Any] = {} if mesh.size == 1 else {"mesh": mesh, "layout": layout}
    state = init_state(experiment.model, optimizer, 3, **experiment.state_options, **where)
    return to_host(state, layout.on_host) if layout.on_host else state


@pytest.fixture(scope="session")
def born() -> Callable[[Experiment], TrainState]:
    """The state of an experiment before anything, as `train` makes it."""
    return _born
