"""Workdirs and configs that do not fit: what is said, and that nothing is changed."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxrec.config import override
from jaxrec.data import Dataset, SequenceData
from jaxrec.models import sasrec
from jaxrec.optim import OptimizerConfig
from jaxrec.training import ExperimentConfig, load_trained, train
from jaxrec.training.logs import read_metrics
from jaxrec.typing import UserError

# Of a damaged checkpoint several reads fail at once; those after the first have no one to tell.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

type ConfigOf = Callable[..., ExperimentConfig]


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "copied")


def refused(config: ExperimentConfig, data: Dataset, workdir: Path) -> str:
    """Tries to train and returns why not, after a look that the workdir is as it was."""
    before = {path: path.read_bytes() for path in workdir.glob("*.json*")}
    with pytest.raises(UserError) as caught:
        train(config, data, workdir, quiet=True)
    assert before == {path: path.read_bytes() for path in workdir.glob("*.json*")}
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "was", "now"),
    [
        ("model.dim", "8", "16"),
        ("model.dropout", "0.2", "0.1"),
        ("objective.label_smoothing", "0.0", "0.1"),
        ("optimizer.learning_rate", "0.01", "0.5"),
        ("training.batch_size", "8", "16"),
        ("training.seed", "0", "1"),
        ("data.targets", "'packed'", "'all'"),
    ],
)
def test_a_run_of_another_config_is_refused_by_the_field_that_differs(
    config_of: ConfigOf, dataset: Dataset, trained: Path, path: str, was: str, now: str
) -> None:
    said = refused(override(config_of(), path, now.strip("'")), dataset, trained)
    assert f"config.{path}={was} and the config has {now}" in said
    assert "another --workdir" in said


def test_a_run_of_another_kind_is_refused(
    config_of: ConfigOf, dataset: Dataset, trained: Path
) -> None:
    said = refused(config_of("sampled"), dataset, trained)
    assert "config.objective.type=" in said
    assert "FullSoftmax" in said and "SampledSoftmax" in said
    said = refused(config_of("bpr"), dataset, trained)
    assert "sasrec.Config" in said and "matrix_factorization.Config" in said


def test_another_vocabulary_and_a_changed_dataset_are_refused(
    config_of: ConfigOf, make_data: Callable[..., Dataset], trained: Path
) -> None:
    fewer_users = make_data(num_users=50)
    assert "another user vocabulary" in refused(config_of(), fewer_users, trained)
    with pytest.raises(UserError, match="another user vocabulary"):
        load_trained(trained, fewer_users)
    other_split = make_data(split="random")
    assert "the dataset has changed" in refused(config_of(), other_split, trained)
    # Its vocabularies are the same, so what was learned can be used.
    assert load_trained(trained, other_split)[2] in (10, 20)


def test_a_run_may_be_made_longer(config_of: ConfigOf, dataset: Dataset, copied: Path) -> None:
    before = read_metrics(copied / "metrics.jsonl")
    per_epoch = config_of().data.batches(dataset, 8, 0).steps_per_epoch
    longer = train(config_of(steps=0, epochs=3), dataset, copied, quiet=True)
    assert longer["epochs"] == 3
    assert longer["steps"] == 3 * per_epoch > 20
    assert read_metrics(copied / "metrics.jsonl")[: len(before)] == before


def test_a_finished_run_is_measured_and_not_trained_again(
    config_of: ConfigOf, dataset: Dataset, copied: Path
) -> None:
    log = (copied / "metrics.jsonl").read_bytes()
    again = train(config_of(), dataset, copied, quiet=True)
    assert again["steps"] == 20
    assert (copied / "metrics.jsonl").read_bytes() == log


def test_a_log_cut_short_by_a_kill_is_mended(
    config_of: ConfigOf, dataset: Dataset, copied: Path
) -> None:
    log = copied / "metrics.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"step": 21, "train/loss": 3.5}\n{"step": 22, "trai')
    train(config_of(), dataset, copied, quiet=True)
    assert log.read_bytes() == whole


@pytest.mark.grid
@pytest.mark.parametrize("part", ["state", "meta"])
def test_a_truncated_checkpoint_is_named_and_removing_it_falls_back(
    config_of: ConfigOf, dataset: Dataset, copied: Path, part: str
) -> None:
    newest = copied / "checkpoints" / "20"
    files = [path for path in (newest / part).rglob("*") if path.is_file()]
    victim = max(files, key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    wanted = f"checkpoint of step 20 is damaged .* Remove {newest} to fall back to step 1"
    with pytest.raises(UserError, match=wanted):
        train(config_of(), dataset, copied, quiet=True)
    with pytest.raises(UserError, match=wanted):
        load_trained(copied, dataset, step=20)
    shutil.rmtree(newest)
    assert train(config_of(), dataset, copied, quiet=True)["steps"] == 20


def test_the_only_checkpoint_when_damaged_leaves_a_new_start(
    config_of: ConfigOf, dataset: Dataset, copied: Path
) -> None:
    kept, *others = sorted((copied / "checkpoints").iterdir())
    for other in others:
        shutil.rmtree(other)
    shutil.rmtree(kept / "state" / "d")
    shutil.rmtree(kept / "state" / "ocdbt.process_0")
    with pytest.raises(UserError, match=f"Remove {kept} to start again"):
        train(config_of(), dataset, copied, quiet=True)


def test_reading_a_run_leaves_alone_what_it_is_about_to_save(
    dataset: Dataset, copied: Path
) -> None:
    unfinished = copied / "checkpoints" / "27.orbax-checkpoint-tmp"
    unfinished.mkdir()
    load_trained(copied, dataset)
    assert unfinished.exists()


def test_a_run_that_cannot_be_read_says_why(
    dataset: Dataset, trained: Path, copied: Path, tmp_path: Path
) -> None:
    def said(workdir: Path, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            load_trained(workdir, dataset, **options)
        return str(caught.value)

    assert "does not exist. A workdir is made by scripts/train.py" in said(tmp_path / "none")
    assert "has no checkpoint of step 5; it has [" in said(trained, step=5)
    config = copied / "config.json"
    whole = config.read_text()
    config.write_text(whole[: len(whole) // 2])
    assert "config.json is damaged" in said(copied)
    config.write_text("{}")
    assert "config.json is damaged" in said(copied)
    config.write_text(whole.replace("sasrec.Config", "sasrec.Confg"))
    assert "Confg" in said(copied)
    config.write_text(whole.replace('"dim": 8', '"dim": 16'))
    assert "config.model.dim=8 and the config has 16" in said(copied)
    config.write_text(whole)
    shutil.rmtree(copied / "checkpoints")
    assert "has no checkpoint yet" in said(copied)
    assert not (copied / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"model": sasrec.Config(num_items=99, max_len=8)},
            "config.model.num_items=99 does not fit the dataset, which has 60",
        ),
        ({"data": SequenceData(max_len=8, row_len=4)}, "row_len=4 is shorter than"),
        (
            {"optimizer": OptimizerConfig(warmup_steps=500)},
            "config.optimizer.warmup_steps=500 must be less than the run's 20 steps",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_data_is_refused(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path, changes: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(UserError) as caught:
        train(config_of(**changes), dataset, tmp_path / "run", quiet=True)
    assert wanted in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_histories_longer_than_the_model_reads_are_refused(config_of: ConfigOf) -> None:
    with pytest.raises(UserError, match=r"data\.max_len=30 is longer than model\.max_len=8"):
        config_of(data=SequenceData(max_len=30))


def test_ratings_want_labels_and_pairs_want_events(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path
) -> None:
    unlabelled = dataclasses.replace(dataset, labels=None)
    with pytest.raises(UserError, match="SquaredError wants labels"):
        train(config_of("ratings"), unlabelled, tmp_path / "run", quiet=True)
    untrained = dataclasses.replace(dataset, split=dataset.split * 0 + 2)
    with pytest.raises(UserError, match="no training events"):
        train(config_of("bpr"), untrained, tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="no next item to learn"):
        train(config_of("full"), untrained, tmp_path / "run", quiet=True)
