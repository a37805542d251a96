"""The last pass of a preparation: numbers, split, arrays, vocabularies and the manifest."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from jaxrec.data.dataset import (
    NOT_POSITIVE,
    SHARD_EVENTS,
    SPLITS,
    TRAIN,
    Dataset,
    Manifest,
    fingerprint,
    vocabulary_fingerprint,
)
from jaxrec.data.histories import Kept
from jaxrec.data.metadata import Metadata, Table, join_metadata, join_to_known, read_metadata
from jaxrec.data.recipe import Recipe
from jaxrec.data.shards import ArrayWriter
from jaxrec.data.splits import make_split, positions
from jaxrec.data.spool import Column, Log
from jaxrec.data.store import write_json
from jaxrec.data.text_files import TextFormat
from jaxrec.typing import UserError

ARRAYS: dict[str, np.dtype] = {
    "users": np.dtype(np.int32),
    "items": np.dtype(np.int32),
    "times": np.dtype(np.int64),
    "split": np.dtype(np.uint8),
    "labels": np.dtype(np.float32),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class First:
    """Users and items that come first in the vocabularies, whether they have events or not.

    Attributes:
      users, items: their vocabularies.
      anew: whether metadata that is given takes the place of theirs; otherwise it is for new ids.
    """

    users: pd.DataFrame
    items: pd.DataFrame
    anew: bool = False


class Sink:
    """Takes the arrays of a dataset from front to back and takes their fingerprints on the way.

    Args:
      directory: where the files go; None keeps the arrays in memory.
      length: events.
      shard_events: events in a file.
      names: which of `ARRAYS` there are.
    """

    def __init__(
        self, directory: Path | None, length: int, shard_events: int, names: Sequence[str]
    ) -> None:
        self.directory = directory
        self._digests = {name: hashlib.sha256() for name in names}
        self._writers: dict[str, ArrayWriter] = {}
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        if directory is not None:
            self._writers = {
                name: ArrayWriter(directory, name, ARRAYS[name], length, shard_events)
                for name in names
            }

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes the next events."""
        for name, digest in self._digests.items():
            values = np.ascontiguousarray(arrays[name], ARRAYS[name])
            digest.update(values.data)
            if self._writers:
                self._writers[name].append(values)
            else:
                self.parts[name].append(values)

    def arrays(self) -> dict[str, Any]:
        """Returns what was kept in memory, by field of `Dataset`."""
        empty: list[np.ndarray] = [np.empty(0, np.uint8)]
        joined = {
            name: np.concatenate(parts or empty).astype(ARRAYS[name], copy=False)
            for name, parts in self.parts.items()
        }
        return {name: joined.get(name) for name in ARRAYS}

    def fingerprint(self, *tables: pd.DataFrame) -> str:
        """Returns the fingerprint of everything that training reads."""
        arrays = [f"{name} {digest.hexdigest()}" for name, digest in self._digests.items()]
        return fingerprint(*arrays, *(_hash_table(table) for table in tables))


def assemble(
    events: Mapping[str, Column],
    kept: Kept,
    recipe: Recipe,
    log: Log,
    *,
    users: Table | None,
    items: Table | None,
    form: TextFormat | None = None,
    sources: Sequence[dict[str, Any]],
    directory: Path | None = None,
    shard_events: int = SHARD_EVENTS,
    earlier: Dataset | None = None,
    first: First | None = None,
) -> Dataset:
    """Makes the dataset of the events that are left, in memory or in a directory.

    Args:
      events: columns as in `jaxrec.data.spool.Log`.
      kept: which of them are left.
      recipe: how to split.
      log: the ids, and what its times are; its events may be others by now.
      users, items: metadata; see `jaxrec.data.prepare`.
      form: how text files of metadata are written.
      sources: what the manifest says of the files that the log came from.
      directory: where the files go; None keeps the arrays in memory.
      shard_events: events in a file.
      earlier: the dataset that the events were appended to.
      first: whose ids come first, `earlier`'s or others.

    Returns:
      The dataset. With a directory its arrays are empty, and `open_dataset` opens the true one.

    Raises:
      UserError: when nothing is left for training, or metadata does not fit.
      OSError: when the disk does not take the files.
    """
    known = (None, None) if first is None else (first.users, first.items)
    anew = first is not None and first.anew
    tables, notes = [], list[str]()
    for role, ids, table, before in (
        ("user", log.users[kept.users], users, known[0]),
        ("item", log.items[kept.items], items, known[1]),
    ):
        metadata = None if table is None else read_metadata(table, role, recipe, form)
        joined, said = _vocabulary(ids, metadata, role, before, anew=anew)
        tables.append(joined)
        notes += said
    times = {name: events[name] for name in ("user", "item", "time") if name in events}
    cuts = None
    if earlier is not None and recipe.split == "temporal" and recipe.valid_from is None:
        cuts = earlier.manifest.split["valid_from"], earlier.manifest.split["test_from"]
    split, options = make_split(
        recipe,
        lambda: (chunk["time"] for chunk in kept.chunks(times)),
        log.users,
        unit=log.time_unit,
        cuts=cuts,
    )
    names = [name for name in ARRAYS if name != "labels" or "label" in recipe.columns]
    sink = Sink(directory, kept.num_events, shard_events, names)
    user_index, item_index = (
        np.cumsum(marks, dtype=np.int32) for marks in (kept.users, kept.items)
    )
    parts, label_sum = np.zeros(2 * NOT_POSITIVE, np.int64), 0.0
    lengths = np.zeros(len(tables[0]) + 1, np.int64)
    evaluated = _Evaluated()
    for chunk in kept.chunks(events):
        if "time" not in chunk:
            chunk["time"] = positions(chunk["user"])[0]
        arrays: dict[str, Any] = {
            "users": user_index[chunk["user"]],
            "items": item_index[chunk["item"]],
            "times": chunk["time"],
            "labels": chunk.get("label"),
        }
        if "label" in chunk:
            chunk["positive"] = recipe.is_positive(chunk["label"])
        arrays["split"] = split(chunk)
        trains = arrays["split"] == TRAIN
        if "label" in chunk:
            arrays["split"] = arrays["split"] + NOT_POSITIVE * ~chunk["positive"]
        sink.append(arrays)
        evaluated.add(arrays["users"], arrays["split"])
        parts += np.bincount(arrays["split"], minlength=len(parts))
        lengths += np.bincount(arrays["users"], minlength=len(lengths))
        if "label" in chunk:
            label_sum += float(chunk["label"][trains].sum(dtype=np.float64))
    if not parts[TRAIN]:
        raise UserError(_nothing_to_train_on(recipe, int(parts[TRAIN + NOT_POSITIVE])))
    others = {name: int(parts[i + NOT_POSITIVE]) for name, i in SPLITS.items()}
    options["events"] = {name: int(parts[i]) for name, i in SPLITS.items()}
    if any(others.values()):
        options["not_positive"] = others
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    notes = [*notes, *_others(recipe, others), *evaluated.notes(tables[0]["id"])]
    report = kept.report.noted(notes)
    day_first = log.day_first
    if earlier is not None and day_first is None:
        day_first = earlier.manifest.day_first
    manifest = Manifest(
        num_users=len(tables[0]),
        num_items=len(tables[1]),
        num_events=kept.num_events,
        split=options,
        columns=recipe.columns,
        fingerprint=sink.fingerprint(*tables),
        user_fingerprint=vocabulary_fingerprint(tables[0]),
        item_fingerprint=vocabulary_fingerprint(tables[1]),
        sources=[*(earlier.manifest.sources if earlier else ()), *sources],
        report=list(report.rows),
        label_mean=label_sum / int(parts[TRAIN] + parts[TRAIN + NOT_POSITIVE]),
        recipe=dataclasses.asdict(recipe) | {"missing_words": list(recipe.missing_words)},
        time_unit=log.time_unit,
        time_source=log.time_source,
        day_first=day_first,
        shard_events=shard_events,
        lineage=_lineage(earlier, sources),
    )
    dataset = Dataset(
        manifest=manifest,
        **sink.arrays(),
        user_vocabulary=tables[0],
        item_vocabulary=tables[1],
        stored_offsets=offsets,
    )
    if directory is not None:
        _write_rest(dataset, offsets, directory)
    return dataset


def _others(recipe: Recipe, others: dict[str, int]) -> list[str]:
    if not any(others.values()):
        return []
    parts = ", ".join(f"{count:,} for {name}" for name, count in others.items())
    return [
        f"{sum(others.values()):,} events are not positive, as their labels are not "
        f"{_least(recipe)} (positive_from): {parts}; they train labels and are no targets of "
        "ranking and no history"
    ]


def _least(recipe: Recipe) -> str:
    return "above 0" if recipe.positive_from is None else f"from {recipe.positive_from:g} on"


def _nothing_to_train_on(recipe: Recipe, others: int) -> str:
    if others:
        return (
            f"none of the {others:,} events for training is positive, which are those with labels "
            f"{_least(recipe)}. Set positive_from to the least label that is."
        )
    return (
        f"split={recipe.split} leaves no event for training. "
        "Move its cuts, lower its fractions, or give a longer log."
    )


def _lineage(earlier: Dataset | None, sources: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if earlier is None:
        return []
    step = {
        "parent": earlier.manifest.fingerprint,
        "parent_events": earlier.manifest.num_events,
        "sources": list(sources),
    }
    return [*earlier.manifest.lineage, step]


def _write_rest(dataset: Dataset, offsets: np.ndarray, directory: Path) -> None:
    writer = ArrayWriter(directory, "offsets", offsets.dtype, len(offsets), len(offsets))
    writer.append(offsets)
    for name in ("user", "item"):
        path = directory / f"{name}_vocabulary.parquet"
        try:
            getattr(dataset, f"{name}_vocabulary").to_parquet(path, index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(
                f"the {name} metadata has a column that holds values of several types ({error}). "
                "Give each column one type."
            ) from None
    write_json(directory / "report.json", dataset.manifest.report)
    write_json(directory / "manifest.json", dataclasses.asdict(dataset.manifest))


class _Evaluated:
    """Counts the users who have no target in a part of the split, or no history before it."""

    def __init__(self) -> None:
        self._users = 0
        self._lacking: dict[tuple[str, str], tuple[int, int]] = {}

    def add(self, users: np.ndarray, split: np.ndarray) -> None:
        """Takes the events of whole users."""
        if not len(users):
            return
        first = int(users[0])  # users ascend
        has = np.zeros((int(users[-1]) - first + 1, 2 * NOT_POSITIVE), bool)
        has[users - first, split] = True
        here = has.any(axis=1)
        self._users += int(here.sum())
        for part in ("valid", "test"):
            place = SPLITS[part]
            target, history = has[:, place], has[:, :place].any(axis=1)
            lacks = {"an event in it": here & ~target, "an event before it": target & ~history}
            for what, who in lacks.items():
                count, example = self._lacking.get((part, what), (0, 0))
                if who.any():
                    example = example or first + int(np.argmax(who))
                    self._lacking[part, what] = count + int(who.sum()), example

    def notes(self, ids: pd.Series) -> list[str]:
        """Returns what the report says of the parts in which users are missing."""
        said = []
        for part in ("valid", "test"):
            lacking = {what: n for (name, what), n in self._lacking.items() if name == part}
            missing = sum(count for count, _ in lacking.values())
            if missing:
                why = ", ".join(
                    f"{count:,} without {what}, such as {ids.iloc[user - 1]!r}"
                    for what, (count, user) in lacking.items()
                )
                left = self._users - missing
                said.append(f"{part}: {left:,} of {self._users:,} users can be evaluated; {why}")
        return said


def _vocabulary(
    ids: pd.Index, metadata: Metadata | None, role: str, known: pd.DataFrame | None, *, anew: bool
) -> tuple[pd.DataFrame, list[str]]:
    if known is None or (anew and metadata is not None):
        return join_metadata(ids, metadata, role, ids)
    fresh, notes = join_metadata(ids[len(known) :], metadata, role, ids)
    return join_to_known(known, fresh), notes


def _hash_table(table: pd.DataFrame) -> str:
    plain = table.astype({name: "str" for name in table if table[name].dtype == object})
    return fingerprint(
        list(table.columns), pd.util.hash_pandas_object(plain, index=False).to_numpy()
    )
