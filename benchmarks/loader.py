"""Batches a second of every layout, beside Grain doing the same work, where it is installed.

Grain is used in two ways: as its users do, example by example (shuffle, map, pack, batch), and with
the batches of this library as its elements, where it is left to build them ahead in a thread. Each
is timed through the iterator that a training loop would read; "direct" is `batch(step)` itself.

  python benchmarks/loader.py --data=DIR
  python benchmarks/loader.py --step_ms=60      # also says how many batches are made in a step

Without --data, histories of 7 training events on average. Prints one JSON object a layout. The
first batches of each way, such as those that start threads, are not timed. `fill` is the share of
packed positions that hold an item: this library's rows take windows in order, Grain's first-fit
looks among as many rows as a batch has.
"""

import contextlib
import importlib
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from _histories import histories
from _report import emit
from absl import app, flags

from jaxrec.data import Dataset, PairData, SequenceData
from jaxrec.data.training_events import TrainingEvents, training_events
from jaxrec.training.prefetch import prefetch

LAYOUTS: dict[str, Any] = {
    "last": SequenceData(targets="last"),
    "all": SequenceData(targets="all"),
    "packed": SequenceData(targets="packed"),
    "pairs": PairData(),
}

_LAYOUTS = flags.DEFINE_list("layouts", list(LAYOUTS), "Which layouts to time.")
_DATA = flags.DEFINE_string("data", None, "Dataset directory; invented lengths without it.")
_BATCH = flags.DEFINE_integer("batch", 128, "Rows of a batch.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 2.0, "How long to time each way.")
_STEP_MS = flags.DEFINE_float("step_ms", None, "Time of a training step to compare with.")


def _rate(batches: Iterator[Any]) -> float:
    """Returns how many elements an endless iterator gives a second."""
    for _ in range(5):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS.value:
        next(batches)
        count += 1
    return count / (time.perf_counter() - start)


def _grain_of_batches(grain: Any, batches: Any) -> Iterator[Any]:
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(grain.MapDataset.range(10**9).map(batches.batch).to_iter_dataset(options))


def _grain_of_examples(grain: Any, layout: str, events: TrainingEvents) -> Iterator[Any]:
    """An example is looked up and padded in Python, as one writes it by hand."""
    items, starts, counts = np.asarray(events.items), events.starts, events.counts
    users = np.flatnonzero(counts > 1)
    known = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(known)) - np.repeat(np.cumsum(counts) - counts, counts)
    targets = np.flatnonzero(place > 0)

    def padded(values: np.ndarray) -> np.ndarray:
        row = np.zeros(50, np.int32)
        row[50 - len(values) :] = values
        return row

    def last(index: int) -> dict[str, Any]:
        user, position = known[targets[index]], int(place[targets[index]])
        event = starts[user] + position
        return {
            "history": padded(items[event - min(position, 50) : event]),
            "positives": items[event],
        }

    def window(index: int) -> dict[str, Any]:
        end = starts[users[index]] + counts[users[index]]
        own = items[end - min(int(counts[users[index]]), 51) : end]
        return {"history": own[:-1], "positives": own[1:]}

    def every(index: int) -> dict[str, Any]:
        return {name: padded(values) for name, values in window(index).items()}

    def pair(index: int) -> dict[str, Any]:
        user = known[index]
        return {"users": np.int32(user), "positives": items[starts[user] + place[index]]}

    examples: dict[str, tuple[Callable[[int], Any], int]] = {
        "last": (last, len(targets)),
        "all": (every, len(users)),
        "packed": (window, len(users)),
        "pairs": (pair, len(known)),
    }
    example, count = examples[layout]
    mapped = grain.MapDataset.range(count).seed(0).shuffle().repeat().map(example)
    if layout != "packed":
        return iter(mapped.batch(_BATCH.value).to_iterhistories(_DATA.value))
    packing = importlib.import_module("grain.experimental").FirstFitPackIterDataset
    # Packing reads examples one by one, and handing one over between threads costs more than one.
    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    packed = packing(
        mapped.to_iter_dataset(alone),
        length_struct={"history": 50, "positives": 50},
        num_packing_bins=_BATCH.value,
    )
    return iter(packed.batch(_BATCH.value))


def _measure(dataset: Dataset, layout: str, grain: Any) -> dict[str, Any]:
    start = time.perf_counter()
    batches = LAYOUTS[layout].batches(dataset, _BATCH.value, 0)
    batches.batch(0)
    figures = {"layout": layout, "batch": _BATCH.value, "start_s": time.perf_counter() - start}
    cpu, made = time.thread_time(), itertools.count()
    direct = _rate(map(batches.batch, made))
    figures["direct_batches_per_s"] = direct
    # The thread's own time: others on the machine lengthen it less than the time on the wall.
    each = (time.thread_time() - cpu) / next(made)
    figures["direct_cpu_us"] = 1e6 * each
    with contextlib.closing(prefetch(batches.batch, 0, 10**9)) as ahead:
        figures["prefetch_batches_per_s"] = _rate(ahead)
    if _STEP_MS.value:
        figures["batches_in_a_step"] = _STEP_MS.value / 1e3 / each
    if grain is not None:
        figures["grain_of_batches_per_s"] = _rate(_grain_of_batches(grain, batches))
        examples = _grain_of_examples(grain, layout, training_events(dataset))
        figures["grain_of_examples_per_s"] = _rate(examples)
        if layout == "packed":
            figures["fill"] = float((batches.batch(0).history > 0).mean())
            figures["grain_fill"] = float((next(examples)["history"] > 0).mean())
    return figures


def main(argv: list[str]) -> None:
    dataset = histories(_DATA.value)
    grain = importlib.import_module("grain") if importlib.util.find_spec("grain") else None
    for layout in _LAYOUTS.value:
        emit("loader", _measure(dataset, layout, grain))


if __name__ == "__main__":
    app.run(main)
