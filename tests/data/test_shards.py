"""Arrays in several files: they behave as one, and a dataset in shards is the same dataset."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import Dataset, PairData, SequenceData, open_dataset, prepare
from jaxrec.data.shards import ArrayWriter, ShardedArray, num_shards, shard_names
from jaxrec.data.synthetic import synthetic
from jaxrec.evaluation import EvaluationConfig, ItemKNN, Popularity, evaluate
from jaxrec.typing import UserError

NAMES = ("users", "items", "times", "split", "labels")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=5), st.data())
def test_indexing_is_that_of_one_array(parts: list[list[int]], data: st.DataObject) -> None:
    whole = np.concatenate([np.array(part, np.int32) for part in parts])
    array = ShardedArray([np.array(part, np.int32) for part in parts])
    assert (len(array), array.shape, array.dtype) == (len(whole), whole.shape, whole.dtype)
    np.testing.assert_array_equal(np.asarray(array), whole)
    where = data.draw(st.slices(len(whole)))
    mask = data.draw(st.lists(st.booleans(), min_size=len(whole), max_size=len(whole)))
    for index in (where, np.array(mask, bool)):
        found = array[index]
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(found, whole[index])
    if len(whole):
        positions = st.integers(-len(whole), len(whole) - 1)
        chosen = np.array(data.draw(st.lists(positions, max_size=8)), np.int64)
        np.testing.assert_array_equal(array[chosen], whole[chosen])
        np.testing.assert_array_equal(array[chosen[:, None]], whole[chosen[:, None]])
        assert array[int(chosen[0])] == whole[chosen[0]] if len(chosen) else True
    np.testing.assert_array_equal(array == 3, whole == 3)


def test_what_is_out_of_bounds_is_an_error() -> None:
    array = ShardedArray([np.arange(3), np.arange(2)])
    for index in (5, -6, np.array([0, 5]), np.array([True])):
        with pytest.raises(IndexError):
            array[index]


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 12])
def test_files_hold_the_elements_in_order(tmp_path: Path, length: int) -> None:
    values = np.arange(length, dtype=np.int64)
    writer = ArrayWriter(tmp_path, "items", values.dtype, length, 4)
    for piece in np.array_split(values, 5):
        writer.append(piece)
    names = shard_names("items", num_shards(length, 4))
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    np.testing.assert_array_equal(np.concatenate([np.load(tmp_path / n) for n in names]), values)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset, Path]:
    """One log, prepared into one file an array and into many."""
    directory = tmp_path_factory.mktemp("shards")
    events, items = synthetic(0, num_users=60, num_items=60, max_events=24)

    def make(name: str, size: int | None) -> Dataset:
        return prepare(
            events,
            directory / name,
            items=items,
            shard_events=size,
            time_column="timestamp",
            label_column="rating",
        )

    return make("one", None), make("many", 100), directory / "many"


def test_a_dataset_in_shards_is_the_same_dataset(pair: tuple[Dataset, Dataset, Path]) -> None:
    one, many, path = pair
    assert isinstance(one.users, np.memmap)
    assert isinstance(many.users, ShardedArray)
    assert len(list(path.glob("users-*-of-*.npy"))) == -(-len(one.users) // 100)
    for name in NAMES:
        np.testing.assert_array_equal(np.asarray(getattr(many, name)), getattr(one, name))
    np.testing.assert_array_equal(many.offsets, one.offsets)
    np.testing.assert_array_equal(many.item_counts, one.item_counts)
    assert many.manifest.fingerprint == one.manifest.fingerprint


@pytest.mark.parametrize("targets", ["last", "all", "packed", "pairs"])
def test_batches_of_shards_are_those_of_one_file(
    pair: tuple[Dataset, Dataset, Path], targets: str
) -> None:
    config = PairData() if targets == "pairs" else SequenceData(max_len=8, targets=targets)  # type: ignore[arg-type] # a word of the list above
    one, many = (config.batches(data, 16, seed=1) for data in pair[:2])
    assert one.steps_per_epoch == many.steps_per_epoch
    for step in (0, one.steps_per_epoch):
        for field in ("users", "history", "positives", "labels", "where"):
            expected, found = getattr(one.batch(step), field), getattr(many.batch(step), field)
            assert (expected is None) == (found is None)
            if expected is not None:
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("make", [Popularity, ItemKNN])
def test_evaluation_of_shards_is_that_of_one_file(
    pair: tuple[Dataset, Dataset, Path], make: Callable[[Dataset], Popularity]
) -> None:
    config = EvaluationConfig(ks=(10,), bootstrap_samples=10)
    one, many = (evaluate(make(data), data, "test", config) for data in pair[:2])
    assert one.metrics == many.metrics


def test_a_missing_or_shortened_shard_does_not_open(
    pair: tuple[Dataset, Dataset, Path],
) -> None:
    shard = sorted(pair[2].glob("items-*.npy"))[1]
    content = shard.read_bytes()
    for damage in (lambda: shard.unlink(), lambda: shard.write_bytes(content[:-3])):
        damage()
        with pytest.raises(UserError, match=rf"{shard.name} is missing or damaged .*again") as said:
            open_dataset(pair[2])
        assert "\n" not in str(said.value)
        shard.write_bytes(content)
    assert open_dataset(pair[2]).num_items == 60
