"""A prepared data set: arrays that stay on disk until they are touched, with their vocabularies.

A dataset directory holds
  manifest.json        counts, column roles, split, fingerprints, source checksums, what was dropped
  users.npy            (num_events,) int32 user index of each event, ascending
  items.npy            (num_events,) int32 item index, in time order inside a user
  times.npy            (num_events,) int64, in the manifest's `time_unit`
  labels.npy           (num_events,) float32, only when the log has labels
  split.npy            (num_events,) uint8: TRAIN, VALID or TEST; NOT_POSITIVE more for events that
                       are no target of ranking, no history and no popularity, as their label says
  offsets.npy          (num_users + 2,) int64: where the events of each user begin
  user_vocabulary.parquet, item_vocabulary.parquet   row i holds what index i + 1 stands for: the
                       column `id` as text and, for items, the columns of the metadata file

An array of very many events lies in several files: items-00000-of-00003.npy and so on.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from jaxrec.data.shards import ShardedArray, num_shards, shard_names
from jaxrec.data.spool import CHUNK_EVENTS
from jaxrec.ids import id_text
from jaxrec.typing import UserError

FORMAT = 3
SHARD_EVENTS = 1 << 26
TRAIN, VALID, TEST = 0, 1, 2
SPLITS = {"train": TRAIN, "valid": VALID, "test": TEST}
# Added to the split of an event whose label is below `Recipe.positive_from`, so that whoever looks
# for TRAIN finds positive events alone, and has to ask for the others: `split_alone`.
NOT_POSITIVE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared data set holds; saved as `manifest.json`.

    Attributes:
      num_users: number of users; their indices are 1..num_users.
      num_items: number of items; their indices are 1..num_items.
      num_events: number of events over all splits.
      split: the split's name and its options, such as {"name": "leave_last_out"}.
      columns: role to column name of the source, such as {"user": "user_id", "item": "item_id"}.
      fingerprint: SHA-256 over everything that training reads.
      user_fingerprint: SHA-256 over the user vocabulary, in order.
      item_fingerprint: SHA-256 over the item vocabulary, in order.
      sources: name, bytes and SHA-256 of each source file.
      report: what cleaning dropped and why, one row a rule.
      label_mean: mean label of the training events; 0 without labels.
      recipe: the fields of `Recipe` that the data set was prepared with.
      time_unit: what times count: "ns", nanoseconds since 1970 (UTC); "counter", whole numbers of
        the log's own; "row", positions in a user's history, as rows were in time order.
      time_source: what the log held: "s", "ms", "us" or "ns" since 1970, "dates", "counter" or
        "row". Appended events have the same.
      day_first: how dates such as 28/01/2024 were read; None when there were none.
      shard_events: events in each file of an array but the last.
      lineage: for each time that events were appended: the fingerprint of the data set before
        (`parent`), its events, and the sources of those that were appended.
    """

    num_users: int
    num_items: int
    num_events: int
    split: dict[str, Any]
    columns: dict[str, str]
    fingerprint: str
    user_fingerprint: str
    item_fingerprint: str
    sources: list[dict[str, Any]]
    report: list[dict[str, Any]]
    label_mean: float = 0.0
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    time_unit: str = "row"
    time_source: str = "row"
    day_first: bool | None = None
    shard_events: int = SHARD_EVENTS
    lineage: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    format: int = FORMAT

    def unix_seconds(self, times: np.ndarray) -> np.ndarray:
        """Returns times of this data set as seconds since 1970, to compare with a clock.

        Args:
          times: (N,) int64, such as `Dataset.times`.

        Returns:
          (N,) float64: seconds since 1970 for the unit "ns". The other units say nothing of a
          clock; their numbers stay as they are.
        """
        seconds = np.asarray(times, np.float64)
        return seconds / 1e9 if self.time_unit == "ns" else seconds


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Events sorted by user, then time, then source order. Arrays may be memory maps: do not write.

    Where events lie in several files, an array is a `ShardedArray`: it is indexed as an array is,
    so it has the type of one here. For more than indexing and comparing, take `np.asarray` of it.

    Attributes:
      manifest: counts and fingerprints.
      users, items: (num_events,) int32 indices from 1.
      times: (num_events,) int64.
      split: (num_events,) uint8, one of TRAIN, VALID, TEST, and NOT_POSITIVE more where the label
        says so.
      labels: (num_events,) float32, or None.
      user_vocabulary, item_vocabulary: frames with a text column `id`; row i is index i + 1. Item
        metadata such as `title` and `genres` are further columns.
      trained_rows: what `trained` says, where a run knows more than its events tell.
    """

    manifest: Manifest
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    split: np.ndarray
    labels: np.ndarray | None
    user_vocabulary: pd.DataFrame
    item_vocabulary: pd.DataFrame
    stored_offsets: np.ndarray | None = None
    trained_rows: Mapping[str, np.ndarray] | None = None

    @property
    def num_users(self) -> int:
        return self.manifest.num_users

    @property
    def num_items(self) -> int:
        return self.manifest.num_items

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """(num_users + 2,) int64: the events of user u are offsets[u]:offsets[u + 1]."""
        if self.stored_offsets is not None:
            return self.stored_offsets
        counts = np.bincount(self.users, minlength=self.num_users + 1)
        return np.concatenate([[0], np.cumsum(counts)])

    @functools.cached_property
    def item_counts(self) -> np.ndarray:
        """(num_items + 1,) int64: training events of each item; entry 0, padding, is 0."""
        counts = np.zeros(self.num_items + 1, np.int64)
        for start in range(0, len(self.items), CHUNK_EVENTS):
            where = slice(start, start + CHUNK_EVENTS)
            trains = self.split[where] == TRAIN
            counts += np.bincount(self.items[where][trains], minlength=len(counts))
        return counts

    def history(self, user: int) -> np.ndarray:
        """Returns the positive events of a user in all splits: (N,) int32 items, oldest first."""
        where = slice(*self.offsets[[user, user + 1]])
        found: np.ndarray = self.items[where][self.split[where] < NOT_POSITIVE]
        return found

    @functools.cached_property
    def trained(self) -> Mapping[str, np.ndarray]:
        """Which rows were ever trained: "user" (num_users + 1,) and "item" (num_items + 1,) bool.

        Those with a training event in this data set, unless `trained_rows` says otherwise. The row
        of any other user or item is what it was born with, and tells nothing of them.
        """
        if self.trained_rows is not None:
            return self.trained_rows
        rows = {"user": (self.users, self.num_users), "item": (self.items, self.num_items)}
        found = {role: np.zeros(count + 1, bool) for role, (_, count) in rows.items()}
        for start in range(0, len(self.split), CHUNK_EVENTS):
            where = slice(start, start + CHUNK_EVENTS)
            trains = np.asarray(self.split[where]) == TRAIN
            for role, (indices, _) in rows.items():
                found[role][np.asarray(indices[where])[trains]] = True
        return found

    def user_index(self, user_id: object) -> int:
        """Returns the index of an original user id. Raises UserError for an id never seen."""
        return _lookup(self.user_vocabulary, user_id, "user")

    def item_index(self, item_id: object) -> int:
        """Returns the index of an original item id. Raises UserError for an id never seen."""
        return _lookup(self.item_vocabulary, item_id, "item")

    def item_names(self, indices: np.ndarray) -> list[str]:
        """Returns what to call items in front of people: the title, or the id without one."""
        rows = self.item_vocabulary.iloc[np.asarray(indices) - 1]
        ids = rows["id"].tolist()
        titles = rows["title"].tolist() if "title" in rows else ids
        return [
            str(name if isinstance(title, float) and title != title or title is pd.NA else title)
            for name, title in zip(ids, titles, strict=True)
        ]


def split_alone(split: np.ndarray) -> np.ndarray:
    """Returns TRAIN, VALID or TEST of events, positive or not."""
    return np.asarray(split) % NOT_POSITIVE


def open_dataset(path: str | Path) -> Dataset:
    """Opens a directory that `prepare` wrote; arrays are memory-mapped.

    Raises:
      UserError: when the directory is not a whole dataset of this format.
    """
    path = Path(path)
    try:
        fields = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path} is not a prepared dataset (it has no manifest.json). "
            "Make one with scripts/prepare.py --input=FILE --output=DIR."
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path / 'manifest.json'} is damaged ({error}). Prepare the dataset again."
        ) from None
    if fields.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {fields.get('format')}; this version reads format {FORMAT}. "
            "Prepare it again."
        )
    manifest = Manifest(**fields)
    load = functools.partial(_load, path, manifest)
    vocabularies = {}
    for name, count in (("user", manifest.num_users), ("item", manifest.num_items)):
        file = path / f"{name}_vocabulary.parquet"
        try:
            vocabularies[name] = pd.read_parquet(file)
        except (OSError, ValueError) as error:
            raise _damaged(file, str(error)) from None
        if len(vocabularies[name]) != count:
            raise _damaged(file, f"{len(vocabularies[name])} rows, and the manifest says {count}")
    return Dataset(
        manifest=manifest,
        users=load("users"),
        items=load("items"),
        times=load("times"),
        split=load("split"),
        labels=load("labels") if "label" in manifest.columns else None,
        user_vocabulary=vocabularies["user"],
        item_vocabulary=vocabularies["item"],
        stored_offsets=_load_file(path / "offsets.npy", manifest.num_users + 2),
    )


def _load(path: Path, manifest: Manifest, name: str) -> np.ndarray:
    length, size = manifest.num_events, manifest.shard_events
    names = shard_names(name, num_shards(length, size))
    parts = [
        _load_file(path / file, min(size, length - number * size))
        for number, file in enumerate(names)
    ]
    return parts[0] if len(parts) == 1 else cast(np.ndarray, ShardedArray(parts))


def _load_file(path: Path, length: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, str(error)) from None
    if array.shape != (length,):
        raise _damaged(path, f"it has the shape {array.shape}, and the manifest says ({length},)")
    return array


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is missing or damaged ({reason}). Prepare the dataset again.")


def fingerprint(*parts: object) -> str:
    """Returns the SHA-256 of arrays (as bytes) and other values (as text), in order."""
    digest = hashlib.sha256()
    for part in parts:
        data = np.ascontiguousarray(part) if isinstance(part, np.ndarray) else str(part).encode()
        digest.update(len(memoryview(data).cast("B")).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def vocabulary_fingerprint(vocabulary: pd.DataFrame) -> str:
    """Returns the SHA-256 of the ids of a vocabulary, in order."""
    return fingerprint(json.dumps(vocabulary["id"].tolist()))


def _lookup(vocabulary: pd.DataFrame, original: object, what: str) -> int:
    rows = np.flatnonzero((vocabulary["id"] == id_text(original)).to_numpy())
    if not len(rows):
        raise UserError(
            f"{what} {original!r} is not in the vocabulary of {len(vocabulary):,} {what}s that the "
            "dataset was prepared with. Use one of those (for example "
            f"{vocabulary['id'].iloc[0]!r})."
        )
    return int(rows[0]) + 1
