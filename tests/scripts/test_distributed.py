"""Several processes on one machine, as real processes that talk over loopback."""

import dataclasses
import json
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import chex
import pytest

from jaxrec.data import prepare
from jaxrec.data.synthetic import synthetic
from jaxrec.training.checkpoints import Checkpoints

STEPS = ("--config.training.steps=40", "--config.training.evaluate_every=40")
OFTEN = ("--config.training.checkpoint_every=4", "--config.training.log_every=2")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclasses.dataclass(frozen=True)
class Pair:
    """Starts two processes of one run."""

    scripts: Any
    flags: tuple[str, ...]
    script: str = "train"

    def start(self, workdir: Path, *more: str) -> list[subprocess.Popen[str]]:
        meeting = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2")
        flags = (*self.flags, f"--workdir={workdir}", "--config.mesh.data=0", *meeting, *more)
        return [self.scripts.start(self.script, *flags, f"--process_id={i}") for i in range(2)]

    def finish(self, processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
        """Returns exit codes and what was written to stderr."""
        ends = [process.communicate(timeout=180) for process in processes]
        return [(p.returncode, end[1]) for p, end in zip(processes, ends, strict=True)]


@pytest.fixture
def pair(scripts: Any, config_files: dict[str, Path], data: Path) -> Pair:
    # Adam would make noise of what has no gradient, such as the bias of keys.
    optimizer = ("--config.optimizer.name=adagrad", "--config.optimizer.learning_rate=0.05")
    flags = (f"--config={config_files['sampled']}", f"--data={data}", *STEPS, *OFTEN, *optimizer)
    return Pair(scripts, flags)


def result_of(workdir: Path) -> dict[str, Any]:
    result = json.loads((workdir / "result.json").read_text())
    return {key: result[key] for key in ("valid", "test", "steps", "best_step", "epochs")}


def parameters_of(workdir: Path) -> Any:
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(checkpoints.steps()[-1])["params"]


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def saved(workdir: Path) -> bool:
    steps = workdir / "checkpoints"
    return steps.is_dir() and any(entry.name.isdigit() for entry in steps.iterdir())


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_end_as_one_process_does(
    pair: Pair, scripts: Any, tmp_path: Path
) -> None:
    # The same mesh in one process: then sums have the same order, and every bit is the same.
    two_devices = "--xla_force_host_platform_device_count=2"
    scripts.works(
        *("train", *pair.flags, f"--workdir={tmp_path / 'alone'}", "--config.mesh.data=0"),
        XLA_FLAGS=two_devices,
    )
    processes = pair.start(tmp_path / "pair")
    wait_for(lambda: saved(tmp_path / "pair"), processes[1])
    processes[1].kill()
    since = time.monotonic()
    ends = pair.finish(processes)
    assert time.monotonic() - since < 60
    code, said = ends[0]
    assert code == 1, said
    assert "error: another process of the run has gone" in said.splitlines()[-1]
    assert not (tmp_path / "pair" / "result.json").exists()
    for code, said in pair.finish(pair.start(tmp_path / "pair")):
        assert code == 0, said
    assert result_of(tmp_path / "pair") == result_of(tmp_path / "alone")
    chex.assert_trees_all_equal(parameters_of(tmp_path / "pair"), parameters_of(tmp_path / "alone"))
    # One log, written by the first process, and nothing told twice.
    lines = (tmp_path / "pair" / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line)["step"] for line in lines if "train/loss" in line]
    assert told == list(range(2, 41, 2))


def test_sigterm_to_one_leads_all_to_one_checkpoint(pair: Pair, tmp_path: Path) -> None:
    processes = pair.start(tmp_path, "--config.training.steps=4000")
    wait_for(lambda: saved(tmp_path), processes[1])
    processes[1].send_signal(signal.SIGTERM)
    said = set()
    for code, err in pair.finish(processes):
        assert code == 143, err
        said.add(err.splitlines()[-1])
    (sentence,) = said
    assert sentence.startswith("stopped at step "), sentence
    step = int(sentence.split()[3].replace(",", ""))
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == step


@pytest.mark.slow
@pytest.mark.parametrize("tables", ["replicated", "row"])
def test_two_processes_grow_a_run_as_one_process_does(
    pair: Pair, scripts: Any, tmp_path: Path, tables: str
) -> None:
    events, _ = synthetic(0, num_users=60, num_items=60, max_events=24)
    events.iloc[900:].to_parquet(tmp_path / "day2.parquet")
    columns: Any = {"time_column": "timestamp", "label_column": "rating"}
    prepare(events.iloc[:900], tmp_path / "data", **columns)
    shutil.copytree(tmp_path / "data", tmp_path / "data_of_pair")
    source = tmp_path / "source"
    scripts.works(
        *("train", *pair.flags, f"--data={tmp_path / 'data'}", f"--workdir={source}", "--quiet")
    )
    adapters = ("--lora_rank=2", "--lora_on=*/kernel,items/table")
    mesh = ("--config.mesh.model=2", f"--config.mesh.tables={tables}", "--config.mesh.data=0")
    flags = (f"--source={source}", f"--append={tmp_path / 'day2.parquet'}", *STEPS, *OFTEN, *mesh)
    flags = (*flags, "--accept_worse", "--replay=0.5", *(adapters if tables == "row" else ()))
    one, two = tmp_path / "alone", tmp_path / "pair"
    scripts.works(
        *("finetune", *flags, f"--data={tmp_path / 'data'}", f"--workdir={one}"),
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    grown = Pair(scripts, (*flags, f"--data={tmp_path / 'data_of_pair'}"), "finetune")
    for code, said in grown.finish(grown.start(two)):
        assert code == 0, said
    assert result_of(two) == result_of(one)
    chex.assert_trees_all_equal(parameters_of(two), parameters_of(one))
    assert (two / "before.npy").read_bytes() == (one / "before.npy").read_bytes()
    assert (two / "comparison.json").read_text() == (one / "comparison.json").read_text()
    taken = [json.loads((path / "source.json").read_text())["taken"] for path in (one, two)]
    assert taken[0] == taken[1] and taken[0]["tables"]["items"]["moved"] > 0
    if tables == "row":
        assert (two / "adapter.npz").read_bytes() == (one / "adapter.npz").read_bytes()
    # All of them measure the source again when what was measured is gone.
    (two / "before.npy").unlink()
    for code, said in grown.finish(grown.start(two)):
        assert code == 0, said
    assert (two / "before.npy").read_bytes() == (one / "before.npy").read_bytes()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--num_processes=2",), "all three"),
        (("--coordinator=here", "--num_processes=2", "--process_id=0"), "HOST:PORT"),
        (("--coordinator=a:1", "--num_processes=2", "--process_id=2"), "from 0 to 1"),
        (("--distributed",), "no cluster was found"),
    ],
)
def test_processes_that_are_described_wrongly_are_refused(
    pair: Pair, scripts: Any, tmp_path: Path, flags: tuple[str, ...], sentence: str
) -> None:
    assert sentence in scripts.fails("train", *pair.flags, f"--workdir={tmp_path}", *flags)


@pytest.mark.slow
def test_a_process_that_never_comes_is_told_within_a_minute(
    pair: Pair, scripts: Any, tmp_path: Path
) -> None:
    meeting = ("--coordinator=127.0.0.1:{}", "--num_processes=2")
    since = time.monotonic()
    waiting = [
        scripts.start(
            *("train", *pair.flags, f"--workdir={tmp_path}", f"--process_id={i}"),
            *(flag.format(free_port()) for flag in meeting),
        )
        for i in range(2)
    ]
    for code, said in pair.finish(waiting):
        assert code == 1
        assert said.splitlines()[-1].startswith("error: the processes did not meet at 127.0.0.1:")
    assert time.monotonic() - since < 90  # a minute, and the start of Python on a busy machine
