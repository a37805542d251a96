"""Training batches of every layout against loops over users."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxrec.data import TRAIN, Dataset, PairData, SequenceData
from jaxrec.data.training_events import training_events
from jaxrec.typing import Batch, UserError


@pytest.fixture(scope="module")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    return random_dataset(3, num_users=23, num_items=15, mean_length=9)


def train_histories(dataset: Dataset) -> list[list[int]]:
    """The training items of each user, in order."""
    kept = dataset.split == TRAIN
    users, items = dataset.users[kept], dataset.items[kept]
    return [items[users == u].tolist() for u in range(1, dataset.num_users + 1)]


def epoch(batches: Any, number: int) -> list[Batch]:
    steps = batches.steps_per_epoch
    return [batches.batch(step) for step in range(number * steps, (number + 1) * steps)]


def rows(batch: Batch) -> list[tuple[Any, ...]]:
    """(history without padding, positive) of each row that counts."""
    return [
        (tuple(h[h > 0].tolist()), int(p))
        for h, p, w in zip(batch.history, batch.positives, batch.where, strict=True)
        if w
    ]


def windows(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(history, positives) of each sequence of each row."""
    found = []
    segments = batch.segments if batch.segments is not None else batch.history > 0
    for history, positives, segment in zip(batch.history, batch.positives, segments, strict=True):
        for number in range(1, int(segment.max(initial=0)) + 1):
            place = segment == number
            assert (np.diff(np.flatnonzero(place)) == 1).all()
            found.append((tuple(history[place].tolist()), tuple(positives[place].tolist())))
    return found


ALL = [
    SequenceData(max_len=5, targets="last", buckets=(2, 3)),
    SequenceData(max_len=5, targets="all"),
    SequenceData(max_len=5, targets="packed"),
    SequenceData(max_len=5, targets="packed", row_len=11),
    PairData(),
]
NAMES = ["last", "all", "packed", "packed_wider", "pairs"]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("buckets", [(), (2, 3), (8, 20)])
def test_last_shows_every_prefix_once_an_epoch(
    dataset: Dataset, buckets: tuple[int, ...], batch_size: int
) -> None:
    config = SequenceData(max_len=5, targets="last", buckets=buckets)
    batches = config.batches(dataset, batch_size, seed=1)
    expected = Counter(
        (tuple(history[max(0, t - 5) : t]), history[t])
        for history in train_histories(dataset)
        for t in range(1, len(history))
    )
    for number in range(2):
        assert Counter(row for b in epoch(batches, number) for row in rows(b)) == expected


def test_last_uses_the_shortest_bucket_that_holds_an_example(dataset: Dataset) -> None:
    batches = SequenceData(max_len=5, targets="last", buckets=(2, 3)).batches(dataset, 4, seed=0)
    widths = set()
    for batch in epoch(batches, 0):
        width = batch.history.shape[1]
        shorter = {2: 0, 3: 2, 5: 3}[width]
        assert all(shorter < len(history) <= width for history, _ in rows(batch))
        widths.add(width)
    assert widths == {2, 3, 5}


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_all_shows_the_newest_window_of_every_user(dataset: Dataset, batch_size: int) -> None:
    batches = SequenceData(max_len=5, targets="all").batches(dataset, batch_size, seed=1)
    expected = Counter(
        (tuple(history[-6:-1]), tuple(history[-5:] if len(history) > 5 else history[1:]))
        for history in train_histories(dataset)
        if len(history) > 1
    )
    for number in range(2):
        assert Counter(w for b in epoch(batches, number) for w in windows(b)) == expected


@pytest.mark.parametrize(("max_len", "row_len"), [(5, 0), (5, 11), (1, 0), (50, 0), (50, 64)])
def test_packed_shows_every_pair_of_neighbours_once(
    dataset: Dataset, max_len: int, row_len: int
) -> None:
    config = SequenceData(max_len=max_len, targets="packed", row_len=row_len)
    seen = [w for b in epoch(config.batches(dataset, 1, seed=1), 0) for w in windows(b)]
    pairs = Counter(p for h, t in seen for p in zip(h, t, strict=True))
    expected = Counter(
        pair for h in train_histories(dataset) for pair in zip(h[:-1], h[1:], strict=True)
    )
    assert pairs == expected
    texts = [",".join(map(str, h)) + "," for h in train_histories(dataset)]
    for history, targets in seen:
        assert len(history) <= max_len
        assert history[1:] == targets[:-1]
        run = ",".join(map(str, (*history, targets[-1]))) + ","
        assert any(("," + text).find("," + run) >= 0 for text in texts)


def test_packed_cuts_long_histories_elsewhere_in_each_epoch(dataset: Dataset) -> None:
    batches = SequenceData(max_len=5, targets="packed").batches(dataset, 1, seed=1)
    cuts = [frozenset(w for b in epoch(batches, number) for w in windows(b)) for number in range(3)]
    assert len(set(cuts)) == 3
    short = [h for h in train_histories(dataset) if 2 <= len(h) <= 6]
    assert short
    for history in short:
        assert all((tuple(history[:-1]), tuple(history[1:])) in seen for seen in cuts[:1])


def test_packed_leaves_no_room_that_the_next_window_would_fill(dataset: Dataset) -> None:
    config = SequenceData(max_len=5, targets="packed", row_len=11)
    batches = config.batches(dataset, 1, seed=2)
    filled = [int((b.history > 0).sum()) for b in epoch(batches, 0)]
    assert all(count > 11 - 5 for count in filled[:-1])


@pytest.mark.parametrize("batch_size", [2, 3, 8, 100])
@pytest.mark.parametrize("row_len", [0, 11])
def test_packed_loses_and_repeats_nothing_in_any_epoch(
    dataset: Dataset, batch_size: int, row_len: int
) -> None:
    config = SequenceData(max_len=5, row_len=row_len)
    expected = Counter(
        pair for h in train_histories(dataset) for pair in zip(h[:-1], h[1:], strict=True)
    )
    for seed in range(4):
        batches = config.batches(dataset, batch_size, seed=seed)
        for number in range(5):
            seen = [w for b in epoch(batches, number) for w in windows(b)]
            pairs = Counter(p for h, t in seen for p in zip(h, t, strict=True))
            assert pairs == expected
            # Rows are dealt evenly: no batch is left nearly empty.
            filled = [int((b.history > 0).any(axis=1).sum()) for b in epoch(batches, number)]
            assert max(filled) - min(filled) <= 1


@pytest.mark.parametrize("batch_size", [1, 7])
def test_pairs_show_every_training_event_once(dataset: Dataset, batch_size: int) -> None:
    batches = PairData().batches(dataset, batch_size, seed=0)
    kept = dataset.split == TRAIN
    expected = Counter(zip(dataset.users[kept].tolist(), dataset.items[kept].tolist(), strict=True))
    for number in range(2):
        seen = Counter(
            (int(u), int(p))
            for b in epoch(batches, number)
            for u, p, w in zip(b.users, b.positives, b.where, strict=True)
            if w
        )
        assert seen == expected


def test_pairs_bring_the_labels_of_their_events(dataset_of: Callable[..., Dataset]) -> None:
    events = [(1, 2, 0), (1, 3, 0), (2, 2, 0), (2, 1, 2)]
    dataset = dataset_of(events, num_items=3, labels=[1.0, 2.0, 3.0, 4.0])
    batch = PairData().batches(dataset, 3, seed=0).batch(0)
    told = zip(batch.users, batch.positives, batch.labels, strict=True)
    assert {(int(u), int(p)): float(label) for u, p, label in told} == {
        (1, 2): 1.0,
        (1, 3): 2.0,
        (2, 2): 3.0,
    }


@pytest.mark.parametrize("config", ALL, ids=NAMES)
def test_shapes_and_dtypes_are_static_and_padding_is_zero(config: Any, dataset: Dataset) -> None:
    batches = config.batches(dataset, 4, seed=0)
    shapes = set()
    for batch in epoch(batches, 0) + epoch(batches, 1):
        assert batch.positives.dtype == np.int32
        assert batch.where.dtype == bool and batch.where.shape == batch.positives.shape
        assert batch.positives.shape[0] == 4
        assert (batch.positives[batch.where] > 0).all()
        if batch.history is not None:
            shapes.add(batch.history.shape)
            assert batch.history.dtype == np.int32
            padding = batch.history == 0
            if batch.segments is None:  # padding is in front, and what follows has no holes
                assert (np.diff(padding.astype(int), axis=1) <= 0).all()
            else:
                assert batch.segments.dtype == np.int32
                np.testing.assert_array_equal(batch.segments == 0, padding)
            if batch.positives.ndim == 2:
                np.testing.assert_array_equal(batch.where, ~padding)
                assert not batch.positives[padding].any()
    wanted = {"last": {(4, 2), (4, 3), (4, 5)}, "pairs": set()}
    name = NAMES[ALL.index(config)]
    assert shapes == wanted.get(name, {(4, getattr(config, "row_len", 0) or 5)})


def leaves(batch: Batch) -> list[bytes]:
    fields = (batch.users, batch.history, batch.segments, batch.positives, batch.where)
    arrays = (*fields, batch.labels)
    return [b"" if x is None else np.ascontiguousarray(x).tobytes() for x in arrays]


@pytest.mark.parametrize("config", ALL, ids=NAMES)
def test_a_batch_depends_on_seed_and_step_alone(config: Any, dataset: Dataset) -> None:
    steps = 3 * config.batches(dataset, 4, seed=5).steps_per_epoch
    in_order = [leaves(config.batches(dataset, 4, seed=5).batch(step)) for step in range(steps)]
    batches = config.batches(dataset, 4, seed=5)
    for step in np.random.default_rng(0).permutation(steps).tolist():
        assert leaves(batches.batch(step)) == in_order[step]
    other = config.batches(dataset, 4, seed=6)
    assert [leaves(other.batch(step)) for step in range(steps)] != in_order


@pytest.mark.parametrize("config", ALL, ids=NAMES)
def test_epochs_have_orders_of_their_own(config: Any, dataset: Dataset) -> None:
    batches = config.batches(dataset, 4, seed=5)
    first, second = (list(map(leaves, epoch(batches, number))) for number in range(2))
    assert first != second


@pytest.mark.parametrize("config", ALL, ids=NAMES)
def test_events_for_validation_and_test_are_never_seen(
    config: Any, dataset_of: Callable[..., Dataset]
) -> None:
    # Items from 100 on are met in validation and test only.
    events = []
    for user in range(1, 8):
        events += [(user, 1 + (user + t) % 9, 0) for t in range(user + 1)]
        events += [(user, 100 + user, 1), (user, 110 + user, 2)]
    batches = config.batches(dataset_of(events, num_items=120), 3, seed=0)
    for batch in epoch(batches, 0) + epoch(batches, 1):
        for array in (batch.history, batch.positives):
            assert array is None or array.max() < 100


def test_users_whose_training_events_are_cut_apart_are_joined(
    dataset_of: Callable[..., Dataset],
) -> None:
    # A random split leaves training events on both sides of a test event.
    events = [(1, 1, 0), (1, 2, 2), (1, 3, 0), (2, 4, 0), (3, 5, 0), (3, 6, 0)]
    dataset = dataset_of(events, num_items=6)
    seen = [w for b in epoch(SequenceData().batches(dataset, 1, 0), 0) for w in windows(b)]
    assert set(seen) == {((1,), (3,)), ((5,), (6,))}


@pytest.mark.parametrize("targets", ["last", "all", "packed"])
def test_logs_without_two_events_of_a_user_are_refused(
    targets: Any, dataset_of: Callable[..., Dataset]
) -> None:
    dataset = dataset_of([(1, 1, 0), (1, 2, 2), (2, 2, 0)], num_items=2)
    with pytest.raises(UserError, match="no user has two training events"):
        SequenceData(targets=targets).batches(dataset, 2, seed=0)


def test_a_packed_row_that_is_too_short_is_refused(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="row_len=3 is shorter than data.max_len=5"):
        SequenceData(max_len=5, row_len=3).batches(dataset, 2, seed=0)


@pytest.mark.parametrize("values", [{"max_len": 0}, {"buckets": (0, 4)}, {"row_len": -1}])
def test_lengths_below_one_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SequenceData(**values)


def test_requests_show_what_each_kind_of_model_looks_at() -> None:
    users, histories = np.array([3, 4]), np.array([[0, 1], [2, 3]])
    sequence = SequenceData().requests(users, histories)
    np.testing.assert_array_equal(sequence.history, histories)
    assert sequence.users is None and sequence.positives is None
    pairs = PairData().requests(users, histories)
    np.testing.assert_array_equal(pairs.users, users)
    assert pairs.history is None


@pytest.mark.parametrize("config", ALL, ids=NAMES)
@pytest.mark.parametrize("kept", ["leading", "scattered"])
def test_located_batches_say_which_event_each_target_is(
    config: Any, kept: str, dataset: Dataset
) -> None:
    if kept == "scattered":
        split = np.where(np.arange(len(dataset.items)) % 4 == 1, 2, 0).astype(np.uint8)
        dataset = dataclasses.replace(dataset, split=split)
    events, seen = training_events(dataset), []
    batches = config.batches(dataset, 4, seed=0)
    for step in range(batches.steps_per_epoch):
        batch, numbers = batches.located(step)
        assert numbers.shape == batch.positives.shape
        assert (numbers[~batch.where] == 0).all()
        chosen = numbers[batch.where]
        np.testing.assert_array_equal(events.items[chosen], batch.positives[batch.where])
        users = np.searchsorted(events.starts, chosen, side="right") - 1
        assert (chosen - events.starts[users] < events.counts[users]).all()
        seen += chosen.tolist()
    assert len(seen) == len(set(seen))
    if getattr(config, "targets", "") != "all":  # which leaves out what is older than a window
        first = int(not isinstance(config, PairData))
        assert len(seen) == (events.counts - first).clip(0).sum()


@pytest.mark.parametrize("targets", ["last", "all", "packed"])
def test_labels_are_those_of_the_targets(targets: Any, dataset: Dataset) -> None:
    # A label that says which event it is of.
    labels = np.arange(1, len(dataset.items) + 1, dtype=np.float32)
    config = SequenceData(max_len=4, targets=targets, buckets=(2,), labels=True)
    batches = config.batches(dataclasses.replace(dataset, labels=labels), 4, seed=0)
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        assert batch.labels.dtype == np.float32
        assert (batch.labels[~batch.where] == 0).all()
        events = batch.labels[batch.where].astype(int) - 1
        np.testing.assert_array_equal(dataset.items[events], batch.positives[batch.where])
        assert (dataset.split[events] == TRAIN).all()
    with pytest.raises(UserError, match="--label_column"):
        config.batches(dataclasses.replace(dataset, labels=None), 4, seed=0)
