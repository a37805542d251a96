"""Artefacts of tiny models, and stores of each kind, with a Redis that tests start and kill."""

import dataclasses
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxrec.data import PairData, SequenceData
from jaxrec.data.dataset import Dataset
from jaxrec.evaluation import EvaluationConfig
from jaxrec.export import Artefact, load_artefact
from jaxrec.export.run import export_run
from jaxrec.models import matrix_factorization
from jaxrec.models import sasrec as sasrec_model
from jaxrec.objectives import BPR, FullSoftmax
from jaxrec.serving.state import State, open_state
from jaxrec.training import Experiment, ExperimentConfig, save_trained

CATEGORIES = ("Comedy", "Drama", "Comedy|Drama")


@pytest.fixture(scope="session")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    """40 users and 60 items; item iN is called "Film N" and has a category and a maker."""
    made: Dataset = random_dataset(0, num_users=40, num_items=60, mean_length=9)
    count = range(1, made.num_items + 1)
    known = made.item_vocabulary.assign(
        title=[f"Film {n}" for n in count],
        category=[CATEGORIES[n % 3] for n in count],
        maker=[f"maker {n % 7}" for n in count],
        released=[1_700_000_000.0 + 86_400 * n for n in count],
    )
    return dataclasses.replace(made, item_vocabulary=known)


@pytest.fixture(scope="session")
def exported(
    dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """Exports "sasrec" or "mf" with random parameters of a seed, once; tests change copies."""
    made: dict[tuple[str, int], Path] = {}

    def export(name: str, seed: int = 0) -> Path:
        if (name, seed) not in made:
            folder = tmp_path_factory.mktemp(f"{name}{seed}")
            model: Any = matrix_factorization.Config(dim=4)
            if name == "sasrec":
                model = sasrec_model.Config(max_len=8, dim=8, num_blocks=1, num_heads=1, hidden=8)
            config = ExperimentConfig(
                data=SequenceData(max_len=8) if name == "sasrec" else PairData(),
                model=model,
                objective=FullSoftmax() if name == "sasrec" else BPR(num_negatives=1),
                evaluation=EvaluationConfig(ks=(10,), item_chunk=32),
            )
            experiment = Experiment.of(config, dataset)
            random = np.random.default_rng(seed)
            params = jax.tree.map(
                lambda leaf: random.normal(0, 0.5, leaf.shape).astype(leaf.dtype),
                experiment.model.shapes,
            )
            save_trained(experiment, params, folder / "run")
            export_run(folder / "run", dataset, folder / "artefact", k=20, measure=False)
            made[name, seed] = folder / "artefact"
        return made[name, seed]

    return export


@pytest.fixture(scope="session")
def sasrec(exported: Callable[[str, int], Path]) -> Artefact:
    return load_artefact(exported("sasrec", 0))


@pytest.fixture(scope="session")
def factorization(exported: Callable[[str, int], Path]) -> Artefact:
    return load_artefact(exported("mf", 0))


class RedisServer:
    """A redis-server of its own on a free port, with each write on the disk before its answer."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
            *("--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always"),
        ]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, "no Redis came up"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def say(self, command: str) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(command.encode() + b"\r\n")
            return connection.recv(4096)

    def _answers(self) -> bool:
        try:
            return self.say("PING").startswith(b"+PONG")
        except OSError:
            return False


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Holds whatever tests put there; one that needs it empty says FLUSHALL."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., State]:
    """Opens the one empty store of the test, as often as it likes."""
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        server.say("FLUSHALL")
        url = server.url
    else:
        url = {"memory": "memory:", "sqlite": f"sqlite:{tmp_path / 'state.db'}"}[request.param]

    def opened(max_events: int = 1000) -> State:
        return open_state(url, max_events=max_events)

    return opened
