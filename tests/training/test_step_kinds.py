"""Dense or by touched rows: what a run prints, and what it refuses to change half way."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxrec.data import Dataset, PairData, SequenceData
from jaxrec.models import matrix_factorization
from jaxrec.objectives import BPR, FullSoftmax, SampledSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import MeshConfig
from jaxrec.training import Experiment, ExperimentConfig, TrainingConfig, train
from jaxrec.typing import UserError

FACTORS = matrix_factorization.Config(dim=2)
TRAINING = TrainingConfig(steps=2, batch_size=8, evaluate_every=2)


@pytest.fixture(scope="module")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    return random_dataset(0, num_users=60, num_items=20, mean_length=9)


def config_of(optimizer: str = "adam", objective: Any = None, **training: Any) -> ExperimentConfig:
    kind: Any = optimizer
    return ExperimentConfig(
        data=PairData(),
        model=FACTORS,
        objective=objective or BPR(num_negatives=2),
        optimizer=OptimizerConfig(name=kind),
        training=dataclasses.replace(TRAINING, **training),
    )


def kinds(config: ExperimentConfig, dataset: Dataset) -> dict[str, str]:
    experiment = Experiment.of(config, dataset)
    batches = config.data.batches(dataset, config.training.batch_size, 0)
    return experiment.step_kinds(batches, config.objective.statistics(dataset))


def test_the_kind_of_each_table_is_that_of_the_ids_of_a_batch(dataset: Dataset) -> None:
    # 8 users of 60; 8 targets and 16 negatives of 20 items.
    assert kinds(config_of(), dataset) == {"users": "touched rows", "items": "dense"}
    fewer = config_of(capacity=10)
    assert kinds(fewer, dataset) == {"users": "touched rows", "items": "touched rows"}
    whole = config_of(objective=FullSoftmax())
    assert kinds(whole, dataset) == {"users": "dense", "items": "dense"}


def test_batches_of_several_widths_may_be_of_both_kinds(
    dataset: Dataset, config_of: Any = config_of
) -> None:
    from jaxrec.models import sasrec

    model = sasrec.Config(max_len=9, dim=2, num_blocks=0, num_heads=1, hidden=2)
    data = SequenceData(max_len=9, targets="last", buckets=(1,))
    shared = SampledSoftmax(num_negatives=2)
    changed = dataclasses.replace(config_of(objective=shared), data=data, model=model)
    assert kinds(changed, dataset) == {"items": "dense or touched rows"}


def test_a_run_prints_how_each_table_is_updated(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config_of(), dataset, tmp_path)
    said = capsys.readouterr().err
    assert "step: touched rows" in said and "step: dense" in said


@pytest.mark.grid
@pytest.mark.parametrize("change", ["capacity", "host"])
def test_going_on_with_another_kind_of_step_is_refused_where_it_matters(
    change: str, dataset: Dataset, tmp_path: Path
) -> None:
    def longer(config: ExperimentConfig) -> ExperimentConfig:
        training = dataclasses.replace(config.training, steps=4)
        if change == "capacity":
            return dataclasses.replace(config, training=dataclasses.replace(training, capacity=19))
        mesh = MeshConfig(tables="host", replicate_below=0.0)
        return dataclasses.replace(config, training=training, mesh=mesh)

    train(config_of(), dataset, tmp_path / "adam", quiet=True)
    with pytest.raises(UserError, match=r"table 'items' by: dense, .* by: touched rows \(config"):
        train(longer(config_of()), dataset, tmp_path / "adam", quiet=True)
    # With Adagrad a row that no batch touches rests in any case.
    train(config_of("adagrad"), dataset, tmp_path / "adagrad", quiet=True)
    assert train(longer(config_of("adagrad")), dataset, tmp_path / "adagrad", quiet=True)
