"""Replay: what is new is always there, of the old a fraction, and an epoch costs accordingly."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pandas as pd
import pytest

from jaxrec.data import TRAIN, Dataset, PairData, Replay, SequenceData
from jaxrec.typing import Batch, UserError

LAYOUTS: dict[str, Any] = {
    "last": SequenceData(max_len=6, targets="last", buckets=(2,)),
    "all": SequenceData(max_len=6, targets="all"),
    "packed": SequenceData(max_len=6, row_len=9),
    "pairs": PairData(),
}


@pytest.fixture(scope="module")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    """Items are numbered through, so that an item tells the event."""
    drawn = random_dataset(5, num_users=40, num_items=5, mean_length=12)
    numbers = np.arange(1, len(drawn.items) + 1, dtype=np.int32)
    manifest = dataclasses.replace(drawn.manifest, num_items=len(numbers))
    return dataclasses.replace(drawn, items=numbers, manifest=manifest)


@pytest.fixture(scope="module")
def old(dataset: Dataset) -> np.ndarray:
    """(num_users + 1,) how many training events are old: all, some or none of a user's."""
    random = np.random.default_rng(0)
    trains = np.bincount(dataset.users[dataset.split == TRAIN], minlength=dataset.num_users + 1)
    return np.where(random.random(len(trains)) < 0.4, trains, random.integers(0, trains + 1))


@pytest.fixture(scope="module")
def since(dataset: Dataset, old: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In another order, with users that the dataset does not have."""
    users = dataset.user_vocabulary.assign(training_events=old[1:])[::-1]
    gone = pd.DataFrame({"id": ["gone"], "training_events": [7]})
    path = tmp_path_factory.mktemp("past") / "user.parquet"
    pd.concat([gone, users]).to_parquet(path)
    return path


def targets(batches: Any, epoch: int) -> Counter[int]:
    steps = batches.steps_per_epoch
    made = [batches.batch(step) for step in range(epoch * steps, (epoch + 1) * steps)]
    return Counter(np.concatenate([b.positives[b.where] for b in made]).tolist())


def expected(dataset: Dataset, old: np.ndarray, name: str) -> tuple[set[int], set[int]]:
    """The new and the old targets of a layout, by a loop over users."""
    new_targets: set[int] = set()
    old_targets: set[int] = set()
    for user in range(1, dataset.num_users + 1):
        events = dataset.items[(dataset.users == user) & (dataset.split == TRAIN)].tolist()
        first = 0 if name == "pairs" else 1
        if name == "all":
            first = max(1, len(events) - 6)
        for position in range(first, len(events)):
            side = new_targets if position >= old[user] else old_targets
            side.add(events[position])
    return new_targets, old_targets


@pytest.mark.parametrize("name", LAYOUTS)
def test_without_replay_an_epoch_has_each_new_target_once_and_no_other(
    name: str, dataset: Dataset, old: np.ndarray, since: Path
) -> None:
    batches = Replay(data=LAYOUTS[name], since=str(since)).batches(dataset, 4, 1)
    new, _ = expected(dataset, old, name)
    for epoch in (0, 3):
        assert targets(batches, epoch) == Counter(new)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_fraction_of_the_old_targets_is_drawn_anew_in_each_epoch(
    name: str, dataset: Dataset, old: np.ndarray, since: Path
) -> None:
    batches = Replay(data=LAYOUTS[name], since=str(since), fraction=0.4).batches(dataset, 4, 1)
    new, stale = expected(dataset, old, name)
    epochs = [targets(batches, epoch) for epoch in range(25)]
    drawn = [found.keys() - new for found in epochs]
    for found, replayed in zip(epochs, drawn, strict=True):
        assert max(found.values()) == 1 and new <= found.keys() and replayed <= stale
    assert drawn[0] != drawn[1]
    if name == "pairs":
        assert {len(replayed) for replayed in drawn} == {round(0.4 * len(stale))}
    share = np.mean([len(replayed) / len(stale) for replayed in drawn])
    assert share == pytest.approx(0.4, abs=0.06)
    assert set().union(*drawn) == stale  # none is left out for ever


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_of_the_old_gives_what_there_is_without_a_past(
    name: str, dataset: Dataset, old: np.ndarray, since: Path
) -> None:
    replay = Replay(data=LAYOUTS[name], since=str(since), fraction=1.0).batches(dataset, 4, 1)
    assert targets(replay, 2) == targets(LAYOUTS[name].batches(dataset, 4, 1), 2)


@pytest.mark.parametrize("name", LAYOUTS)
def test_batches_depend_on_the_step_alone_and_come_in_parts(
    name: str, dataset: Dataset, since: Path
) -> None:
    config = Replay(data=LAYOUTS[name], since=str(since), fraction=0.3)
    batches, again = (config.batches(dataset, 4, 7) for _ in range(2))
    for step in (0, batches.steps_per_epoch + 1, 3):
        whole = batches.batch(step)
        chex.assert_trees_all_equal(whole, again.batch(step))
        parts = [again.batch(step, slice(start, start + 2)) for start in (0, 2)]
        fields: dict[str, Any] = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(Batch)
            if getattr(whole, field.name) is not None
        }
        chex.assert_trees_all_equal(whole, Batch(**fields))


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_epoch_costs_what_is_new(name: str, random_dataset: Any, tmp_path: Path) -> None:
    data = random_dataset(1, num_users=400, num_items=50, mean_length=12)
    users = data.user_vocabulary.copy()
    trains = np.bincount(data.users[data.split == TRAIN], minlength=401)[1:]
    users["training_events"] = np.where(np.arange(400) < 360, trains, 0)  # a tenth of users is new
    users.to_parquet(tmp_path / "user.parquet")
    every = LAYOUTS[name].batches(data, 8, 0).steps_per_epoch
    for fraction, share in ((0.0, 0.1), (0.5, 0.55)):
        config = Replay(data=LAYOUTS[name], since=str(tmp_path / "user.parquet"), fraction=fraction)
        steps = config.batches(data, 8, 0).steps_per_epoch
        assert steps == pytest.approx(share * every, rel=0.15, abs=2)


def test_a_row_of_new_targets_shows_the_old_history(dataset: Dataset, tmp_path: Path) -> None:
    """By hand: one user with five training events, of which three are old."""
    data = dataclasses.replace(
        dataset,
        users=np.ones(5, np.int32),
        items=np.arange(1, 6, dtype=np.int32),
        split=np.zeros(5, np.uint8),
        user_vocabulary=pd.DataFrame({"id": ["u1"]}),
        manifest=dataclasses.replace(dataset.manifest, num_users=1),
    )
    pd.DataFrame({"id": ["u1"], "training_events": [3]}).to_parquet(tmp_path / "u.parquet")
    for name in ("all", "packed"):
        config = Replay(data=LAYOUTS[name], since=str(tmp_path / "u.parquet"))
        batch = config.batches(data, 1, 0).batch(0)
        there = batch.history[0] > 0
        assert batch.history[0][there].tolist() == [1, 2, 3, 4]
        assert batch.positives[0][there].tolist() == [0, 0, 4, 5]
        assert batch.where[0][there].tolist() == [False, False, True, True]


def test_nothing_new_and_files_that_cannot_be_read_are_one_sentence(
    dataset: Dataset, tmp_path: Path
) -> None:
    users = dataset.user_vocabulary.assign(training_events=10_000)
    users.to_parquet(tmp_path / "all.parquet")
    for layout in LAYOUTS.values():
        with pytest.raises(UserError, match="nothing to train on: no training event is new"):
            Replay(data=layout, since=str(tmp_path / "all.parquet")).batches(dataset, 4, 0)
    (tmp_path / "bad.parquet").write_text("no table")
    for name in ("bad", "absent"):
        with pytest.raises(UserError, match=f"replay cannot read .*{name}.parquet"):
            Replay(data=PairData(), since=str(tmp_path / f"{name}.parquet")).batches(dataset, 4, 0)
    with pytest.raises(UserError, match=r"must be in \[0, 1\]; got 1.5"):
        Replay(data=PairData(), since="", fraction=1.5)
