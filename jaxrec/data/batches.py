"""Sequence batches: static shapes, shuffled by (seed, epoch), addressable by step and row.

The batch of a step depends on the configuration, the seed and the step alone, so a run can start
again at any step. `batch(step, rows)` builds some of its rows at the cost of those rows. Process p
of P asks for slice(p * B // P, (p + 1) * B // P), and together they build the same batch however
many they are, now or after a restart.
"""

import dataclasses
import itertools
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrec.data.dataset import Dataset
from jaxrec.data.replay import NOTHING, Examples, Past
from jaxrec.data.shuffle import permute, row_numbers
from jaxrec.data.training_events import Positives, training_events
from jaxrec.typing import Batch, UserError

_PROBES = 3  # epochs packed at the start, to learn how many rows an epoch has


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceData:
    """How histories become training rows.

    Attributes:
      max_len: positions in a row, and the longest history a model is shown.
      targets: "last": every prefix of a history is an example with its last position as target;
        "all": a row is one user's newest window and every position has a target; "packed": every
        position has a target, histories are cut into windows with a random start in each epoch and
        rows hold as many windows as fit.
      buckets: row lengths for "last"; an example goes to the shortest that holds it.
      row_len: positions of a packed row; 0 means max_len.
      labels: whether batches carry the labels of their targets, such as ratings.
    """

    max_len: int = 50
    targets: Literal["last", "all", "packed"] = "packed"
    buckets: tuple[int, ...] = (8, 20)
    row_len: int = 0
    labels: bool = False

    def __post_init__(self) -> None:
        if self.max_len < 1 or self.row_len < 0:
            raise UserError(
                f"data.max_len must be at least 1 and data.row_len at least 0; got {self.max_len} "
                f"and {self.row_len}."
            )
        if any(width < 1 for width in self.buckets):
            raise UserError(f"data.buckets must be lengths from 1; got {self.buckets}.")

    def batches(
        self, dataset: Dataset, batch_size: int, seed: int, *, past: Past | None = None
    ) -> "SequenceBatches":
        """Returns the training batches of a dataset.

        Args:
          batch_size: examples ("last"), or rows ("all", "packed") in a batch.
          past: what is old, for `Replay`; None means nothing.
        """
        kinds = {"last": PrefixBatches, "all": WindowBatches, "packed": PackedBatches}
        return kinds[self.targets](self, dataset, batch_size, seed, past)

    def requests(self, users: np.ndarray, histories: np.ndarray) -> Batch:
        """Returns what a model is shown to serve users (B,) with histories (B, max_len)."""
        return Batch(history=histories)


def fields_read(data: Any) -> frozenset[str]:
    """Returns the batch fields that models of a data config are shown."""
    shown: Batch = data.requests(np.zeros(1, np.int32), np.zeros((1, 1), np.int32))
    names = [field.name for field in dataclasses.fields(shown)]
    return frozenset(name for name in names if getattr(shown, name) is not None)


class SequenceBatches:
    """Common ground of the three layouts: which step is which batch of which epoch."""

    def __init__(
        self,
        config: SequenceData,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        past: Past | None = None,
    ):
        self.config, self.batch_size, self.seed, self.past = config, batch_size, seed, past
        if config.labels and dataset.labels is None:
            raise UserError(
                "data.labels is set and the dataset has no labels. Prepare it with "
                "--label_column=NAME, or set data.labels=false."
            )
        self.events = training_events(dataset, labels=config.labels)
        self.positives = None
        if self.events.positive is not None:
            if config.targets != "last":
                raise UserError(
                    f"data.targets={config.targets!r} shows positive events alone, and labels of "
                    "others are to be learned as well (data.labels; the dataset's "
                    "positive_from). Set data.targets='last', or data.labels=false."
                )
            self.positives = Positives(dataset, self.events)
            if past is not None:
                self.past = past._replace(counts=self.positives.every(past.counts))
        # An event needs one before it to be a target, so one event alone teaches nothing.
        self.users = np.flatnonzero(self.events.counts > 1).astype(np.int32)
        if not len(self.users):
            raise UserError(
                "no user has two training events, so there is no next item to learn from. Lower "
                "--min_user_events, or prepare a longer log."
            )
        self._prepare()
        if not self.steps_per_epoch:
            raise UserError(NOTHING)

    def _prepare(self) -> None:
        """What a layout does once."""

    @property
    def steps_per_epoch(self) -> int:
        raise AssertionError("defined by each layout")

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Returns the batch of a global step, counted from 0.

        Args:
          rows: [start, stop) of the batch; None means all of it. Rows in parts equal the whole.
        """
        return self.located(step, rows)[0]

    def located(self, step: int, rows: slice | None = None) -> tuple[Batch, np.ndarray]:
        """Returns the batch, and the number of the event that each target is.

        Numbers are positives.shape int64 and count as those of `training_events` without labels;
        0 where `batch.where` is False, and for what is no positive event.
        """
        batch, events = self._batch(*divmod(step, self.steps_per_epoch), rows)
        if self.config.labels and batch.labels is None:
            batch = batch.replace(labels=self.events.labels_at(events, batch.where))
        return batch, events

    def _batch(self, epoch: int, index: int, rows: slice | None) -> tuple[Batch, np.ndarray]:
        raise AssertionError("defined by each layout")


class _Bucket(NamedTuple):
    """Examples with histories of more than `shorter` events; at most `width` after the cut."""

    width: int
    shorter: int
    examples: Examples
    steps: int


class PrefixBatches(SequenceBatches):
    """Every event but a user's first is an example: its history, and itself as target."""

    def _prepare(self) -> None:
        config, past = self.config, self.past
        widths = sorted({b for b in config.buckets if b < config.max_len} | {config.max_len})
        self.buckets: list[_Bucket] = []
        for shorter, width in itertools.pairwise([0, *widths]):
            longest = width if width < config.max_len else np.iinfo(np.int32).max
            counts = (self.events.counts - 1).clip(shorter, longest) - shorter
            # The first event is no example, and those of shorter histories are in other buckets.
            old = None if past is None else (past.counts - shorter - 1).clip(min=0)
            examples = Examples(counts, old, past.fraction if past else 0.0)
            if len(examples):
                steps = -(-len(examples) // self.batch_size)
                self.buckets.append(_Bucket(width, shorter, examples, steps))

    @property
    def steps_per_epoch(self) -> int:
        return sum(bucket.steps for bucket in self.buckets)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of histories that batches come in."""
        return tuple(bucket.width for bucket in self.buckets)

    def _batch(self, epoch: int, index: int, rows: slice | None) -> tuple[Batch, np.ndarray]:
        place = int(permute(np.array(index), self.steps_per_epoch, self.seed, epoch, 0))
        number = 0
        while place >= self.buckets[number].steps:
            place, number = place - self.buckets[number].steps, number + 1
        width, shorter, examples, _ = self.buckets[number]
        numbers, total = row_numbers(place, self.batch_size, rows), len(examples)
        where, key = numbers < total, (self.seed, epoch, 1 + number)
        numbers = permute(numbers.clip(max=total - 1), total, *key)
        users, positions = examples.locate(numbers, *key, 1)
        starts = self.events.starts[users]
        events = starts + positions + shorter + 1
        if self.positives is not None:
            return self._among_others(self.positives, users, events, where, width)
        columns = events[:, None] + np.arange(-width, 0)
        inside = (columns >= starts[:, None]) & where[:, None]
        batch = Batch(
            history=self.events.items_at(columns, inside),
            positives=self.events.items_at(events, where),
            where=where,
        )
        return batch, np.where(where, events, 0)

    def _among_others(
        self,
        positives: Positives,
        users: np.ndarray,
        events: np.ndarray,
        where: np.ndarray,
        width: int,
    ) -> tuple[Batch, np.ndarray]:
        """Returns the batch of targets that may be no positives, after histories that are."""
        ends, starts = positives.before(users, events), positives.events.starts[users]
        where = where & (ends > starts)
        columns = ends[:, None] + np.arange(-width, 0)
        inside = (columns >= starts[:, None]) & where[:, None]
        is_positive = self.events.positive_at(events, where)
        assert is_positive is not None
        batch = Batch(
            history=positives.events.items_at(columns, inside),
            positives=self.events.items_at(events, where),
            labels=self.events.labels_at(events, where),
            is_positive=is_positive,
            where=where,
        )
        return batch, np.where(is_positive, ends, 0)


class WindowBatches(SequenceBatches):
    """One row a user: the newest max_len + 1 training events, a target at every position."""

    def _prepare(self) -> None:
        self.chosen: Examples | None = None
        if self.past is not None:
            self.old = self.events.counts <= self.past.counts
            there = (self.events.counts > 1).astype(np.int32)
            self.chosen = Examples(there, self.old.astype(np.int32), self.past.fraction)

    @property
    def steps_per_epoch(self) -> int:
        rows = self.users if self.chosen is None else self.chosen
        return -(-len(rows) // self.batch_size)

    def _batch(self, epoch: int, index: int, rows: slice | None) -> tuple[Batch, np.ndarray]:
        chosen = self.chosen
        total = len(self.users) if chosen is None else len(chosen)
        numbers = row_numbers(index, self.batch_size, rows)
        real = numbers < total
        numbers = permute(numbers.clip(max=total - 1), total, self.seed, epoch)
        if chosen is None:
            users = self.users[numbers]
        else:
            users, _ = chosen.locate(numbers, self.seed, epoch, 1)
        starts = self.events.starts[users][:, None]
        columns = starts + self.events.counts[users][:, None]
        columns = columns + np.arange(-self.config.max_len - 1, 0)
        items = self.events.items_at(columns, (columns >= starts) & real[:, None])
        history, where = items[:, :-1], items[:, :-1] > 0
        targets = columns[:, 1:]
        if self.past is not None:
            old = self.past.counts[users][:, None]
            counts = (targets - starts >= old) | self.old[users][:, None]
            where &= counts | self.past.replays(targets.clip(min=0), self.seed, epoch)
        batch = Batch(history=history, positives=np.where(where, items[:, 1:], 0), where=where)
        return batch, np.where(where, targets, 0)


class _Packing(NamedTuple):
    """The shuffled windows of an epoch and the rows that hold them, in order."""

    begins: np.ndarray  # (windows,) int64, the event that a window starts with
    lengths: np.ndarray  # (windows,) int32
    rows: np.ndarray  # (rows + 1,) int64, first window of each row, and their number
    old: np.ndarray | None  # (windows,) int32, how many targets are masked unless replayed


class PackedBatches(SequenceBatches):
    """Windows of histories, several to a row, a target at every position that has a next item.

    The number of rows depends on the cuts and on the order of an epoch's windows. All epochs have
    as many steps as the longest of the first few wants; an order that wants more is drawn again.
    The rows are dealt evenly to the steps, so the last rows of a batch may be empty. An epoch's
    windows are held: 12 bytes for each, and 8 for each row.
    """

    def _prepare(self) -> None:
        config = self.config
        self.row_len = config.row_len or config.max_len
        if self.row_len < config.max_len:
            raise UserError(
                f"data.row_len={self.row_len} is shorter than data.max_len={config.max_len}: a "
                "window would not fit its row. Raise row_len or set it to 0."
            )
        most = max(len(self._draw(epoch, 0).rows) - 1 for epoch in range(_PROBES))
        self.steps = -(-most // self.batch_size)
        self.held: tuple[int, _Packing] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.steps

    def _batch(self, epoch: int, index: int, rows: slice | None) -> tuple[Batch, np.ndarray]:
        begins, lengths, bounds, old = self._packing(epoch)
        from_row, to_row = ((index + i) * (len(bounds) - 1) // self.steps for i in range(2))
        numbers = (from_row + row_numbers(0, self.batch_size, rows)).clip(max=to_row)
        first = bounds[numbers]
        count = bounds[(numbers + 1).clip(max=to_row)] - first
        row = np.repeat(np.arange(len(numbers)), count)
        # The windows of consecutive rows lie side by side.
        origin = first[0] if len(first) else 0
        window = origin + np.arange(len(row))
        size = lengths[window]
        before = np.cumsum(size) - size
        place = before - before[first[row] - origin]
        # From windows to positions.
        order = np.arange(size.sum())
        event = np.repeat(begins[window] - before, size) + order
        flat = np.repeat(row * self.row_len + place - before, size) + order
        shape = (len(numbers), self.row_len)
        history, positives, segments = (np.zeros(shape, np.int32) for _ in range(3))
        events = np.zeros(shape, np.int64)
        history.reshape(-1)[flat] = self.events.items_at(event)
        positives.reshape(-1)[flat] = self.events.items_at(event + 1)
        segments.reshape(-1)[flat] = np.repeat(window - first[row] + 1, size)
        events.reshape(-1)[flat] = event + 1
        where = segments > 0
        if old is not None and self.past is not None:
            masked = order < np.repeat(before + old[window], size)
            masked &= ~self.past.replays(event + 1, self.seed, epoch)
            for array in (where, positives, events):
                array.reshape(-1)[flat[masked]] = 0
        batch = Batch(history=history, positives=positives, segments=segments, where=where)
        return batch, events

    def _packing(self, epoch: int) -> _Packing:
        held = self.held
        if held is None or held[0] != epoch:
            self.held = None  # before the next is made: one epoch's windows at a time
            draws = (self._draw(epoch, attempt) for attempt in itertools.count())
            most = self.steps * self.batch_size
            held = epoch, next(packing for packing in draws if len(packing.rows) - 1 <= most)
            self.held = held
        return held[1]

    def _draw(self, epoch: int, attempt: int) -> _Packing:
        random = np.random.default_rng((self.seed, epoch, attempt))
        begins, lengths, old = self._windows(random)
        order = random.permutation(len(begins))
        if old is not None:
            order, old = self._replayed(order, lengths, old)
        begins, lengths = begins[order], lengths[order]
        return _Packing(begins, lengths, _rows(lengths, self.row_len), old)

    def _replayed(
        self, order: np.ndarray, lengths: np.ndarray, old: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Takes windows without a new target out of an order, all but the fraction; the last go."""
        assert self.past is not None
        stale = old == lengths
        kept = round(self.past.fraction * int(stale.sum()))
        order = order[~stale[order] | (np.cumsum(stale[order]) <= kept)]
        return order, np.where(stale, 0, old)[order].astype(np.int32)

    def _windows(
        self, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns first events and lengths of windows, cut at a random shift for each user.

        With a past, also how many of a window's targets are old, from the first on.
        """
        max_len = np.int32(self.config.max_len)
        # An event predicts its successor, so a user's last event is no input.
        inputs = self.events.counts[self.users] - 1
        shift = random.integers(0, max_len, size=len(inputs), dtype=np.int32)
        # Only users longer than a window are cut at a shifted place.
        shift = np.where(inputs > max_len, shift, 0).astype(np.int32)
        count = -(-(inputs + shift) // max_len)
        owner = np.repeat(np.arange(len(inputs), dtype=np.int32), count)
        cut = np.cumsum(count, dtype=np.int64) - count
        cut = (np.arange(len(owner)) - cut[owner]).astype(np.int32) * max_len - shift[owner]
        begin = cut.clip(min=0)
        lengths = np.minimum(cut + max_len, inputs[owner]) - begin
        old = None
        if self.past is not None:
            old = (self.past.counts[self.users][owner] - begin - 1).clip(0, lengths)
        return self.events.starts[self.users][owner] + begin, lengths, old


def _rows(lengths: np.ndarray, row_len: int) -> np.ndarray:
    """Returns the first window of each row, when a row takes windows in order while they fit.

    Ends with the number of windows. The row after the one that starts at window w starts at
    following[w], so the starts are the orbit of window 0. It is found by doubling: when `reached`
    holds 2^k members and `jump` goes 2^k rows on, one more step of both gives twice as many.
    """
    total = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    jump = np.searchsorted(total, total + row_len, side="right") - 1
    reached = np.zeros(len(total), bool)
    reached[0] = True
    while not reached[-1]:
        reached[jump[reached]] = True
        jump = jump[jump]
    return np.flatnonzero(reached)
