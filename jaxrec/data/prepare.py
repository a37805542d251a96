"""From a raw log to a dataset, in memory or on disk."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd

from jaxrec.data.clean import clean
from jaxrec.data.dataset import TRAIN, Dataset, Manifest, fingerprint, open_dataset
from jaxrec.data.downloads import NAMES, default_directory, fetch
from jaxrec.data.readers import check_columns, find_files, read, read_table
from jaxrec.data.recipe import Options, Recipe
from jaxrec.data.splits import split_events
from jaxrec.data.store import check_output, write_dataset
from jaxrec.data.synthetic import synthetic
from jaxrec.data.vocabulary import encode_ids
from jaxrec.typing import UserError

type Source = str | Path | Sequence[str | Path] | pd.DataFrame
type Table = str | Path | pd.DataFrame


def build(
    frame: pd.DataFrame,
    *,
    items: Table | None = None,
    users: Table | None = None,
    sources: Sequence[dict[str, Any]] = (),
    **options: Unpack[Options],
) -> Dataset:
    """Makes a dataset of a data frame, in memory.

    Args:
      frame: the log, one event a row.
      items, users: metadata, a file or a frame with the id column of the log. Its other columns
        are joined to the vocabulary; an id without a row gets nulls, and of several rows of one id
        the first counts.
      sources: what the manifest says of the files that the log came from.
      **options: fields of `Recipe`: columns, cleaning rules and the split.

    Returns:
      The dataset. It depends on each user's own order of rows, not on how users are interleaved.

    Raises:
      UserError: for a log, an option or metadata that does not fit.
    """
    recipe = Recipe(**options)
    check_columns(frame.columns, recipe.columns.values(), "the data frame")
    events, report = clean(frame, recipe)
    split, split_options = split_events(recipe, events)
    user_vocabulary = _vocabulary(events["user"], users, recipe.user_column)
    item_vocabulary = _vocabulary(events["item"], items, recipe.item_column)
    arrays: dict[str, Any] = {
        "users": events["user"].cat.codes.to_numpy().astype(np.int32) + np.int32(1),
        "items": events["item"].cat.codes.to_numpy().astype(np.int32) + np.int32(1),
        "times": events["time"].to_numpy().view(np.int64),
        "split": split,
        "labels": events["label"].to_numpy() if "label" in events else None,
    }
    labels = arrays["labels"]
    manifest = Manifest(
        num_users=len(user_vocabulary),
        num_items=len(item_vocabulary),
        num_events=len(events),
        split=split_options,
        columns=recipe.columns,
        fingerprint=fingerprint(
            *arrays.values(), _hash_table(user_vocabulary), _hash_table(item_vocabulary)
        ),
        user_fingerprint=fingerprint(json.dumps(user_vocabulary["id"].tolist())),
        item_fingerprint=fingerprint(json.dumps(item_vocabulary["id"].tolist())),
        sources=list(sources),
        report=report,
        label_mean=0.0 if labels is None else float(labels[split == TRAIN].mean(dtype=np.float64)),
    )
    return Dataset(
        manifest=manifest,
        user_vocabulary=user_vocabulary,
        item_vocabulary=item_vocabulary,
        **arrays,
    )


def prepare(
    source: Source,
    output: str | Path,
    *,
    items: Table | None = None,
    users: Table | None = None,
    engine: str = "pandas",
    overwrite: bool = False,
    local: str | Path | None = None,
    downloads: str | Path | None = None,
    **options: Unpack[Options],
) -> Dataset:
    """Makes a dataset of a log and writes it to a directory.

    Args:
      source: files, globs or directories of CSV, TSV or Parquet; a data frame; "synthetic"; or the
        name of a public data set, one of `jaxrec.data.downloads.NAMES`. For names, times, labels
        and metadata are known, and columns have the default names.
      output: the directory to make. It appears whole or not at all.
      items, users: metadata, as for `build`.
      engine: what reads the files: "pandas", "duckdb" or "spark".
      overwrite: replace a dataset that is there already.
      local: for a named source, a copy of its archive, instead of the network.
      downloads: where named sources are kept; None means the user's cache directory.
      **options: fields of `Recipe`: columns, cleaning rules and the split.

    Returns:
      The dataset, opened from `output`.

    Raises:
      UserError: for a source, option or output that does not fit.
      OSError: when the disk does not take the files; nothing is left behind.
    """
    check_output(output, overwrite=overwrite)
    name = _named(source)
    known_items: pd.DataFrame | None
    known_users: pd.DataFrame | None = None
    if local is not None and name not in NAMES:
        raise UserError(f"a local copy goes with a named source, one of: {', '.join(NAMES)}.")
    if name is not None:
        asked = "label_column" in options
        options = {"time_column": "timestamp", "label_column": "rating", **options}
        Recipe(**options)  # mistakes are said before a long download
        if name == "synthetic":
            frame, known_items = synthetic(seed=options.get("seed", 0))
            sources = []
        else:
            log = fetch(name, downloads or default_directory(), local=local)
            frame, known_items, known_users = log.events, log.items, log.users
            sources = [_describe(path) for path in log.paths]
        if "rating" not in frame and not asked:
            options["label_column"] = None
        items = known_items if items is None else items
        users = known_users if users is None else users
    else:
        recipe = Recipe(**options)
        text = (recipe.user_column, recipe.item_column)
        frame = read(source, list(recipe.columns.values()), text=text, engine=engine)
        sources = _sources(source, items, users)
    dataset = build(frame, items=items, users=users, sources=sources, **options)
    write_dataset(dataset, output, overwrite=overwrite)
    return open_dataset(output)


def format_report(report: Sequence[dict[str, Any]]) -> str:
    """Returns the cleaning report as an aligned table."""
    names = ("rule", "dropped_events", "left_events", "left_users", "left_items")
    rows = [tuple(name.replace("_", " ") for name in names)]
    rows += [(str(row["rule"]), *(f"{row[name]:,}" for name in names[1:])) for row in report]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )
    return "\n".join(lines)


def _named(source: Source) -> str | None:
    """Returns the name of a named source; a file of that name goes before the name."""
    if not isinstance(source, str | Path | pd.DataFrame) and len(source) == 1:
        (source,) = source
    if isinstance(source, str) and source in (*NAMES, "synthetic") and not Path(source).exists():
        return source
    return None


def _vocabulary(column: pd.Series, table: Table | None, key: str) -> pd.DataFrame:
    ids = pd.Index(column.cat.categories, name="id")
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
    keys = pd.Index(encode_ids(known[key]).astype("str"))
    first = ~keys.duplicated() & ~np.asarray(keys.isna())
    joined = others[first].set_axis(keys[first], axis=0).reindex(ids)
    return joined.rename(columns=str).reset_index()


def _hash_table(table: pd.DataFrame) -> str:
    plain = table.astype({name: "str" for name in table if table[name].dtype == object})
    return fingerprint(
        list(table.columns), pd.util.hash_pandas_object(plain, index=False).to_numpy()
    )


def _sources(source: Source, *tables: Table | None) -> list[dict[str, Any]]:
    files = [] if isinstance(source, pd.DataFrame) else find_files(source)
    for table in tables:
        if isinstance(table, str | Path):
            files += find_files(table)[:1]
    return [_describe(path) for path in files]


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
