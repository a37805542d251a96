"""What is known of users and items: read by the rules of logs, and joined to a vocabulary."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec.data.cells import typed_cells
from jaxrec.data.engines import to_frame
from jaxrec.data.files import find_files
from jaxrec.data.readers import (
    File,
    ParquetFile,
    check_columns,
    check_file,
    open_file,
    read_arrow,
)
from jaxrec.data.recipe import Recipe
from jaxrec.data.spelling import REFUSED, WORD, id_columns, refused
from jaxrec.data.text_files import TextFormat
from jaxrec.typing import UserError

type Table = str | Path | pd.DataFrame

_INDEX = re.compile(r"__index_level_\d+__")  # what pandas adds to a Parquet file


class Metadata(NamedTuple):
    """A table of metadata.

    Attributes:
      frame: its columns, without the ids.
      ids: the id of each row, each once.
      notes: what the report says of reading it.
    """

    frame: pd.DataFrame
    ids: pd.Index
    notes: list[str]


def read_metadata(
    table: Table, role: str, recipe: Recipe, form: TextFormat | None = None
) -> Metadata:
    """Reads metadata.

    Cells of text files are text as it is written, and null where nothing is. A column whose cells
    are all whole numbers, or all the shortest text of a float, is of numbers, as these give the
    same text back; missing words may be among them. A column of texts such as "[0.1, 0.2]" is of
    vectors. Columns of Parquet files and frames keep their types.

    Args:
      table: a file, a glob or a directory, or a frame.
      role: "user" or "item".
      recipe: names the column of the ids, the missing words, and what to do with doubled ids.
      form: how text files are written.

    Raises:
      UserError: for a file that is not there or is damaged, an absent column, a value that is no
        id, or rows that say different things of one id.
    """
    key = recipe.columns[role]
    if isinstance(table, pd.DataFrame):
        check_columns(table.columns, [key], "the metadata")
        frame, keys = table.drop(columns=key), table[key]
    else:
        frame, keys = _read_files(table, key, recipe, form or TextFormat())
    names = [str(name) for name in frame]
    if "id" in names:
        raise UserError(
            "the metadata has a column 'id' beside the id column "
            f"{key!r}; that name is taken in the vocabulary. Rename it."
        )
    check_columns(names, names, f"the {role} metadata")
    ids, raw = id_columns(keys, frozenset(recipe.missing_words))
    _check_ids(keys, raw, role, key)
    notes = []
    index = pd.Index(ids.to_pandas(), dtype="str")
    missing = np.asarray(index.isna())
    if missing.any():
        words = sorted({mark[1:] for mark in raw.to_pylist() if mark and mark[0] == WORD})
        such = f" (such as {words[0]!r})" if words else ""
        notes.append(f"{role} metadata: {missing.sum():,} rows have no id{such}")
    kept = _one_row_each(frame, index, missing, role, recipe, notes)
    frame = frame.set_axis(pd.Index(names), axis=1)[kept].reset_index(drop=True)
    return Metadata(frame, index[kept], notes)


def join_metadata(
    ids: pd.Index, metadata: Metadata | None, role: str, everyone: pd.Index
) -> tuple[pd.DataFrame, list[str]]:
    """Joins metadata to ids.

    Args:
      ids: (V,) texts.
      metadata: what is known; None for nothing.
      role: "user" or "item".
      everyone: the ids that the metadata may be of, if others than `ids`.

    Returns:
      (V,) rows with the column `id` and those of the metadata, null where nothing is known; and
      what the report says.

    Raises:
      UserError: when none of the rows is of one of `everyone`.
    """
    ids = ids.rename("id")
    if metadata is None:
        return ids.to_frame(index=False), []
    known = metadata.ids.isin(everyone)
    if len(everyone) and not known.any():
        theirs = f"such as {metadata.ids[0]!r}" if len(metadata.ids) else "none"
        raise UserError(
            f"the {role} metadata is of 0 of {len(everyone):,} {role}s: its ids are {theirs}, and "
            f"those of the log such as {everyone[0]!r}. Give the metadata of this log, with its "
            f"ids in the column that {role}_column names."
        )
    frame = metadata.frame.set_axis(metadata.ids, axis=0)
    # A frame of whole numbers stays one where some are missing.
    frame = frame.astype({n: "Int64" for n in frame if frame[n].dtype == np.int64})
    joined = frame.reindex(ids)
    joined = joined.astype(
        {n: "int64" for n in joined if joined[n].dtype == "Int64" and not joined[n].isna().any()}
    )
    found = int(ids.isin(metadata.ids).sum())
    parts = [f"{role} metadata: for {found:,} of {len(ids):,} {role}s"]
    if "title" in joined:
        parts.append(f"titles for {int(joined['title'].notna().sum()):,} of {len(ids):,} {role}s")
    if not known.all():
        other = metadata.ids[~known]
        parts.append(f"{len(other):,} rows are of no {role} here, such as {other[0]!r}")
    return joined.reset_index(), [*metadata.notes, "; ".join(parts)]


def join_to_known(known: pd.DataFrame, fresh: pd.DataFrame) -> pd.DataFrame:
    """Puts new rows of a vocabulary behind those that are there, in one type for each column."""
    if not len(fresh):
        return known
    for name in [str(name) for name in fresh if name in known and name != "id"]:
        one, other = known[name], fresh[name]
        if _is_text(one) != _is_text(other) and not one.isna().all() and not other.isna().all():
            if pd.api.types.is_numeric_dtype(one.dtype):
                known = known.assign(**{name: as_text(one)})
            elif pd.api.types.is_numeric_dtype(other.dtype):
                fresh = fresh.assign(**{name: as_text(other)})
        elif one.dtype == np.int64 and other.dtype == "Int64":
            known = known.assign(**{name: one.astype("Int64")})
    if (known.dtypes == np.int64).any() or (fresh.dtypes == np.int64).any():
        # Columns that only one side has get nulls, and whole numbers stay whole beside them.
        known, fresh = (
            part.astype({n: "Int64" for n in part if part[n].dtype == np.int64 and n not in other})
            for part, other in ((known, fresh), (fresh, known))
        )
    return pd.concat([known, fresh], ignore_index=True)


def as_text(values: pd.Series) -> pd.Series:
    """Returns numbers as the texts that they were read from."""
    texts = [None if pd.isna(value) else str(value) for value in values.tolist()]
    return pd.Series(texts, index=values.index, dtype="str")


def _is_text(values: pd.Series) -> bool:
    return isinstance(values.dtype, pd.StringDtype)


def _read_files(
    table: str | Path, key: str, recipe: Recipe, form: TextFormat
) -> tuple[pd.DataFrame, Any]:
    parts: list[pd.DataFrame] = []
    files = [_open(path, key, form.without_names()) for path in find_files(table)]
    for file in files:
        if set(file.names) != set(files[0].names):
            raise UserError(
                f"{file.path} has other columns than {files[0].path}. Give metadata of one kind."
            )
    names = [name for name in files[0].names if not _INDEX.fullmatch(name)]
    if all(isinstance(file, ParquetFile) for file in files):
        parts = [to_frame(read_arrow(file, names)) for file in files]
        frame = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
        return frame.drop(columns=key), frame[key]
    if any(isinstance(file, ParquetFile) for file in files):
        raise UserError(f"{table} has text and Parquet files. Give metadata in files of one kind.")
    for file in files:
        check_columns(file.names, names, str(file.path))
    whole = pa.concat_tables([read_arrow(file, names) for file in files]).combine_chunks()
    kinds = dict(zip(files[0].names, getattr(files[0], "types", ()), strict=False))
    words = frozenset(recipe.missing_words)
    columns = {
        name: typed_cells(_one_chunk(whole.column(name)), kinds.get(name, ""), words, name)
        for name in names
        if name != key
    }
    frame = pd.DataFrame(columns, index=range(len(whole)))
    return frame, _one_chunk(whole.column(key))


def _open(path: Path, key: str, form: TextFormat) -> File:
    file = open_file(path, form)
    if key not in file.names and form.separator is not None:
        # The separator that was said may be that of the log alone.
        try:
            usual = open_file(path, TextFormat(encoding=form.encoding, quoting=form.quoting))
        except UserError:
            usual = file
        file = usual if key in usual.names else file
    check_file(file, [key])
    return file


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)


def _check_ids(keys: Any, raw: pa.Array, role: str, key: str) -> None:
    row = pc.index(raw, REFUSED).as_py()
    if row >= 0:
        values = keys.to_pylist() if isinstance(keys, pa.Array) else keys.tolist()
        raise UserError(
            f"the {role} metadata, column {key!r} in row {row + 1} (header not counted): "
            f"{refused([values[row]])}"
        )


def _one_row_each(
    frame: pd.DataFrame,
    ids: pd.Index,
    missing: np.ndarray,
    role: str,
    recipe: Recipe,
    notes: list[str],
) -> np.ndarray:
    """Returns (N,) bool: the rows that stay, one for each id."""
    again = np.asarray(ids.duplicated()) & ~missing
    if not again.any():
        return ~missing
    first: dict[str, int] = {}
    equal = 0
    several = np.flatnonzero(ids.duplicated(keep=False) & ~missing)
    parts = [frame.iloc[several, place].tolist() for place in range(frame.shape[1])]
    rows = list(zip(*parts, strict=True)) if parts else [()] * len(several)
    said = dict(zip(several.tolist(), (tuple(map(_comparable, row)) for row in rows), strict=True))
    differing: tuple[int, int] | None = None
    for row in several.tolist():
        before = first.setdefault(str(ids[row]), row)
        if row != before and said[row] == said[before]:
            equal += 1
        elif row != before and differing is None:
            differing = before, row
    if differing is not None and recipe.metadata_duplicates == "refuse":
        one, other = differing
        raise UserError(
            f"the {role} metadata says different things of {ids[one]!r}, in rows {one + 1} and "
            f"{other + 1} (header not counted), and has {int(again.sum()):,} such or doubled rows. "
            f"Give one row for each {role}, or say metadata_duplicates=first."
        )
    notes.append(
        f"{role} metadata: {int(again.sum()):,} rows are of an id that came before, {equal:,} of "
        f"them equal to its first row; such as {ids[np.flatnonzero(again)[0]]!r}"
    )
    return ~missing & ~again


def _comparable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return tuple(map(repr, value.tolist()))
    return repr(value)
