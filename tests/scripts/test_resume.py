"""Runs that are cut off and go on: killed, stopped, out of disk, with damaged or foreign files."""

import json
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxrec.training.checkpoints import Checkpoints

from .conftest import Scripts, one_sentence

# Most of the time goes into saving, so that kills fall into it.
BUSY = ("--config.training.checkpoint_every=2", "--config.training.patience=9")
AVERAGED = ("--config.training.average=0.9", *BUSY)


def state_of(workdir: Path, step: int | None = None) -> dict[str, Any]:
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return dict(checkpoints.restore_raw(step or checkpoints.steps()[-1]))


def told(workdir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("examples_per_s")} for line in lines]


def result_of(workdir: Path) -> dict[str, Any]:
    result = json.loads((workdir / "result.json").read_text())
    return {key: result[key] for key in ("valid", "test", "steps", "best_step", "epochs")}


def assert_equal_runs(one: Path, other: Path) -> None:
    first, second = state_of(one), state_of(other)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert told(one) == told(other)
    assert result_of(one) == result_of(other)


def is_saving(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def kill_at(process: subprocess.Popen[str], ready: Callable[[], bool]) -> bool:
    """Kills a process once `ready`; returns False when it ended before."""
    while not ready():
        if process.poll() is not None:
            process.communicate()
            return False
        time.sleep(0.0005)
    process.kill()
    process.communicate()
    return True


def run_with_kills(scripts: Scripts, flags: list[str], workdir: Path, kills: int) -> int:
    """Trains, killing each process early; at least every other one in the middle of a save."""
    chance, landed = random.Random(0), 0
    for attempt in range(kills):
        lines = len(told(workdir)) if (workdir / "metrics.jsonl").exists() else 0
        until = lines + chance.randrange(1, 4)

        def has_told(until: int = until) -> bool:
            path = workdir / "metrics.jsonl"
            return path.exists() and path.read_text().count("\n") >= until

        process = scripts.start("train", *flags, f"--workdir={workdir}")
        if attempt % 2:
            landed += kill_at(process, lambda: has_told() and is_saving(workdir))
        else:
            landed += kill_at(process, has_told)
    scripts.works("train", *flags, f"--workdir={workdir}")
    return landed


@pytest.mark.parametrize(
    ("name", "extra", "steps", "kills"),
    [
        ("full", AVERAGED, 30, 2),
        ("sampled", BUSY, 30, 2),
        pytest.param("full", AVERAGED, 200, 12, marks=pytest.mark.slow),
        pytest.param("sampled", BUSY, 200, 12, marks=pytest.mark.slow),
        pytest.param("bpr", BUSY, 200, 12, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_bit_for_bit_as_one_that_never_was(
    scripts: Scripts,
    config_files: dict[str, Path],
    data: Path,
    tmp_path: Path,
    name: str,
    extra: tuple[str, ...],
    steps: int,
    kills: int,
) -> None:
    flags = [f"--config={config_files[name]}", f"--data={data}", *extra]
    flags.append(f"--config.training.steps={steps}")
    scripts.works("train", *flags, f"--workdir={tmp_path / 'whole'}")
    landed = run_with_kills(scripts, flags, tmp_path / "killed", kills)
    assert landed >= kills // 2
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    assert not is_saving(tmp_path / "killed")


def test_sigterm_saves_and_the_same_command_goes_on(
    scripts: Scripts, config_files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    flags = [f"--config={config_files['full']}", f"--data={data}"]
    flags += ["--config.training.steps=150", "--config.training.log_every=25"]
    flags += ["--config.training.checkpoint_every=1000", "--config.training.evaluate_every=50"]
    scripts.works("train", *flags, f"--workdir={tmp_path / 'whole'}")
    log = tmp_path / "stopped" / "metrics.jsonl"
    with scripts.start("train", *flags, f"--workdir={log.parent}", "--quiet") as process:
        while not (log.exists() and log.read_text()):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert out == ""
    assert err.startswith("stopped at step ")
    assert err.count("\n") == 1
    assert not (log.parent / "result.json").exists()
    stopped = int(err.split()[3])
    assert 25 <= stopped < 150
    out = scripts.works("train", *flags, f"--workdir={log.parent}")
    assert f"going on from step {stopped} of 150" in out
    assert_equal_runs(tmp_path / "whole", log.parent)


def test_a_finished_run_is_not_trained_again_but_may_be_made_longer(
    scripts: Scripts, config_files: dict[str, Path], data: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    flags = [f"--config={config_files['full']}", f"--data={data}", f"--workdir={workdir}"]
    before = told(workdir)
    scripts.works("train", *flags)
    assert result_of(workdir) == result_of(trained)
    assert told(workdir) == before
    scripts.works("train", *flags, "--config.training.steps=0", "--config.training.epochs=3")
    assert result_of(workdir)["epochs"] == 3
    assert told(workdir)[: len(before)] == before
    assert result_of(workdir)["steps"] > 20


def test_a_run_of_another_config_is_refused_and_left_as_it_was(
    scripts: Scripts, config_files: dict[str, Path], data: Path, trained: Path
) -> None:
    def refused(name: str, *flags: str) -> str:
        chosen = (f"--config={config_files[name]}", f"--data={data}", f"--workdir={trained}")
        return scripts.fails("train", *chosen, *flags)

    before = {path: path.read_bytes() for path in trained.glob("*.json*")}
    said = refused("full", "--config.model.dim=16")
    assert "config.model.dim=8" in said and "16" in said
    said = refused("sampled")
    assert "config.objective" in said and "FullSoftmax" in said and "SampledSoftmax" in said
    said = refused("bpr")
    assert "config.model.type" in said and "MatrixFactorization" not in said or "sasrec" in said
    said = refused("full", "--config.training.seed=5")
    assert "config.training.seed=0" in said
    assert before == {path: path.read_bytes() for path in trained.glob("*.json*")}


def test_another_or_a_changed_dataset_is_refused(
    scripts: Scripts,
    config_files: dict[str, Path],
    data: Path,
    make_data: Callable[..., Path],
    trained: Path,
) -> None:
    flags = (f"--config={config_files['full']}", f"--workdir={trained}")
    fewer_users = make_data(num_users=50)
    said = scripts.fails("train", *flags, f"--data={fewer_users}")
    assert "user vocabulary" in said
    changed = make_data(split="random")
    said = scripts.fails("train", *flags, f"--data={changed}")
    assert "the dataset has changed" in said
    # A refused dataset has not become that of the run.
    assert json.loads((trained / "run.json").read_text()) == {"data": str(data)}
    said = scripts.fails("evaluate", f"--workdir={trained}", f"--data={fewer_users}")
    assert "user vocabulary" in said
    assert "user vocabulary" in scripts.fails(
        "recommend", f"--workdir={trained}", f"--data={fewer_users}", "--user=1"
    )


def test_a_diverging_loss_stops_at_its_step_and_keeps_the_last_good_checkpoint(
    scripts: Scripts, config_files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    flags = [f"--config={config_files['full']}", f"--data={data}", f"--workdir={tmp_path / 'run'}"]
    flags += ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e30"]
    # Steps of warm-up make the first two harmless.
    flags += ["--config.optimizer.warmup_steps=15", "--config.training.checkpoint_every=1"]
    said = scripts.fails("train", *flags)
    assert "step 3" in said or "step 2" in said
    assert "learning_rate" in said
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        steps = checkpoints.steps()
        assert steps
        leaves = jax.tree.leaves(checkpoints.restore_raw(steps[-1])["params"])
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert f"step {steps[-1] + 1} " in said
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_full_disk_ends_in_one_sentence_and_the_run_can_go_on(
    scripts: Scripts, config_files: dict[str, Path], data: Path, trained: Path, tmp_path: Path
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    workdir = shutil.copytree(trained, tmp_path / "run")
    flags = [f"--config={config_files['full']}", f"--data={data}", f"--workdir={workdir}"]
    flags.append("--config.training.steps=40")
    code, _, err = scripts.run("train", *flags, limit=limit)
    said = one_sentence(code, err)
    assert "again" in said or "goes on" in said
    assert not (workdir / "result.json").exists()
    np.testing.assert_equal(state_of(workdir, 20), state_of(trained, 20))
    scripts.works("train", *flags)
    scripts.works("train", *flags[:2], f"--workdir={tmp_path / 'whole'}", flags[-1])
    assert_equal_runs(tmp_path / "whole", workdir)


def largest_file(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_truncated_checkpoint_is_named_and_removing_it_falls_back(
    scripts: Scripts, config_files: dict[str, Path], data: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    flags = [f"--config={config_files['full']}", f"--data={data}", f"--workdir={workdir}"]
    flags.append("--config.training.steps=24")
    newest = workdir / "checkpoints" / "20"
    victim = largest_file(newest / "state")
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    for name, chosen in (("train", flags), ("evaluate", [f"--workdir={workdir}", "--step=20"])):
        said = scripts.fails(name, *chosen)
        assert "checkpoint of step 20 is damaged" in said
        assert f"Remove {newest} to fall back to step 14" in said
    shutil.rmtree(newest)
    assert "going on from step 14 of 24" in scripts.works("train", *flags)


def test_a_checkpoint_cut_off_before_its_description_is_named(
    scripts: Scripts, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    meta = workdir / "checkpoints" / "20" / "meta" / "metadata"
    meta.write_text(meta.read_text()[:100])
    assert "step 20 is damaged" in scripts.fails("evaluate", f"--workdir={workdir}")


def test_a_metrics_log_cut_short_by_a_kill_is_mended(
    scripts: Scripts, config_files: dict[str, Path], data: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    log = workdir / "metrics.jsonl"
    whole = told(workdir)
    log.write_text(log.read_text() + '{"step": 22, "train/lo')
    scripts.works("train", f"--config={config_files['full']}", f"--data={data}", f"--workdir={workdir}")
    assert told(workdir) == whole


def test_evaluating_a_run_at_work_leaves_its_unfinished_save_alone(
    scripts: Scripts, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    unfinished = workdir / "checkpoints" / "27.orbax-checkpoint-tmp"
    unfinished.mkdir()
    scripts.works("evaluate", f"--workdir={workdir}", "--nobaselines")
    assert unfinished.exists()
