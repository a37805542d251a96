"""Artefacts of tiny models, stores of each kind, and servers and a Redis that tests kill."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
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

ROOT = Path(__file__).parents[2]
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
    rows = {"user": np.arange(made.num_users + 1) > 0, "item": np.arange(made.num_items + 1) > 0}
    return dataclasses.replace(made, item_vocabulary=known, trained_rows=rows)


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


class Serving:
    """scripts/serve.py as a process of its own, which has told that it is ready.

    Attributes:
      url: where it listens.
      port: of it.
      process: the process.
    """

    def __init__(self, folder: Path, flags: tuple[str, ...], programs: Path) -> None:
        self.said = folder / "said.txt"
        self.complained = folder / "complained.txt"
        common = ("--port=0", "--reload_every=0.1", f"--compile_cache={programs}")
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": "",
        }
        with open(self.said, "ab") as out, open(self.complained, "ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, "scripts/serve.py", *common, *flags],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=err,
            )
        deadline = time.monotonic() + 120
        while "ready in" not in self.said.read_text():
            assert self.process.poll() is None, self.complained.read_text()
            assert time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.02)
        self.url = self.said.read_text().split("ready in")[-1].split()[2]
        self.port = int(self.url.rpartition(":")[2])

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, **{"timeout": 30, **options})

    def connect(self, timeout: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def stop(self) -> int:
        """Ends it with SIGTERM, and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def complaints(self) -> str:
        """What it wrote to stderr."""
        return self.complained.read_text()


class Servers:
    """Starts servers, all of which are ended when a test is over."""

    def __init__(self, programs: Path, folder: Callable[[], Path]) -> None:
        self._programs, self._folder = programs, folder
        self.all: list[Serving] = []

    def __call__(self, *flags: object, folder: Path | None = None) -> Serving:
        texts = tuple(str(flag) for flag in flags)
        if not any(text.startswith("--state") for text in texts):
            texts += ("--state=memory:",)
        serving = Serving(folder or self._folder(), texts, self._programs)
        self.all.append(serving)
        return serving

    def end(self) -> None:
        """Kills what runs. What a server wrote must be no defect of it."""
        for serving in self.all:
            serving.kill()
        for serving in self.all:
            assert "Traceback" not in serving.complaints(), serving.complaints()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of compiled programs, so that one start of the session is slow."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="session")
def start_for_session(
    programs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    servers = Servers(programs, lambda: tmp_path_factory.mktemp("server"))
    yield servers
    servers.end()


@pytest.fixture
def start(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Starts servers for one test."""
    servers = Servers(programs, lambda: tmp_path_factory.mktemp("server"))
    yield servers
    servers.end()
