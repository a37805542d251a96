"""What a run remembers: the clock of its steps, its best checkpoint, and of which metric it is."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data import Dataset, SequenceData, build
from jaxrec.evaluation import EvaluationConfig
from jaxrec.objectives import tasks
from jaxrec.training import Experiment, ExperimentConfig, load_trained, loop, train
from jaxrec.training.checkpoints import Checkpoints
from jaxrec.training.logs import read_metrics
from jaxrec.training.step import make_step
from jaxrec.typing import UserError

type ConfigOf = Callable[..., ExperimentConfig]


def test_the_time_of_steps_is_that_of_the_device_and_not_of_dispatching(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments: dict[str, list[float]] = {"measured": [], "done": []}
    make, evaluate, check = make_step, Experiment.evaluate, loop._Run._check_parameters

    @jax.jit
    def slow(x: jax.Array) -> jax.Array:
        matrix = jnp.full((256, 256), x * 0 + 1e-3)
        return jax.lax.fori_loop(0, 40, lambda _, m: m @ matrix, matrix)[0, 0] * 0

    def slow_step(*args: Any, **options: Any) -> Any:
        step = make(*args, **options)

        def run(state: Any, batch: Any, statistics: Any) -> Any:
            state, metrics = step(state, batch, statistics)
            return state, dataclasses.replace(metrics, loss=metrics.loss + slow(metrics.loss))

        return run

    def measured(*args: Any, **options: Any) -> Any:
        found = evaluate(*args, **options)
        moments["measured"].append(time.monotonic())
        return found

    def done(run: Any) -> None:
        moments["done"].append(time.monotonic())
        check(run)

    monkeypatch.setattr(loop, "make_step", slow_step)
    monkeypatch.setattr(Experiment, "evaluate", measured)
    monkeypatch.setattr(loop._Run, "_check_parameters", done)
    rhythm: dict[str, Any] = {"log_every": 60, "evaluate_every": 60, "checkpoint_every": 60}
    result = train(config_of(steps=120, **rhythm), dataset, tmp_path, quiet=True)
    # The window that compiles is left out, so what is counted is steps 2 to 60 and 61 to 120.
    wall = moments["done"][1] - moments["measured"][0]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    second = next(line for line in lines if line["step"] == 120 and "train/loss" in line)
    assert 60 * 8 / second["train/examples_per_s"] > 0.95 * wall / 8  # examples are loss terms
    record = json.loads((tmp_path / "validated.json").read_text())
    assert record["steps"] == 119
    of_second = record["seconds"] - json_of_first(tmp_path)["seconds"]
    assert of_second == pytest.approx(wall, rel=0.05)
    assert result["throughput"]["step_ms"] == pytest.approx(1e3 * record["seconds"] / 119)


def json_of_first(workdir: Path) -> dict[str, Any]:
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.meta(checkpoints.steps()[0])["record"]


class Killed(BaseException):
    pass


@pytest.mark.grid
@pytest.mark.parametrize("at", [10, 20])
def test_a_run_that_is_killed_in_a_validation_has_saved_and_goes_on_as_if_it_was_not(
    config_of: ConfigOf,
    dataset: Dataset,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    evaluate, calls = Experiment.evaluate, iter(range(10))

    def killed(*args: Any, **options: Any) -> Any:
        if next(calls) == at // 10 - 1:
            raise Killed
        return evaluate(*args, **options)

    monkeypatch.setattr(Experiment, "evaluate", killed)
    with pytest.raises(Killed):
        train(config_of(), dataset, tmp_path, quiet=True)
    monkeypatch.undo()
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == at
    result = train(config_of(), dataset, tmp_path, quiet=True)
    whole = json.loads((trained / "result.json").read_text())
    for name in ("valid", "test", "steps", "best_step", "epochs"):
        assert result[name] == whole[name]
    same = [read_metrics(path / "metrics.jsonl") for path in (tmp_path, trained)]
    timed = "train/examples_per_s"
    for line in (*same[0], *same[1]):
        line.pop(timed, None)
    assert same[0] == same[1]


def values_of(workdir: Path, metric: str) -> dict[int, float]:
    lines = read_metrics(workdir / "metrics.jsonl")
    return {line["step"]: line[f"valid/{metric}"] for line in lines if f"valid/{metric}" in line}


def test_a_run_that_goes_on_with_another_metric_compares_like_with_like(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rhythm: dict[str, Any] = {"evaluate_every": 5, "checkpoint_every": 5, "keep_last": 10}
    by_ndcg = EvaluationConfig(ks=(5, 10), batch_size=64, monitor="ndcg@10")
    by_precision = dataclasses.replace(by_ndcg, monitor="precision@10")
    first = train(config_of(evaluation=by_ndcg, **rhythm), dataset, tmp_path, quiet=True)
    ndcg = values_of(tmp_path, "ndcg@10")
    assert first["best_step"] == max(ndcg, key=lambda step: (ndcg[step], -step))
    config = config_of(evaluation=by_precision, steps=30, **rhythm)
    second = train(config, dataset, tmp_path)
    # NDCG is larger than precision here, so its best would never be beaten.
    precision = values_of(tmp_path, "precision@10")
    assert max(precision.values()) < min(ndcg.values())
    assert second["best_step"] == max(precision, key=lambda step: (precision[step], -step))
    assert "measured again: [5, 10, 15, 20]" in capfd.readouterr().out
    assert load_trained(tmp_path, dataset)[2] == second["best_step"]


def test_the_mask_is_part_of_what_a_value_is_of(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path
) -> None:
    masked = EvaluationConfig(ks=(10,), batch_size=64)
    rhythm: dict[str, Any] = {"evaluate_every": 5, "keep_last": 10}
    train(config_of(evaluation=masked, **rhythm), dataset, tmp_path, quiet=True)
    seen = dataclasses.replace(masked, mask_seen=False)
    result = train(config_of(evaluation=seen, steps=22, **rhythm), dataset, tmp_path, quiet=True)
    record = json.loads((tmp_path / "validated.json").read_text())
    assert record["measure"] == {"monitor": "ndcg@10", "mask_seen": False}
    assert record["best_value"] == result["valid"]["ndcg@10"]


def test_losses_of_steps_are_weighed_by_their_examples(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*args: Any, **options: Any) -> Any:
        step = make_step(*args, **options)

        def run(state: Any, batch: Any, statistics: Any) -> Any:
            state, metrics = step(state, batch, statistics)
            at = int(state.step)
            loss, examples = jnp.float32(at), jnp.float32([3, 1, 4][at - 1])
            return state, dataclasses.replace(metrics, loss=loss, examples=examples)

        return run

    monkeypatch.setattr(loop, "make_step", made)
    train(config_of(steps=3, evaluate_every=3), dataset, tmp_path, quiet=True)
    (line,) = (x for x in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in x)
    assert line["train/loss"] == pytest.approx((1 * 3 + 2 * 1 + 3 * 4) / 8)


def test_a_metric_that_must_be_0_chooses_no_checkpoint(
    config_of: ConfigOf, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import pandas as pd

    # 40 users go through 3 items 3 times: whatever they do next, they did before.
    events = pd.DataFrame(
        [(f"u{u}", f"i{(u + n) % 3}", n) for u in range(40) for n in range(9)],
        columns=["user_id", "item_id", "timestamp"],
    )
    repeats = build(events, time_column="timestamp")
    config = config_of(data=SequenceData(max_len=8), patience=1, steps=20)
    result = train(config, repeats, tmp_path)
    assert (result["steps"], result["best_step"]) == (20, 20)
    assert any("40 of 40 targets were seen before" in text for text in result["notes"]["test"])
    assert "best" not in capfd.readouterr().err
    seen = dataclasses.replace(config.evaluation, mask_seen=False)
    again = dataclasses.replace(config, evaluation=seen)
    assert train(again, repeats, tmp_path / "seen", quiet=True)["notes"]["test"] == []


TASKS = [t for t in vars(tasks).values() if dataclasses.is_dataclass(t) and hasattr(t, "metric")]


@pytest.mark.parametrize("task", TASKS)
def test_each_task_says_whether_more_is_better(task: Any) -> None:
    random = np.random.default_rng(0)
    right = random.integers(0, 2, 200).astype(np.float32)
    good, bad = 4 * right - 2, random.normal(size=200)
    binary = task is tasks.Category
    outputs = [np.stack([-x, x], axis=1) if binary else x[:, None] for x in (good, bad)]
    measure = task().measure
    targets = right.astype(np.int32) if binary else right
    better = measure(outputs[0], targets) > measure(outputs[1], targets)
    if task is tasks.Rating:
        better = measure(right[:, None], targets) > measure(bad[:, None], targets)
    assert task().higher_is_better == better


def test_a_checkpoint_of_an_earlier_version_is_refused(
    config_of: ConfigOf, dataset: Dataset, trained: Path, tmp_path: Path
) -> None:
    from jaxrec.training.record import read_record

    with pytest.raises(UserError, match="earlier version"):
        read_record(tmp_path, 10, {"course": {}})


def test_a_run_that_begins_again_believes_no_validation_of_the_one_before(
    config_of: ConfigOf, dataset: Dataset, trained: Path, tmp_path: Path
) -> None:
    stale = json.loads((trained / "validated.json").read_text())
    assert stale["validated"] == 20
    # The checkpoints were removed by hand; the same step comes again, of another run.
    (tmp_path / "validated.json").write_text(json.dumps(stale | {"best_step": 10, "validated": 4}))
    train(config_of(steps=4, evaluate_every=4), dataset, tmp_path, quiet=True)
    assert json.loads((tmp_path / "validated.json").read_text())["best_step"] == 4
    assert load_trained(tmp_path, dataset)[2] == 4
