"""scripts/finetune.py as a user meets it: prepare, train, append and fine-tune as processes."""

import json
import shutil
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pytest

from jaxrec.data import open_dataset, prepare
from jaxrec.data.synthetic import synthetic
from jaxrec.finetuning import load_adapter
from jaxrec.training import load_trained


@pytest.fixture(scope="module")
def first_day(
    scripts: Any, config_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """A dataset of a first day, the run on it, and the events of the second day."""
    path = tmp_path_factory.mktemp("days")
    events, _ = synthetic(0, num_users=60, num_items=60, max_events=24)
    for name, part in (("day1", events.iloc[:900]), ("day2", events.iloc[900:])):
        part.to_parquet(path / f"{name}.parquet")
    columns = ("--time_column=timestamp", "--label_column=rating")
    scripts.works("prepare", f"--input={path}/day1.parquet", f"--output={path}/data", *columns)
    flags = (f"--config={config_files['full']}", f"--data={path}/data", f"--workdir={path}/old")
    scripts.works("train", *flags, "--quiet")
    return path / "data", path / "old", path / "day2.parquet"


def test_a_new_day_is_appended_once_and_trained_on(
    scripts: Any, first_day: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    first, old, day2 = first_day
    data = shutil.copytree(first, tmp_path / "data")
    command = (
        *("finetune", f"--source={old}", f"--data={data}", f"--append={day2}"),
        *(f"--workdir={tmp_path / 'new'}", "--replay=0.2", "--accept_worse"),
        *("--config.training.epochs=2", "--config.training.steps", "0"),
    )
    out = scripts.works(*command)
    assert f"appended: {day2}" in out and f"from {old}, step " in out
    assert "table items: " in out and " optimiser: " in out
    assert "ndcg@10" in out and " before, " in out
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert result["epochs"] == 2
    again = scripts.works(*command)
    assert "appended: nothing, it was there already" in again
    origin = json.loads((tmp_path / "new" / "source.json").read_text())
    assert origin["source"] == str(old) and origin["growth"]["new_rows"] == "neighbours"
    measured = scripts.works("evaluate", f"--workdir={tmp_path / 'new'}", "--nobaselines")
    assert "SASRec" in measured


@pytest.mark.slow
def test_adapters_are_trained_on_the_source_and_written_alone(
    scripts: Any, first_day: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    data, old, _ = first_day
    chosen = ("finetune", f"--source={old}", f"--data={data}", f"--workdir={tmp_path / 'new'}")
    out = scripts.works(
        *(*chosen, "--lora_rank=2", "--lora_alpha=4", "--lora_dropout=0.1", "--accept_worse"),
        *("--lora_on=blocks/*/kernel,items/table", "--config.model.hidden=16"),
    )
    assert "parameters start fresh: " in out
    dataset = open_dataset(data)
    experiment, trunk, _ = load_trained(old, dataset)
    config, params = load_adapter(tmp_path / "new" / "adapter.npz", experiment.config.model, trunk)
    adapted, trained, _ = load_trained(tmp_path / "new", dataset)
    assert config == adapted.config.model
    assert (config.rank, config.alpha, config.dropout) == (2, 4.0, 0.1)
    chex.assert_trees_all_equal(params, trained)
    assert np.abs(params["items"]["table_lora"]).max() > 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--lora_rank=9",), "lora.rank=9 is above what"),
        (("--lora_rank=2", "--lora_on=blocks/*/kernle"), "matches no parameter. Did you mean "),
        (("--lora_on=items/table",), "--lora_on does nothing with --lora_rank=0"),
        (("--lora_rank=2", "--lora_dropout=1"), "dropout must be in [0, 1); got 1"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    first_day: tuple[Path, Path, Path], tmp_path: Path, flags: tuple[str, ...], said: str, scripts
) -> None:
    data, old, _ = first_day
    chosen = ("finetune", f"--source={old}", f"--data={data}", f"--workdir={tmp_path / 'new'}")
    assert said in scripts.fails(*chosen, *flags)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_mistakes_end_in_one_sentence(
    scripts: Any, first_day: tuple[Path, Path, Path], config_files: Any, tmp_path: Path
) -> None:
    data, old, _ = first_day
    chosen = ("finetune", f"--source={old}", f"--data={data}", f"--workdir={tmp_path / 'new'}")
    assert "--source=DIR --data=DIR --workdir=DIR" in scripts.fails("finetune")
    said = scripts.fails(*chosen, "--new_rows=neighbors")
    assert "Did you mean 'neighbours'?" in said
    said = scripts.fails(*chosen, "--config.optimizer.learning_rte=1")
    assert "Did you mean 'learning_rate'?" in said
    said = scripts.fails(*chosen, f"--source={tmp_path}")
    assert "config.json does not exist" in said
    said = scripts.fails_after_progress(*chosen, f"--config={config_files['bpr']}")
    assert "a checkpoint of another family" in said
    events, _ = synthetic(1, num_users=30, num_items=90, max_events=20)
    other = tmp_path / "other"
    prepare(events, other, time_column="timestamp", label_column="rating")
    said = scripts.fails_after_progress(*chosen, f"--data={other}", "--new_rows=content")
    assert "no metadata column of the items can be compared" in said
    assert "wants a dataset that was made by appending" in scripts.fails(
        *chosen, f"--data={other}", "--replay=0.5"
    )
