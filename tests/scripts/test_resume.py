"""Runs that are cut off and go on: killed, stopped, out of disk, with damaged or foreign files."""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxrec.training.checkpoints import Checkpoints

# Most of the time goes into saving, so that kills fall into it.
BUSY = ("--config.training.checkpoint_every=2", "--config.training.patience=9")
AVERAGED = ("--config.training.average=0.9", *BUSY)


def state_of(workdir: Path, step: int | None = None) -> dict[str, Any]:
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return dict(checkpoints.restore(step or checkpoints.steps()[-1]))


def told(workdir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("examples_per_s")} for line in lines]


def result_of(workdir: Path) -> dict[str, Any]:
    result = json.loads((workdir / "result.json").read_text())
    return {key: result[key] for key in ("valid", "test", "steps", "best_step", "epochs")}


def assert_equal_runs(one: Path, other: Path) -> None:
    first, second = state_of(one), state_of(other)
    chex.assert_trees_all_equal_structs(first, second)
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


def run_with_kills(scripts: Any, flags: list[str], workdir: Path, kills: int) -> int:
    """Trains, killing each process early, every other one in the middle of a save.

    Returns how many were killed before they ended by themselves.
    """
    chance, landed = random.Random(0), 0
    for attempt in range(kills):
        lines = len(told(workdir)) if (workdir / "metrics.jsonl").exists() else 0
        until = lines + chance.randrange(1, 4)

        def has_told(until: int = until) -> bool:
            path = workdir / "metrics.jsonl"
            return path.exists() and path.read_text().count("\n") >= until

        process = scripts.start("train", *flags, f"--workdir={workdir}")
        if attempt % 2 == 0:
            landed += kill_at(process, lambda: has_told() and is_saving(workdir))
        else:
            landed += kill_at(process, has_told)
    scripts.works("train", *flags, f"--workdir={workdir}")
    return landed


@pytest.mark.parametrize(
    ("name", "extra", "steps", "kills"),
    [
        ("full", AVERAGED, 30, 1),
        pytest.param("sampled", BUSY, 30, 2, marks=pytest.mark.slow),
        pytest.param("full", AVERAGED, 200, 12, marks=pytest.mark.slow),
        pytest.param("sampled", BUSY, 200, 12, marks=pytest.mark.slow),
        pytest.param("bpr", BUSY, 200, 12, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_bit_for_bit_as_one_that_never_was(
    scripts: Any,
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
    assert landed >= (kills + 1) // 2
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    assert not is_saving(tmp_path / "killed")


def test_sigterm_saves_and_the_same_command_goes_on(
    scripts: Any, config_files: dict[str, Path], data: Path, tmp_path: Path
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


def test_a_full_disk_ends_in_one_sentence_and_the_run_can_go_on(
    scripts: Any, config_files: dict[str, Path], data: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    flags = [f"--config={config_files['full']}", f"--data={data}", f"--workdir={workdir}"]
    flags.append("--config.training.steps=40")
    # Enough for the logs, and too little for the largest file of a checkpoint.
    said = scripts.fails_after_progress("train", *flags, kibibytes=7)
    assert "could not save a checkpoint" in said
    assert "File too large" in said
    assert "the same command goes on" in said
    assert not (workdir / "result.json").exists()
    jax.tree.map(np.testing.assert_array_equal, state_of(workdir), state_of(trained))
    assert "going on from step 20 of 40" in scripts.works("train", *flags)
    assert not is_saving(workdir)


def test_a_diverging_loss_ends_in_one_sentence(
    scripts: Any, config_files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    flags = [f"--config={config_files['ratings']}", f"--data={data}"]
    flags += [f"--workdir={tmp_path / 'run'}", "--config.optimizer.learning_rate=1e30"]
    said = scripts.fails_after_progress("train", *flags)
    assert "the loss of step 2 is inf" in said
    assert "config.optimizer.learning_rate" in said
    assert not (tmp_path / "run" / "result.json").exists()
