"""Parts of batches for the processes of a run, and datasets that do not fit memory."""

import dataclasses
import tracemalloc
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import Dataset, PairData, SequenceData
from jaxrec.typing import Batch

LAYOUTS: dict[str, Any] = {
    "last": SequenceData(max_len=5, targets="last", buckets=(2, 3)),
    "all": SequenceData(max_len=5, targets="all"),
    "packed": SequenceData(max_len=5, targets="packed"),
    "packed_wider": SequenceData(max_len=5, targets="packed", row_len=11),
    "pairs": PairData(),
}


@pytest.fixture(scope="module")
def datasets(random_dataset: Callable[..., Dataset]) -> list[Dataset]:
    """One whose training events lead, and one where they do not; items are event numbers."""
    leading = random_dataset(3, num_users=23, num_items=15, mean_length=9)
    count = len(leading.users)
    leading = dataclasses.replace(
        leading,
        manifest=dataclasses.replace(leading.manifest, num_items=count),
        items=np.arange(1, count + 1, dtype=np.int32),
        labels=np.arange(1, count + 1, dtype=np.float32),
    )
    apart = np.random.default_rng(0).permutation(leading.split)
    return [leading, dataclasses.replace(leading, split=apart)]


def part(size: int, process: int, world: int) -> slice:
    return slice(process * size // world, (process + 1) * size // world)


def together(parts: list[Batch]) -> Batch:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def assert_equal(left: Batch, right: Batch) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


def targets(batch: Batch) -> list[int]:
    """The events, by number, that a batch has as targets."""
    return batch.positives[batch.where].tolist()


def expected_targets(dataset: Dataset, layout: str) -> list[int]:
    kept = np.flatnonzero(dataset.split == 0)
    users = dataset.users[kept]
    if layout != "pairs":
        later = np.append(False, users[1:] == users[:-1])
        kept, users = kept[later], users[later]
    if layout == "all":
        from_end = np.searchsorted(users, users, side="right") - np.arange(len(users))
        kept = kept[from_end <= 5]
    return dataset.items[kept].tolist()


@settings(max_examples=60)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    leading=st.booleans(),
    batch_size=st.integers(1, 20),
    worlds=st.lists(st.integers(1, 8), min_size=2, max_size=3),
    seed=st.integers(0, 2**40),
    number=st.integers(0, 3),
)
def test_whatever_the_processes_each_example_is_seen_once_an_epoch(
    layout: str,
    leading: bool,
    batch_size: int,
    worlds: list[int],
    seed: int,
    number: int,
    datasets: list[Dataset],
) -> None:
    dataset = datasets[0 if leading else 1]
    whole = LAYOUTS[layout].batches(dataset, batch_size, seed)
    steps = whole.steps_per_epoch
    seen: list[int] = []
    # The run stops within the epoch and goes on with another number of processes.
    bounds = [number * steps + i * steps // len(worlds) for i in range(len(worlds) + 1)]
    for world, begin, end in zip(worlds, bounds[:-1], bounds[1:], strict=True):
        processes = [LAYOUTS[layout].batches(dataset, batch_size, seed) for _ in range(world)]
        for step in range(begin, end):
            parts = [
                batches.batch(step, part(batch_size, process, world))
                for process, batches in enumerate(processes)
            ]
            assert_equal(together(parts), whole.batch(step))
            seen += [target for piece in parts for target in targets(piece)]
    assert sorted(seen) == expected_targets(dataset, layout)


class OnlyRead:
    """An array that offers what a dataset in several files does, and counts what is read."""

    def __init__(self, array: np.ndarray):
        self._array, self.dtype, self.shape = array, array.dtype, array.shape
        self.read = 0

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        if not isinstance(index, slice):
            assert index.ndim == 1 and index.dtype.kind in "iu"
            assert not len(index) or (index.min() >= 0 and index.max() < len(self))
        found = self._array[index]
        self.read += found.size
        return found


@pytest.mark.parametrize("leading", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_in_several_files_give_the_same_batches(
    layout: str, leading: bool, datasets: list[Dataset]
) -> None:
    dataset = datasets[0 if leading else 1]
    files: dict[str, Any] = {
        name: OnlyRead(getattr(dataset, name)) for name in ("items", "split", "labels")
    }
    split = dataclasses.replace(dataset, **files)
    expected = LAYOUTS[layout].batches(dataset, 4, 0)
    batches = LAYOUTS[layout].batches(split, 4, 0)
    for step in range(expected.steps_per_epoch):
        assert_equal(batches.batch(step), expected.batch(step))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_reads_no_more_than_its_rows(layout: str, datasets: list[Dataset]) -> None:
    items: Any = OnlyRead(datasets[0].items)
    batches = LAYOUTS[layout].batches(dataclasses.replace(datasets[0], items=items), 8, 0)
    assert items.read == 0
    for step in range(batches.steps_per_epoch):
        items.read = 0
        batch = batches.batch(step, slice(2, 4))
        # For a window its one item more than positions; for the others history and target.
        assert items.read <= 2 * batch.positives.size + (0 if batch.history is None else 22)


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory, dataset_of: Any) -> Dataset:
    """Five million events of 500,000 users in memory-mapped files; the last of each is for test."""
    path, users, each = tmp_path_factory.mktemp("log"), 500_000, 10
    arrays: dict[str, np.ndarray] = {
        "users": np.repeat(np.arange(1, users + 1, dtype=np.int32), each),
        "items": np.tile(np.arange(1, each + 1, dtype=np.int32), users),
        "split": np.tile(np.array([0] * (each - 1) + [2], np.uint8), users),
        "labels": np.ones(users * each, np.float32),
    }
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    small = dataset_of([(1, 1, 0)], num_items=each, num_users=users)
    mapped: dict[str, Any] = {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in arrays}
    dataset = dataclasses.replace(small, **mapped)
    assert len(dataset.offsets) == users + 2  # the dataset's own, whoever asks for it first
    return dataset


# Bytes for each of the 500,000 users of 10 events: one int32 array of the log's size would be 40.
# "packed" holds a window of each user in this log.
HELD = {"last": 17, "all": 9, "packed": 23, "pairs": 13}
PEAK = {"last": 48, "all": 18, "packed": 72, "pairs": 22}


@pytest.mark.parametrize("layout", HELD)
def test_batches_of_a_long_log_hold_arrays_of_users_and_none_of_events(
    layout: Any, long_log: Dataset
) -> None:
    config: Any = PairData() if layout == "pairs" else SequenceData(targets=layout)
    tracemalloc.start()
    try:
        batches = config.batches(long_log, 128, 0)
        for step in (0, batches.steps_per_epoch - 1, 2 * batches.steps_per_epoch):
            batches.batch(step)
        held, peak = (size / long_log.num_users for size in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert held < HELD[layout] and peak < PEAK[layout], (held, peak)
