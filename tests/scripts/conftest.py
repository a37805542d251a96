"""Fixtures: scripts as real processes, a small dataset, and one trained run to look at."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxrec.data import prepare
from jaxrec.data.synthetic import synthetic
from tests.preloaded import Preloaded, Process

ROOT = Path(__file__).parents[2]

_CONFIG = """
from jaxrec.data import PairData, SequenceData
from jaxrec.evaluation import EvaluationConfig
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import BPR, FullSoftmax, SampledSoftmax, SquaredError
from jaxrec.optim import OptimizerConfig
from jaxrec.training import ExperimentConfig, TrainingConfig

SEQUENCES = SequenceData(max_len=8)
SASREC = sasrec.Config(max_len=8, dim=8, num_blocks=1, num_heads=1, hidden=16)
MF = matrix_factorization.Config(dim=4)


def get_config():
    return ExperimentConfig(
        {parts},
        optimizer=OptimizerConfig(learning_rate=1e-2),
        evaluation=EvaluationConfig(ks=(5, 10), batch_size=64, bootstrap_samples=20, {rating}),
        training=TrainingConfig(
            steps=20, batch_size=8, log_every=4, evaluate_every=10, checkpoint_every=7
        ),
    )
"""
_PARTS = {
    "full": "data=SEQUENCES, model=SASREC, objective=FullSoftmax()",
    "sampled": "data=SEQUENCES, model=SASREC, objective=SampledSoftmax(num_negatives=4)",
    "bpr": "data=PairData(), model=MF, objective=BPR(num_negatives=2)",
    "ratings": "data=PairData(), model=MF, objective=SquaredError(l2=0.01)",
}


@dataclasses.dataclass(frozen=True)
class Scripts:
    """Starts scripts in an environment whose compilations are kept for the session.

    Each script is started as a user does it the first time, and preloaded from then on.
    """

    environment: dict[str, str]
    preloaded: Preloaded
    started: set[str] = dataclasses.field(default_factory=set)

    def start(
        self, name: str, *flags: object, kibibytes: int = 0, **variables: str
    ) -> "subprocess.Popen[str] | Process":
        """Starts a script; no file that it writes may grow beyond `kibibytes`, when above 0."""
        # JAX has read its variables in the process that is preloaded.
        if name in self.started and not any(key.startswith("JAX_") for key in variables):
            arguments = [f"scripts/{name}.py", *map(str, flags)]
            return self.preloaded.start(arguments, kibibytes=kibibytes, variables=variables)
        self.started.add(name)
        limit = ["bash", "-c", f'ulimit -f {kibibytes}; exec "$@"', "bash"] if kibibytes else []
        return subprocess.Popen(
            [*limit, sys.executable, f"scripts/{name}.py", *map(str, flags)],
            cwd=ROOT,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, name: str, *flags: object, kibibytes: int = 0, **variables: str
    ) -> tuple[int, str, str]:
        """Returns exit code, stdout and stderr."""
        with self.start(name, *flags, kibibytes=kibibytes, **variables) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def works(self, name: str, *flags: object, **variables: Any) -> str:
        """Runs a script that must succeed, and returns its stdout."""
        code, out, err = self.run(name, *flags, **variables)
        assert code == 0, err
        return out

    def fails(self, name: str, *flags: object) -> str:
        """Runs a script that must end in one sentence and exit code 1; returns the sentence."""
        return self.fails_after_progress(name, *flags, progress=False)

    def fails_after_progress(
        self, name: str, *flags: object, kibibytes: int = 0, progress: bool = True
    ) -> str:
        """As `fails`, but lines of progress may stand before the sentence."""
        code, _, err = self.run(name, *flags, kibibytes=kibibytes)
        assert code == 1, err
        *before, last = err.splitlines()
        assert last.startswith("error: "), err
        assert all(line.startswith(("step ", "parameters, ", "  ")) for line in before), err
        assert progress or not before, err
        return last


@pytest.fixture(scope="session")
def scripts(compiled: Path) -> Iterator[Scripts]:
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    kept |= {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # What scripts compile is small and runs for a few steps.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    preloaded = Preloaded(kept)
    yield Scripts(kept, preloaded)
    preloaded.close()


@pytest.fixture(scope="session")
def config_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Config files of tiny experiments: full, sampled, bpr and ratings."""
    directory = tmp_path_factory.mktemp("configs")
    for name, parts in _PARTS.items():
        rating = "rmse=True, monitor='rmse'" if name == "ratings" else ""
        text = _CONFIG.replace("{parts}", parts).replace("{rating}", rating)
        (directory / f"{name}.py").write_text(text)
    return {name: directory / f"{name}.py" for name in _PARTS}


@pytest.fixture(scope="session")
def make_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Prepares 60 invented users and 60 items, with titles and ratings; options as `prepare`."""

    def make(seed: int = 0, num_users: int = 60, **options: object) -> Path:
        events, items = synthetic(seed, num_users=num_users, num_items=60, max_events=24)
        path = tmp_path_factory.mktemp("data") / "dataset"
        columns = {"time_column": "timestamp", "label_column": "rating"}
        prepare(events, path, items=items, **(columns | options))  # type: ignore[arg-type]
        return path

    return make


@pytest.fixture(scope="session")
def data(make_data: Callable[..., Path]) -> Path:
    return make_data()


@pytest.fixture(scope="session")
def trained(
    scripts: Scripts,
    config_files: dict[str, Path],
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The workdir of one run. Tests that change it work on a copy."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    flags = (f"--config={config_files['full']}", f"--data={data}", f"--workdir={workdir}")
    scripts.works("train", *flags)
    return workdir
