"""The loop: what it leaves in a workdir, when it stops, and what it costs the device."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxrec.data import Dataset
from jaxrec.evaluation import BlindSpots, Evaluation
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import MeshConfig
from jaxrec.training import (
    Experiment,
    ExperimentConfig,
    TrainState,
    init_state,
    load_trained,
    make_step,
    train,
)
from jaxrec.training.checkpoints import Checkpoints
from jaxrec.training.logs import read_metrics
from jaxrec.typing import Batch, UserError

type ConfigOf = Callable[..., ExperimentConfig]


def test_a_workdir_holds_what_the_contract_says(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    made = {"config.json", "checkpoints", "metrics.jsonl", "tensorboard", "result.json"}
    assert names == made | {"vocabularies", "validated.json"}
    result = json.loads((trained / "result.json").read_text())
    assert {"valid", "test", "throughput", "steps", "epochs", "wall_s"} <= result.keys()
    assert {"ndcg@5", "recall@10"} <= result["valid"].keys() & result["test"].keys()
    assert result["throughput"]["examples_per_s"] > 0
    assert 0 < result["throughput"]["step_ms"] < 1e4
    assert result["steps"] == 20
    assert result["wall_s"] > 0


def test_the_log_has_losses_and_validations_at_their_steps(trained: Path) -> None:
    lines = read_metrics(trained / "metrics.jsonl")
    losses = [line["step"] for line in lines if "train/loss" in line]
    # Every fourth step, and at each checkpoint: every seventh, and every tenth with validation.
    assert losses == [4, 7, 8, 10, 12, 14, 16, 20]
    valid = [line for line in lines if "valid/ndcg@10" in line]
    assert [line["step"] for line in valid] == [10, 20]
    result = json.loads((trained / "result.json").read_text())
    best = max(valid, key=lambda line: line["valid/ndcg@10"])
    assert result["best_step"] == best["step"]
    assert result["valid"]["ndcg@10"] == best["valid/ndcg@10"]


def test_a_poisoned_batch_stops_at_its_step_and_keeps_the_last_good_checkpoint(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path
) -> None:
    assert dataset.labels is not None
    config = config_of("ratings", batch_size=32, log_every=50, checkpoint_every=5)
    wanted = 13
    # The label of one event of the thirteenth batch is not a number.
    labels = np.array(dataset.labels)
    numbers = np.arange(len(labels), dtype=np.float32)
    numbered = dataclasses.replace(dataset, labels=numbers)
    batches = config.data.batches(numbered, 32, config.training.seed)
    labels[int(batches.batch(wanted - 1).labels[0])] = np.nan
    poisoned = dataclasses.replace(dataset, labels=labels)
    with pytest.raises(UserError, match=rf"the loss of step {wanted} is nan\. The checkpoints"):
        train(config, poisoned, tmp_path, quiet=True)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == 10
        leaves = jax.tree.leaves(checkpoints.restore(10))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert not (tmp_path / "result.json").exists()


def test_parameters_that_diverged_in_the_last_update_are_not_saved(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path
) -> None:
    # The update overflows, when the loss of its step is fine: that is measured before it.
    optimizer = OptimizerConfig(learning_rate=3e38, weight_decay=1e3, decay_tables=True)
    config = config_of("ratings", checkpoint_every=1, optimizer=optimizer)
    with pytest.raises(UserError, match="the parameters after step 1 are not finite"):
        train(config, dataset, tmp_path, quiet=True)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == []


class _Course:
    """Stands in for validation: the monitored metric takes these values in turn."""

    def __init__(self, name: str, values: list[float]):
        self.name, self.values = name, iter(values)
        self.seen: list[Any] = []

    def __call__(self, experiment: Experiment, params: Any, split: str, **_: Any) -> Any:
        self.seen.append(jax.device_get(params))
        value = next(self.values, 0.0)
        spots = BlindSpots(
            num_users=1, without_history=0, num_targets=1, masked_targets=0, cold_targets=0
        )
        return Evaluation(
            split=split,
            metrics={self.name: value},
            intervals={},
            blind_spots=spots,
            seconds=0.0,
            per_user=np.zeros(0),
            by_popularity=(),
            by_history=(),
            k=10,
        )


@pytest.mark.grid
@pytest.mark.parametrize(
    ("name", "metric", "values"),
    [
        ("full", "ndcg@10", [0.1, 0.5, 0.3, 0.5, 0.4]),
        # A smaller error is better.
        ("ratings", "rmse", [1.5, 0.5, 0.6, 0.5, 0.9]),
    ],
)
def test_early_stopping_measures_and_keeps_the_best_parameters(
    config_of: ConfigOf,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    metric: str,
    values: list[float],
) -> None:
    course = _Course(metric, values)
    monkeypatch.setattr(Experiment, "evaluate", lambda *a, **k: course(*a, **k))
    config = config_of(
        name, steps=40, evaluate_every=4, checkpoint_every=3, patience=3, keep_last=1
    )
    result = train(config, dataset, tmp_path, quiet=True)
    # Best at the second validation; the three after it are no better.
    assert (result["best_step"], result["steps"]) == (8, 20)
    assert result["epochs"] == pytest.approx(
        20 / config.data.batches(dataset, 8, 0).steps_per_epoch
    )
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [8, 20]
    # Five validations, then valid and test with the parameters of the second.
    assert len(course.seen) == 7
    for measured in course.seen[5:]:
        jax.tree.map(np.testing.assert_array_equal, measured, course.seen[1])
    monkeypatch.undo()
    _, params, step = load_trained(tmp_path, dataset)
    assert step == 8
    jax.tree.map(np.testing.assert_array_equal, params, course.seen[1])
    # Without the best checkpoint, the last one is what is left.
    shutil.rmtree(tmp_path / "checkpoints" / "8")
    assert train(config, dataset, tmp_path, quiet=True)["best_step"] == 20
    assert load_trained(tmp_path, dataset)[2] == 20


def test_a_stopped_run_stays_stopped(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = _Course("ndcg@10", [0.5, 0.1, 0.1, 0.3, 0.4])
    monkeypatch.setattr(Experiment, "evaluate", lambda *a, **k: course(*a, **k))
    config = config_of(steps=40, evaluate_every=4, patience=1)
    first = train(config, dataset, tmp_path, quiet=True)
    again = train(config, dataset, tmp_path, quiet=True)
    assert first["steps"] == again["steps"] == 8
    assert first["best_step"] == again["best_step"] == 4


def test_without_validation_the_last_parameters_count(
    config_of: ConfigOf, make_data: Callable[..., Dataset], tmp_path: Path
) -> None:
    data = make_data(split="random", valid_fraction=0.0, test_fraction=0.2)
    result = train(config_of(patience=2), data, tmp_path, quiet=True)
    assert "valid" not in result and "ndcg@10" in result["test"]
    assert result["best_step"] == result["steps"] == 20
    assert load_trained(tmp_path, data)[2] == 20


def test_a_temporal_split_trains_and_is_measured(
    config_of: ConfigOf, make_data: Callable[..., Dataset], tmp_path: Path
) -> None:
    data = make_data(split="temporal", valid_fraction=0.15, test_fraction=0.15)
    result = train(config_of(steps=4, evaluate_every=4), data, tmp_path, quiet=True)
    assert 0 <= result["valid"]["ndcg@10"] <= 1 and 0 <= result["test"]["ndcg@10"] <= 1


def test_a_dataset_smaller_than_a_batch_trains(
    config_of: ConfigOf, make_data: Callable[..., Dataset], tmp_path: Path
) -> None:
    data = make_data(num_users=3)
    config = config_of(steps=0, epochs=2, batch_size=512, evaluate_every=0)
    result = train(config, data, tmp_path, quiet=True)
    assert (result["steps"], result["epochs"]) == (2, 2)


def test_quiet_changes_no_number(
    config_of: ConfigOf,
    dataset: Dataset,
    trained: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    result = train(config_of(), dataset, tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    # Plain lines, as this is not a terminal.
    assert "\r" not in err
    plan, lines = err.splitlines()[:4], err.splitlines()[4:]
    assert plan[0].startswith("parameters, ") and plan[3].endswith("on each of 1 x 1 devices")
    assert lines[0].startswith("step 1/20  loss ")
    assert all(line.startswith("step ") for line in lines)
    assert any("valid ndcg@10" in line for line in lines)
    quiet = json.loads((trained / "result.json").read_text())
    assert (result["valid"], result["test"]) == (quiet["valid"], quiet["test"])
    train(config_of(steps=24), dataset, tmp_path, quiet=True)
    assert capfd.readouterr() == ("", "")


def test_tensorboard_holds_the_scalars_of_the_log(trained: Path) -> None:
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    scalars: dict[tuple[str, int], float] = {}
    for path in (trained / "tensorboard").iterdir():
        blob, at = path.read_bytes(), 0
        while at < len(blob):
            # A record: length (8 bytes), its checksum (4), the event, its checksum (4).
            size = int.from_bytes(blob[at : at + 8], "little")
            event = event_pb2.Event.FromString(blob[at + 12 : at + 12 + size])
            scalars |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            at += 16 + size
    told = {
        (name.replace("@", "_at_"), line["step"]): value
        for line in read_metrics(trained / "metrics.jsonl")
        for name, value in line.items()
        if name != "step"
    }
    assert told == pytest.approx(scalars, rel=1e-6)


def _prepared(config: ExperimentConfig, dataset: Dataset) -> tuple[Any, Any, Any, list[Batch]]:
    experiment = Experiment.of(config, dataset)
    optimizer = config.optimizer.build(100)
    seed = config.training.seed
    step = make_step(experiment.model, config.objective, optimizer, seed=seed)
    state = jax.device_put(init_state(experiment.model, optimizer, seed))
    statistics = jax.device_put(config.objective.statistics(dataset))
    batches = config.data.batches(dataset, config.training.batch_size, seed)
    return step, state, statistics, [jax.device_put(batches.batch(i)) for i in range(5)]


@pytest.mark.grid
@pytest.mark.parametrize("name", ["full", "sampled"])
def test_a_step_donates_its_state_and_talks_to_no_host(
    config_of: ConfigOf, dataset: Dataset, name: str
) -> None:
    step, state, statistics, batches = _prepared(config_of(name), dataset)
    state, _ = step(state, batches[0], statistics)  # compiles
    for batch in batches[1:]:
        before = jax.tree.leaves(state)
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, batch, statistics)
        assert all(leaf.is_deleted() for leaf in before)
    assert np.isfinite(jax.device_get(metrics.loss))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((batches, statistics)))


class _Compilations(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Compiling "):
            self.names.append(message.split()[1])


def test_the_loop_compiles_each_function_once(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("jax"), "propagate", False)
    handler = _Compilations()
    loggers = [logging.getLogger(n) for n in ("jax._src.interpreters.pxla", "jax._src.dispatch")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with jax.log_compiles():
            train(config_of(steps=50), dataset, tmp_path, quiet=True)
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    steps = [name for name in handler.names if name in ("jit(step)", "step")]
    assert len(steps) == 1, handler.names
    assert handler.names.count("jit(all_finite)") + handler.names.count("all_finite") <= 1


def test_a_checkpoint_is_not_touched_by_the_steps_after_it(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path
) -> None:
    step, state, statistics, batches = _prepared(config_of(), dataset)
    copies = {}
    with Checkpoints(tmp_path, keep_last=10) as checkpoints:
        for number in range(1, 9):
            state, _ = step(state, batches[number % 5], statistics)
            copies[number] = jax.tree.map(np.array, jax.device_get(state))
            # Saving goes on while the buffers that it reads are donated to the next steps.
            checkpoints.save(number, state, {}, best=None)
        checkpoints.wait()
        for number, copy in copies.items():
            restored = checkpoints.restore(number, state)
            jax.tree.map(np.testing.assert_array_equal, restored, copy)


def test_training_on_more_devices_than_there_are_says_so(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"config\.mesh\.data=64 and .* want 64 devices and \d"):
        train(config_of(mesh=MeshConfig(data=64)), dataset, tmp_path, quiet=True)


def test_a_batch_that_does_not_divide_among_the_devices_is_refused(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = jax.sharding.AbstractMesh((3,), ("data",))
    monkeypatch.setattr(MeshConfig, "build", lambda self: mesh)
    with pytest.raises(UserError, match="a batch of 8 rows cannot be split evenly over 3 devices"):
        train(config_of(mesh=MeshConfig(data=3)), dataset, tmp_path / "run", quiet=True)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"2 rows on each of 4 devices.*in 4 equal parts"):
        config = config_of(mesh=MeshConfig(data=4), accumulate=4)
        train(config, dataset, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_training_begins_where_it_is_told_and_is_pulled_back_to_there(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path
) -> None:
    begun: dict[str, Any] = {}

    def start(state: TrainState) -> TrainState:
        params = jax.tree.map(lambda x: x + 0.25, state.params)
        begun.update(jax.device_get(params))
        return dataclasses.replace(state, params=params)

    optimizer = OptimizerConfig(name="sgd", l2_to_start=0.1, layer_decay=0.5, unfreeze_every=1000)
    config = config_of(steps=3, optimizer=optimizer)
    train(config, dataset, tmp_path, start=start, quiet=True)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        saved = checkpoints.restore(3)
    chex.assert_trees_all_equal(saved["optimizer"][0]["start"], begun)
    # The top layer alone has moved.
    params = saved["params"]
    moved = {name for name in begun if not _equal(params[name], begun[name])}
    assert moved == {"output_norm"}


def _equal(one: Any, other: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))
