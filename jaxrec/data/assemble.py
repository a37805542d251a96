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
    SHARD_EVENTS,
    SPLITS,
    TRAIN,
    Dataset,
    Manifest,
    fingerprint,
    vocabulary_fingerprint,
)
from jaxrec.data.histories import Kept
from jaxrec.data.readers import check_columns, read_table
from jaxrec.data.recipe import Recipe
from jaxrec.data.shards import ArrayWriter
from jaxrec.data.splits import make_split, positions
from jaxrec.data.spool import Column
from jaxrec.data.store import write_json
from jaxrec.data.vocabulary import id_texts
from jaxrec.typing import UserError

type Table = str | Path | pd.DataFrame

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
    *,
    user_ids: pd.Index,
    item_ids: pd.Index,
    dates: bool,
    users: Table | None,
    items: Table | None,
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
      user_ids, item_ids: the original ids.
      dates: whether times are nanoseconds since 1970.
      users, items: metadata; see `jaxrec.data.prepare`.
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
    tables = (
        _vocabulary(user_ids[kept.users], users, recipe.user_column, known[0], anew=anew),
        _vocabulary(item_ids[kept.items], items, recipe.item_column, known[1], anew=anew),
    )
    times = {name: events[name] for name in ("user", "item", "time") if name in events}
    cuts = None
    if earlier is not None and recipe.split == "temporal" and recipe.valid_from is None:
        cuts = earlier.manifest.split["valid_from"], earlier.manifest.split["test_from"]
    split, options = make_split(
        recipe,
        lambda: (chunk["time"] for chunk in kept.chunks(times)),
        user_ids,
        dates=dates,
        cuts=cuts,
    )
    names = [name for name in ARRAYS if name != "labels" or "label" in recipe.columns]
    sink = Sink(directory, kept.num_events, shard_events, names)
    user_index, item_index = (
        np.cumsum(marks, dtype=np.int32) for marks in (kept.users, kept.items)
    )
    parts, label_sum = np.zeros(len(SPLITS), np.int64), 0.0
    lengths = np.zeros(len(tables[0]) + 1, np.int64)
    for chunk in kept.chunks(events):
        if "time" not in chunk:
            chunk["time"] = positions(chunk["user"])[0]
        arrays: dict[str, Any] = {
            "users": user_index[chunk["user"]],
            "items": item_index[chunk["item"]],
            "times": chunk["time"],
            "split": split(chunk),
            "labels": chunk.get("label"),
        }
        sink.append(arrays)
        parts += np.bincount(arrays["split"], minlength=len(parts))
        lengths += np.bincount(arrays["users"], minlength=len(lengths))
        if "label" in chunk:
            label_sum += float(chunk["label"][arrays["split"] == TRAIN].sum(dtype=np.float64))
    if not parts[TRAIN]:
        raise UserError(
            f"split={recipe.split} leaves no event for training. "
            "Move its cuts, lower its fractions, or give a longer log."
        )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    manifest = Manifest(
        num_users=len(tables[0]),
        num_items=len(tables[1]),
        num_events=kept.num_events,
        split=options | {"events": {name: int(parts[i]) for name, i in SPLITS.items()}},
        columns=recipe.columns,
        fingerprint=sink.fingerprint(*tables),
        user_fingerprint=vocabulary_fingerprint(tables[0]),
        item_fingerprint=vocabulary_fingerprint(tables[1]),
        sources=[*(earlier.manifest.sources if earlier else ()), *sources],
        report=list(kept.report.rows),
        label_mean=label_sum / int(parts[TRAIN]),
        recipe=dataclasses.asdict(recipe),
        time_unit="ns" if dates else "counter" if "time" in recipe.columns else "row",
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


def _vocabulary(
    ids: pd.Index, table: Table | None, key: str, known: pd.DataFrame | None, *, anew: bool
) -> pd.DataFrame:
    if known is None or (anew and table is not None):
        return _with_metadata(ids, table, key)
    fresh = _with_metadata(ids[len(known) :], table, key)
    return pd.concat([known, fresh], ignore_index=True) if len(fresh) else known


def _with_metadata(ids: pd.Index, table: Table | None, key: str) -> pd.DataFrame:
    ids = ids.rename("id")
    if table is None:
        return ids.to_frame(index=False)
    known: pd.DataFrame = read_table(table, key) if isinstance(table, str | Path) else table
    check_columns(known.columns, [key], "the metadata")
    others = known.drop(columns=key)
    if "id" in others:
        raise UserError(
            "the metadata has a column 'id' beside the id column "
            f"{key!r}; that name is taken in the vocabulary. Rename it."
        )
    keys = pd.Index(id_texts(known[key]))
    first = ~keys.duplicated() & ~np.asarray(keys.isna())
    joined = others[first].set_axis(keys[first], axis=0).reindex(ids)
    return joined.rename(columns=str).reset_index()


def _hash_table(table: pd.DataFrame) -> str:
    plain = table.astype({name: "str" for name in table if table[name].dtype == object})
    return fingerprint(
        list(table.columns), pd.util.hash_pandas_object(plain, index=False).to_numpy()
    )
