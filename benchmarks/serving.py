"""The server against a plain FastAPI and ONNX Runtime server, under constant arrivals.

python benchmarks/serving.py [--artifact=DIR --data=DIR]

Each server runs alone, with the load generator beside it on the same cores. Requests are due at
fixed times and their latency counts from then. Printed, as JSON lines:

serving_rate     the highest rate at which the 99th percentile stays under --p99 and every request
                 is answered, for this server and for the plain one in its best form (session in
                 the event loop of one process or two, or in threads): medians of --repeats, and
                 their ratio
serving_latency  percentiles of both at half and at nine tenths of the plain one's highest rate
serving_memory   resident memory while 100,000 requests are answered
serving_start    seconds from the command to the first answer, without and with compiled programs
                 on disk

Without --artifact an untrained model of the size of configs/sasrec_beauty.py is made on invented
data; what is measured does not depend on the parameters.
"""

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _load import measure
from _report import emit
from absl import app, flags

from jaxrec.data.dataset import open_dataset

flags.DEFINE_string("artifact", None, "Artefact with the formats stablehlo and onnx; with --data.")
flags.DEFINE_string("data", None, "The dataset whose histories are asked for.")
flags.DEFINE_float("p99", 50.0, "Milliseconds that the 99th percentile may take.")
flags.DEFINE_integer("repeats", 3, "How often the highest rate is looked for.")
flags.DEFINE_float("seconds", 5.0, "How long each rate is tried.")
flags.DEFINE_integer("requests", 100_000, "How many requests to watch the memory for.")

FLAGS = flags.FLAGS

ROOT = Path(__file__).parents[1]
PATH = "/v1/recommend"
OURS = "jaxrec"
PLAIN = ("async, 1 threads", "processes, 1 threads", "threads, 1 threads", "threads, 2 threads")


class Server:
    """A server process on a port of its own."""

    def __init__(self, command: list[str], body: str) -> None:
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise SystemExit(f"{' '.join(command)} did not start")
        self.ask(body)
        self.start_s = time.perf_counter() - began

    def ask(self, body: str) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{PATH}",
            body.encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            response.read()

    def resident_mib(self) -> float:
        text = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@contextlib.contextmanager
def running(kind: str, artefact: Path, cache: Path, body: str) -> Iterator[Server]:
    """Runs a server of a kind: `OURS`, or one of `PLAIN`."""
    command = [sys.executable, str(ROOT / "scripts/serve.py"), f"--artifact={artefact}"]
    command += ["--port=0", "--state=memory:", "--drain=0", f"--compile_cache={cache}"]
    if kind != OURS:
        words = kind.replace(",", "").split()
        command = [sys.executable, str(ROOT / "benchmarks/_onnx_server.py"), str(artefact)]
        command += words[:2]
    server = Server(command, body)
    try:
        yield server
    finally:
        server.stop()


def highest_rate(server: Server, bodies: list[str], start: float = 400.0) -> float:
    """Returns the highest rate that is held, to 5%. A rate that fails is tried once more."""

    def held(rate: float) -> bool:
        for _ in range(2):
            got = measure(server.port, PATH, bodies, rate=rate, seconds=FLAGS.seconds)
            if got["p99"] < FLAGS.p99 and got["statuses"] == {"200": got["sent"]}:
                return True
        return False

    low, high = 0.0, start
    while not held(high) and high > 10:
        high /= 1.4
    while held(high):
        low, high = high, 1.4 * high
    while low and high > 1.05 * low:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if held(middle) else (low, middle)
    return low


def compare_rates(artefact: Path, bodies: list[str], cache: Path) -> tuple[str, float]:
    """Looks for the servers' highest rates in turn; returns the best plain one and its rate.

    All plain ones take part in the first turn, and the best two of them in the others.
    """
    rates: dict[str, list[float]] = {kind: [] for kind in (OURS, *PLAIN)}
    turn = list(rates)
    for _ in range(FLAGS.repeats):
        for kind in turn:
            with running(kind, artefact, cache, bodies[0]) as server:
                measure(server.port, PATH, bodies, rate=100, seconds=2)
                rates[kind].append(highest_rate(server, bodies))
                print(f"{kind}: {rates[kind][-1]:.0f}/s", file=sys.stderr)
        order = sorted(PLAIN, key=lambda kind: -statistics.median(rates[kind]))
        best, turn = order[0], [OURS, *order[:2]]
    medians = {kind: statistics.median(found) for kind, found in rates.items()}
    figures = {
        "requests_per_s": medians[OURS],
        "plain_requests_per_s": medians[best],
        "ratio": medians[OURS] / medians[best],
        "p99_ms_under": FLAGS.p99,
        "plain": best,
        "all": {kind: [round(rate) for rate in found] for kind, found in rates.items()},
    }
    emit("serving_rate", figures)
    return best, medians[best]


def compare_latencies(
    artefact: Path, bodies: list[str], cache: Path, plain: str, rate: float
) -> None:
    """Prints percentiles of both at two rates that both can hold."""
    for share in (0.5, 0.9):
        figures: dict[str, Any] = {"requests_per_s": share * rate}
        for kind, name in ((OURS, "jaxrec"), (plain, "plain")):
            with running(kind, artefact, cache, bodies[0]) as server:
                measure(server.port, PATH, bodies, rate=100, seconds=2)
                got = measure(
                    server.port, PATH, bodies, rate=share * rate, seconds=2 * FLAGS.seconds
                )
            figures |= {f"{name}_{key}_ms": got[key] for key in ("p50", "p95", "p99", "max")}
        emit("serving_latency", figures)


def watch_memory(artefact: Path, bodies: list[str], cache: Path, rate: float) -> None:
    """Prints resident memory after each tenth of many requests."""
    with running(OURS, artefact, cache, bodies[0]) as server:
        measure(server.port, PATH, bodies, rate=rate, seconds=3000 / rate)
        seen, parts = [server.resident_mib()], 10
        for _ in range(parts):
            seconds = FLAGS.requests / parts / rate
            got = measure(server.port, PATH, bodies, rate=rate, seconds=seconds)
            assert got["statuses"].keys() == {"200"}, got
            seen.append(server.resident_mib())
    figures = {"requests": FLAGS.requests, "requests_per_s": rate}
    grown = {"first_mib": seen[0], "last_mib": seen[-1], "all_mib": [round(x, 1) for x in seen]}
    emit("serving_memory", {**figures, **grown})


def time_starts(artefact: Path, folder: Path, body: str) -> None:
    """Prints how long a start takes without and with compiled programs on disk."""
    times = []
    for _ in range(2):
        with running(OURS, artefact, folder, body) as server:
            times.append(server.start_s)
    emit("serving_start", {"first_s": times[0], "again_s": times[1]})


def make_artefact(folder: Path) -> tuple[Path, Path]:
    """Makes an untrained model of the size of the Beauty one; returns artefact and dataset."""
    from jaxrec.data import prepare
    from jaxrec.data.synthetic import synthetic

    events, items = synthetic(num_users=4000, num_items=12_101, min_events=5, max_events=30, seed=0)
    prepare(events, folder / "data", items=items, time_column="timestamp")
    commands = [
        ["train.py", "--config=configs/sasrec_beauty.py", f"--data={folder / 'data'}"]
        + [
            f"--workdir={folder / 'run'}",
            "--config.training.steps=1",
            "--config.training.epochs=0",
        ],
        ["export.py", f"--workdir={folder / 'run'}", f"--output={folder / 'artefact'}"]
        + ["--format=stablehlo,onnx", "--nomeasure"],
    ]
    for command in commands:
        script = [sys.executable, str(ROOT / "scripts" / command[0]), *command[1:]]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return folder / "artefact", folder / "data"


def bodies_of(data: Path, count: int = 4000) -> list[str]:
    """Returns requests for users drawn from a dataset: all but the last event of each."""
    dataset = open_dataset(data)
    ids = dataset.item_vocabulary["id"].tolist()
    random = np.random.default_rng(0)
    users = random.permutation(dataset.num_users)[:count] + 1
    histories = (dataset.items[slice(*dataset.offsets[[user, user + 1]])] for user in users)
    return [
        json.dumps({"history": [ids[item - 1] for item in history[:-1]], "k": 10})
        for history in histories
        if len(history) > 1
    ]


def main(argv: list[str]) -> None:
    """Runs all parts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if FLAGS.artifact and FLAGS.data:
            artefact, data = Path(FLAGS.artifact), Path(FLAGS.data)
        else:
            artefact, data = make_artefact(folder)
        bodies = bodies_of(data)
        time_starts(artefact, folder / "compiled", bodies[0])
        plain, rate = compare_rates(artefact, bodies, folder / "compiled")
        compare_latencies(artefact, bodies, folder / "compiled", plain, rate)
        watch_memory(artefact, bodies, folder / "compiled", min(rate, 800.0))


if __name__ == "__main__":
    app.run(main)
