"""Training on what is new, with some of the old: so that a model follows without forgetting."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec.data.dataset import Dataset
from jaxrec.data.shuffle import chance, permute
from jaxrec.data.training_events import locate
from jaxrec.data.vocabulary import id_texts
from jaxrec.typing import Batch, UserError

TRAINING_EVENTS = "training_events"  # the column of a file of users that `Replay` reads
NOTHING = (
    "there is nothing to train on: no training event is new, and data.fraction, of the old ones "
    "that are replayed, is 0 or leaves none. Append new events, or raise the fraction."
)
_EVENTS = 2**32  # a key that no layout uses for its shuffles


class Past(NamedTuple):
    """What an earlier run was trained on.

    Attributes:
      counts: (num_users + 1,) int32; the first so many training events of a user are old.
      fraction: of the old examples that an epoch replays, in [0, 1].
    """

    counts: np.ndarray
    fraction: float

    def replays(self, events: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Returns bool: which of the old events an epoch draws one by one."""
        return chance(events, seed, epoch, _EVENTS) < self.fraction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """Examples whose target is new, and in each epoch a fraction of the old ones.

    An event is old when the earlier run had it for training, which is decided by number: of a
    user who had n training events then, the first n are old. That is right when events come after
    those that were there, as those of another day do; of one that comes late, in the middle of a
    history, a later event takes its place. An event that was for validation or test then and is for
    training now is new. The histories before the targets are whole in any case.

    Which old examples an epoch replays depends on (seed, epoch) alone. With targets in every
    position, rows are drawn: a row that holds a new target is always there, with its old targets
    masked but for the fraction; of the other rows the fraction is drawn, with all targets.

    Attributes:
      data: how events become batches, such as `SequenceData`.
      since: Parquet file with the columns `id` and `training_events` of the earlier run's users, as
        `train` leaves it in its workdir: vocabularies/user.parquet. It is read when training
        starts, and not to evaluate or serve.
      fraction: of the old examples an epoch replays, in [0, 1].
    """

    data: Any
    since: str
    fraction: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise UserError(f"data.fraction, of replay, must be in [0, 1]; got {self.fraction}.")
        inner = self.data
        while hasattr(inner, "data"):
            if isinstance(inner, Replay):
                raise UserError("Replay of a Replay: what is old is old since one run.")
            inner = inner.data

    @property
    def max_len(self) -> int:
        """Longest history that a model is shown."""
        return int(self.data.max_len)

    def batches(self, dataset: Dataset, batch_size: int, seed: int) -> Any:
        """Returns the training batches.

        Raises:
          UserError: when the file cannot be read, or there is nothing to train on.
        """
        past = Past(_old_counts(dataset, self.since), self.fraction)
        return self.data.batches(dataset, batch_size, seed, past=past)

    def requests(self, users: np.ndarray, histories: np.ndarray) -> Batch:
        """Returns what a model is shown to serve users (B,) with histories (B, max_len)."""
        return self.data.requests(users, histories)


def _old_counts(dataset: Dataset, since: str) -> np.ndarray:
    try:
        known = pd.read_parquet(since, columns=["id", TRAINING_EVENTS])
    except (OSError, ValueError) as error:
        raise UserError(
            f"replay cannot read what the earlier run was trained on, {since} "
            f"({type(error).__name__}). It is made by scripts/train.py in the workdir of the run."
        ) from None
    counts = known.set_index(id_texts(known["id"]))[TRAINING_EVENTS]
    here = counts.reindex(id_texts(dataset.user_vocabulary["id"])).fillna(0).to_numpy(np.int32)
    return np.concatenate([np.zeros(1, np.int32), here])


class Examples:
    """The examples of an epoch by number: all that are new, then those drawn of the old ones.

    Args:
      counts: (num_users + 1,) examples of each user, in time order.
      old: (num_users + 1,) how many of them are old, from the first on.
      fraction: of the old ones an epoch has; without old ones it does not matter.
    """

    def __init__(self, counts: np.ndarray, old: np.ndarray | None, fraction: float):
        self.old, self.old_ends, self.replayed = old, np.zeros(1, np.int64), 0
        if old is not None:
            self.old = np.minimum(old, counts)
            self.old_ends = np.cumsum(self.old, dtype=np.int64)
            self.replayed = round(fraction * int(self.old_ends[-1]))
            counts = counts - self.old
        self.new_ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.new_ends[-1]) + self.replayed

    def locate(self, numbers: np.ndarray, *key: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns users and positions among each user's examples, for numbers below the length.

        Args:
          key: decides, with the epoch in it, which old ones are drawn.
        """
        fresh = int(self.new_ends[-1])
        users, positions = locate(self.new_ends, numbers.clip(max=max(fresh - 1, 0)))
        if self.old is None:
            return users, positions
        users = users.clip(max=len(self.old) - 1)  # without any new example there is no user
        positions = positions + self.old[users]
        if not self.replayed:
            return users, positions
        drawn = permute((numbers - fresh).clip(min=0), int(self.old_ends[-1]), *key)
        old_users, old_positions = locate(self.old_ends, drawn)
        new = numbers < fresh
        return np.where(new, users, old_users), np.where(new, positions, old_positions)
