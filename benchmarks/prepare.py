"""How fast a log becomes a dataset, and in how much memory.

python benchmarks/prepare.py                      # 50 million events, some minutes
python benchmarks/prepare.py --events=1000000

Events are invented piece by piece into Parquet files: users at random, items by Zipf's law. Each
measurement is a process of its own, so that its peak is its own. The engines are compared at
--beside events, where pandas still fits.
"""

import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from absl import app, flags

_EVENTS = flags.DEFINE_integer("events", 50_000_000, "Events of the long run, with duckdb.")
_BESIDE = flags.DEFINE_integer("beside", 5_000_000, "Events where duckdb and pandas are compared.")
_MEMORY = flags.DEFINE_string("memory_limit", "2GB", "Of duckdb; the process needs some more.")
_DIRECTORY = flags.DEFINE_string("directory", None, "Where files go; a temporary one if not said.")

_FILE_EVENTS = 2_500_000
_USERS_SHARE = 25  # events of a user on average: 2 million users for 50 million events
_ITEMS = 500_000


def invent(directory: Path, events: int) -> None:
    """Writes a log of several files, one after the other."""
    directory.mkdir()
    users = max(events // _USERS_SHARE, 1)
    for number, start in enumerate(range(0, events, _FILE_EVENTS)):
        random = np.random.default_rng(number)
        count = min(_FILE_EVENTS, events - start)
        # The inverse of the distribution of a Zipf law with exponent 1.
        items = np.exp(random.random(count) * np.log(_ITEMS)).astype(np.int64)
        table = pa.table(
            {
                "user_id": random.integers(1, users + 1, count),
                "item_id": items,
                "timestamp": random.integers(1_600_000_000, 1_700_000_000, count),
                "rating": random.integers(1, 6, count).astype(np.float32),
            }
        )
        pa.parquet.write_table(table, directory / f"part-{number:03}.parquet")


def measure(log: Path, output: Path, engine: str, memory_limit: str | None, figures: str) -> None:
    """Prepares a log in this process and writes what it took to a file."""
    from jaxrec.data import prepare

    start = time.perf_counter()
    data = prepare(
        log,
        output,
        engine=engine,
        memory_limit=memory_limit,
        time_column="timestamp",
        label_column="rating",
        min_user_events=5,
        min_item_events=5,
    )
    seconds, usage = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    read = data.manifest.report[0]["left_events"]
    result = {
        "engine": engine,
        "events": read,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "rows_per_second": round(read / seconds),
        "peak_gib": round(usage.ru_maxrss / 2**20, 3),
        "fingerprint": data.manifest.fingerprint[:16],
    }
    Path(figures).write_text(json.dumps(result))


def run(directory: Path, events: int, engines: tuple[str, ...]) -> None:
    """Prepares one log with each engine and prints a line for each."""
    log = directory / f"log-{events}"
    invent(log, events)
    size = sum(path.stat().st_size for path in log.iterdir())
    for engine in engines:
        output, figures = directory / "out", directory / "figures.json"
        limit = _MEMORY.value if engine == "duckdb" else None
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=(log, output, engine, limit, str(figures))
        )
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{engine} failed with exit code {process.exitcode}")
        found = json.loads(figures.read_text())
        kept = {"parquet_mb": round(size / 1e6), "memory_limit": limit, "cpus": os.cpu_count()}
        print(json.dumps({"name": "prepare", **found, **kept}), flush=True)
        shutil.rmtree(output)
    shutil.rmtree(log)


def main(argv: list[str]) -> None:
    """Compares the engines, then runs the long one."""
    with tempfile.TemporaryDirectory(dir=_DIRECTORY.value) as name:
        run(Path(name), min(_BESIDE.value, _EVENTS.value), ("pandas", "duckdb"))
        if _EVENTS.value > _BESIDE.value:
            run(Path(name), _EVENTS.value, ("duckdb",))


if __name__ == "__main__":
    app.run(main)
