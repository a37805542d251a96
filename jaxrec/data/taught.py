"""Batches that carry what a teacher recommends at each target, from files written beforehand.

A directory of labels holds
  labels.json                       of which dataset and teacher they are, and their sizes
  items-00000-of-00003.npy, ...     (n, K) int32, the teacher's best items at each event, 0 for none
  scores-00000-of-00003.npy, ...    (n, K) float16, their scores less the best one's

Row e of all files together belongs to event e, as `TrainingEvents.starts` counts them.
`jaxrec.distillation.write_labels` writes them.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data.dataset import Dataset
from jaxrec.data.replay import Past
from jaxrec.data.shards import num_shards, shard_names
from jaxrec.typing import Batch, UserError

ITEMS, SCORES = "taught_items", "taught_scores"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taught:
    """Another data config, whose batches also carry a teacher's labels.

    Batches have the features "taught_items", positives.shape + (K,) int32, and "taught_scores", of
    the same shape, float32; both are 0 where the teacher says nothing.

    Attributes:
      data: the data config, such as `SequenceData`.
      labels: directory of the labels, which must be of the dataset that is trained on.
    """

    data: Any
    labels: str

    def __post_init__(self) -> None:
        inner = self.data
        while hasattr(inner, "data"):
            if isinstance(inner, Taught):
                raise UserError("Taught of a Taught: a batch carries the labels of one teacher.")
            inner = inner.data

    @property
    def max_len(self) -> int:
        """The longest history that a model is shown."""
        return int(self.data.max_len)

    def batches(
        self, dataset: Dataset, batch_size: int, seed: int, *, past: Past | None = None
    ) -> "TaughtBatches":
        """Returns the training batches of a dataset. Raises UserError for labels of another.

        Args:
          past: what is old, for `Replay`; None means nothing.
        """
        inner = self.data.batches(dataset, batch_size, seed, **({"past": past} if past else {}))
        if not hasattr(inner, "located"):
            raise UserError(
                f"Taught wants batches that say which event each target is, and those of "
                f"{type(self.data).__name__} do not. Use SequenceData or PairData."
            )
        return TaughtBatches(inner, Labels.open(self.labels, dataset))

    def requests(self, users: np.ndarray, histories: np.ndarray) -> Batch:
        """Returns what a model is shown to serve users (B,) with histories (B, max_len)."""
        found: Batch = self.data.requests(users, histories)
        return found


class TaughtBatches:
    """The batches of another data config with labels; addressable by step and row as those are."""

    def __init__(self, inner: Any, labels: "Labels"):
        self.inner, self.labels = inner, labels

    @property
    def steps_per_epoch(self) -> int:
        return int(self.inner.steps_per_epoch)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of histories that batches come in; empty for one."""
        return tuple(getattr(self.inner, "widths", ()))

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Returns the batch of a global step, counted from 0, or some of its rows."""
        return self.located(step, rows)[0]

    def located(self, step: int, rows: slice | None = None) -> tuple[Batch, np.ndarray]:
        """Returns the batch, and the number of the event that each target is."""
        batch, events = self.inner.located(step, rows)
        where = np.broadcast_to(batch.where[..., None], (*events.shape, self.labels.num_labels))
        items, scores = self.labels.at(events)
        taught = {
            ITEMS: np.where(where, items, 0),
            SCORES: np.where(where, scores, 0).astype(np.float32),
        }
        return batch.replace(features=(batch.features or {}) | taught), events


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a teacher recommends at each event; arrays stay on disk.

    Attributes:
      items, scores: parts of (shard_events, K), the last of which may be shorter.
      shard_events: rows of every part but the last.
      num_labels: K.
    """

    items: Sequence[np.ndarray]
    scores: Sequence[np.ndarray]
    shard_events: int
    num_labels: int

    @classmethod
    def open(cls, directory: str | Path, dataset: Dataset) -> "Labels":
        """Opens a directory of labels.

        Raises:
          UserError: when it is absent, not whole, or of another dataset.
        """
        told = read_about(directory)
        if told is None:
            raise UserError(
                f"{directory} holds no labels. Write them: scripts/teach.py --workdir=TEACHER "
                f"--output={directory}."
            )
        here = dataset.manifest.fingerprint
        if told["dataset"] != here:
            raise UserError(
                f"the labels in {directory} are of another dataset ({told['dataset'][:12]}) than "
                f"this one ({here[:12]}). Write them again for this one: scripts/teach.py."
            )
        parts: dict[str, list[np.ndarray]] = {}
        for name in ("items", "scores"):
            parts[name] = []
            for file in files_of(directory, name, told["num_events"], told["shard_events"]):
                try:
                    parts[name].append(np.load(file, mmap_mode="r"))
                except (OSError, ValueError, EOFError):
                    raise UserError(
                        f"{file} is missing or damaged. Run scripts/teach.py again: it goes on "
                        "where it stopped."
                    ) from None
        return cls(parts["items"], parts["scores"], told["shard_events"], told["num_labels"])

    def at(self, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns items, events.shape + (K,) int32, and scores, the same in float16."""
        flat = events.reshape(-1)
        items = np.empty((len(flat), self.num_labels), np.int32)
        scores = np.empty((len(flat), self.num_labels), np.float16)
        owner, place = np.divmod(flat, self.shard_events)
        for number in np.unique(owner):
            mine = owner == number
            items[mine] = self.items[number][place[mine]]
            scores[mine] = self.scores[number][place[mine]]
        shape = (*events.shape, self.num_labels)
        return items.reshape(shape), scores.reshape(shape)


def read_about(directory: str | Path) -> dict[str, Any] | None:
    """Returns what labels.json says; None without one. Raises UserError when it is damaged."""
    path = Path(directory) / "labels.json"
    try:
        told: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{path} is damaged. Remove {directory} and write it again.") from None
    return told


def files_of(directory: str | Path, name: str, num_events: int, shard_events: int) -> list[Path]:
    """Returns the files of "items" or "scores", in order."""
    names = shard_names(name, num_shards(num_events, shard_events))
    return [Path(directory) / file for file in names]
