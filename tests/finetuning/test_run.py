"""Fine-tuning runs: resumable, honest about what they did, and the source untouched."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pandas as pd
import pytest

from jaxrec.data import Dataset, Replay, open_dataset, prepare
from jaxrec.data.synthetic import synthetic
from jaxrec.finetuning import (
    Growth,
    LoRA,
    append_once,
    compare,
    finetune,
    grow_run,
    load_adapter,
    run,
    source_config,
)
from jaxrec.paths import flatten
from jaxrec.sharding import MeshConfig
from jaxrec.training import load_trained, train
from jaxrec.typing import UserError

COLUMNS: dict[str, Any] = {"time_column": "timestamp", "label_column": "rating"}


@pytest.fixture(scope="module")
def new_data(catalogue_of: Callable[..., Dataset]) -> Dataset:
    items = [f"i{n}" for n in range(30)][::-1] + ["new1", "new2"]
    return catalogue_of(items, [f"u{n}" for n in range(5, 40)], seed=2)


def hashes(directory: Path) -> dict[Path, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def parameters(workdir: Path, data: Dataset, step: int | None = None) -> Any:
    return jax.device_get(load_trained(workdir, data, step=step)[1])


@pytest.mark.slow
def test_a_run_cut_off_before_and_after_its_first_checkpoint_ends_as_one_that_was_not(
    source_of: Any,
    config_of: Any,
    new_data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = source_of("pairs")
    before = hashes(source)
    given: dict[str, Any] = {"growth": Growth(new_rows="mean"), "accept_worse": True}
    whole = finetune(source, new_data, tmp_path / "whole", **given)
    told = capsys.readouterr().out
    assert f"from {source}, step 6:" in told
    assert "table items: 30 rows moved, 2 new, 10 dropped" in told
    assert "table users: 19 rows moved, 16 new, 5 dropped" in told

    with monkeypatch.context() as patch:  # killed in the middle of the growth

        def killed(*arguments: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(run, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(source, new_data, tmp_path / "cut", quiet=True, **given)
    short = source_config(source)
    short = dataclasses.replace(short, training=dataclasses.replace(short.training, steps=3))
    finetune(source, new_data, tmp_path / "cut", config=short, quiet=True, **given)
    cut = finetune(source, new_data, tmp_path / "cut", quiet=True, **given)
    chex.assert_trees_all_equal(
        *(parameters(tmp_path / name, new_data, step=6) for name in ("whole", "cut"))
    )
    assert whole["comparison"] == cut["comparison"]
    assert cut["steps"] == 6
    assert json.loads((tmp_path / "cut" / "comparison.json").read_text()) == cut["comparison"] | {
        "interval": list(cut["comparison"]["interval"])
    }
    origin = json.loads((tmp_path / "cut" / "source.json").read_text())
    assert (origin["source"], origin["step"]) == (str(source), 6)
    assert origin["taken"]["tables"]["items"] == {
        **{"moved": 30, "new": 2, "dropped": 10, "unknown": 0}
    }

    # What was measured before training can be measured again: the source is only read.
    kept = tmp_path / "cut" / "before.npy"
    measured = kept.read_bytes()
    for damage in (b"", measured[:-8], None):
        if damage is None:
            kept.unlink()
        else:
            kept.write_bytes(damage)
        again = finetune(source, new_data, tmp_path / "cut", quiet=True, **given)
        assert again["comparison"] == whole["comparison"]
        assert kept.read_bytes() == measured
    assert hashes(source) == before


def test_a_run_does_not_go_on_from_another_source_or_in_another_runs_place(
    source_of: Any, new_data: Dataset, catalogue_of: Any, tmp_path: Path
) -> None:
    source, workdir = source_of("pairs"), tmp_path / "run"
    finetune(source, new_data, workdir, accept_worse=True, quiet=True)
    with pytest.raises(UserError, match="was started with growth=.*Choose another --workdir"):
        finetune(source, new_data, workdir, growth=Growth(new_rows="random"), quiet=True)
    with pytest.raises(UserError, match="was started with step=6, and now step=3"):
        finetune(source, new_data, workdir, step=3, quiet=True)
    with pytest.raises(UserError, match="cannot be its own source"):
        finetune(source, new_data, source, quiet=True)
    train(source_config(source), catalogue_of(), tmp_path / "plain", quiet=True)
    with pytest.raises(UserError, match="holds a run that was not started from another one"):
        finetune(source, catalogue_of(), tmp_path / "plain", quiet=True)


def test_a_grown_run_recommends_as_its_source_and_knows_the_new_items(
    source_of: Any, catalogue_of: Any, new_data: Dataset, tmp_path: Path
) -> None:
    source = source_of("tied", average=0.5)
    report = grow_run(source, new_data, tmp_path / "grown", growth=Growth(new_rows="mean"))
    assert (report.tables["items"].moved, report.tables["items"].new) == (30, 2)
    old = parameters(source, catalogue_of())
    new = parameters(tmp_path / "grown", new_data)
    moved = np.arange(30, 0, -1)  # the new dataset has the first 30 items in the other order
    before, table = old["items"].pop("table"), new["items"].pop("table")
    np.testing.assert_array_equal(table[1:31], before[moved])
    mean = np.broadcast_to(before[1:].mean(axis=0), (2, 8))
    np.testing.assert_allclose(table[31:], mean, atol=1e-7)
    chex.assert_trees_all_equal(new, old)
    with pytest.raises(UserError, match="holds a run already"):
        grow_run(source, new_data, tmp_path / "grown")


def test_the_sources_config_has_its_counts_unset(source_of: Any) -> None:
    model = source_config(source_of("pairs")).model
    assert (model.num_items, model.num_users, model.dim) == (0, 0, 7)


def test_a_model_that_became_worse_is_refused_unless_told(
    source_of: Any, new_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of("pairs")
    measured = iter([np.full(35, 0.5), np.linspace(0.1, 0.3, 35)] * 2)
    monkeypatch.setattr(run, "measure", lambda *arguments: next(measured))
    with pytest.raises(UserError) as caught:
        finetune(source, new_data, tmp_path / "worse", quiet=True)
    said = str(caught.value)
    assert (
        "significantly worse than its source: test ndcg@10 0.5000 before and 0.2000 after" in said
    )
    assert "difference -0.3000 [-0.3" in said and "--accept_worse" in said
    found = json.loads((tmp_path / "worse" / "comparison.json").read_text())
    assert found["is_worse"] and found["num_users"] == 35
    result = finetune(source, new_data, tmp_path / "accepted", accept_worse=True, quiet=True)
    assert result["comparison"]["is_worse"]


@pytest.mark.slow
def test_an_adapter_is_written_whole_from_whatever_mesh(
    source_of: Any, catalogue_of: Any, tmp_path: Path
) -> None:
    source, data = source_of("tied"), catalogue_of()
    config = source_config(source)
    model = LoRA(model=config.model, rank=2, on=("items/table", "*/up/kernel"))
    mesh = MeshConfig(data=1, model=2, tables="row")  # 41 rows, and one that makes halves equal
    config = dataclasses.replace(config, model=model, mesh=mesh)
    finetune(source, data, tmp_path / "new", config=config, accept_worse=True, quiet=True)
    experiment, trunk, _ = load_trained(source, data)
    path = tmp_path / "new" / "adapter.npz"
    _, adapted = load_adapter(path, experiment.config.model, jax.device_get(trunk))
    assert adapted["items"]["table_lora"].shape == (41, 2)
    assert np.abs(adapted["items"]["table_lora"]).max() > 0
    trained = parameters(tmp_path / "new", data)
    assert trained["items"]["table_lora"].shape == (42, 2)
    for name, leaf in flatten(adapted).items():
        np.testing.assert_array_equal(leaf, flatten(trained)[name][: len(leaf)])


def test_models_are_compared_in_pairs_by_hand() -> None:
    random = np.random.default_rng(0)
    old = random.random(400)
    lower = compare("test", old, old - 0.01)  # users differ by far more than the models do
    assert lower.is_worse and lower.interval == pytest.approx((-0.01, -0.01))
    assert not compare("test", old, old + 0.01).is_worse
    noise = random.standard_normal(400)
    same = compare("valid", old, old + 0.1 * (noise - noise.mean()))
    assert not same.is_worse
    assert same.interval[0] == pytest.approx(-1.96 * 0.1 * noise.std() / 20, rel=0.15)


@pytest.fixture
def days(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A dataset of a first day, and files of two later ones; the last has an item of its own."""
    events, _ = synthetic(0, num_users=50, num_items=60, max_events=24)
    first, rest = events.iloc[:700], events.iloc[700:]
    files = [tmp_path / "day2.parquet", tmp_path / "day3.parquet"]
    rest.iloc[::2].to_parquet(files[0])
    rest.iloc[1::2].assign(item_id=lambda frame: frame["item_id"] + 30).to_parquet(files[1])
    prepare(first, tmp_path / "data", **COLUMNS)
    return tmp_path / "data", files


@pytest.mark.slow
def test_replay_trains_on_what_was_appended(
    days: tuple[Path, list[Path]], config_of: Any, tmp_path: Path
) -> None:
    data, files = days
    first = train(config_of("tied", epochs=2, steps=0), data, tmp_path / "a", quiet=True)
    assert append_once(files, data) == files
    assert append_once(files, data) == []
    dataset = open_dataset(data)
    old = pd.read_parquet(tmp_path / "a" / "vocabularies" / "user.parquet")["training_events"]
    result = finetune(tmp_path / "a", data, tmp_path / "b", replay=0.0, accept_worse=True)
    config = load_trained(tmp_path / "b", dataset)[0].config
    assert isinstance(config.data, Replay) and config.data.fraction == 0
    batches = config.data.batches(dataset, 8, 0)
    counts = sum(int(batches.batch(step).where.sum()) for step in range(batches.steps_per_epoch))
    now = np.bincount(dataset.users[dataset.split == 0], minlength=dataset.num_users + 1)[1:]
    was = old.reindex(range(len(now))).fillna(0).to_numpy()
    assert counts == (np.maximum(now, 1) - np.maximum(was, 1)).sum()
    every = config.data.data.batches(dataset, 8, 0).steps_per_epoch
    assert result["epochs"] == 2 and result["steps"] < 2 * every
    # A run that starts from this one looks at its own past, not at that of the first.
    assert not isinstance(source_config(tmp_path / "b").data, Replay)
    assert first["epochs"] == 2


def test_replay_without_a_known_past_is_refused(
    days: tuple[Path, list[Path]], config_of: Any, tmp_path: Path
) -> None:
    data, files = days
    train(config_of("tied", steps=2), data, tmp_path / "a", quiet=True)
    other = prepare(files[0], tmp_path / "other", **COLUMNS)
    with pytest.raises(UserError, match="--replay wants a dataset that was made by appending"):
        finetune(tmp_path / "a", other, tmp_path / "b", replay=0.5, quiet=True)
    with pytest.raises(UserError, match="nothing to train on: no training event is new"):
        finetune(tmp_path / "a", data, tmp_path / "c", replay=0.0, quiet=True)
    with pytest.raises(UserError, match=r"in \[0, 1\]; got 2"):
        finetune(tmp_path / "a", data, tmp_path / "d", replay=2.0, quiet=True)
    (tmp_path / "a" / "vocabularies" / "user.parquet").unlink()
    with pytest.raises(UserError, match="user.parquet does not exist"):
        finetune(tmp_path / "a", data, tmp_path / "e", replay=0.5, quiet=True)
    # The run's own command writes it again, without training.
    before = hashes(tmp_path / "a" / "checkpoints")
    train(config_of("tied", steps=2), data, tmp_path / "a", quiet=True)
    assert hashes(tmp_path / "a" / "checkpoints") == before
    finetune(tmp_path / "a", data, tmp_path / "f", replay=0.5, accept_worse=True, quiet=True)
