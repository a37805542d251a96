"""Files of logs and metadata: what columns they have, and reading these in batches of Arrow."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from jaxrec.data.files import is_parquet
from jaxrec.data.spelling import is_bytes, is_text
from jaxrec.data.text_files import TextFile, TextFormat, hint, look, unreadable
from jaxrec.typing import UserError

_BATCH_ROWS = 1 << 18
_FAULTS = (OSError, EOFError, ValueError, pa.ArrowException)


@dataclasses.dataclass(frozen=True)
class ParquetFile:
    """A Parquet file.

    Attributes:
      path: where it is.
      names: of its columns, in order.
      schema: their types.
    """

    path: Path
    names: tuple[str, ...]
    schema: pa.Schema
    note: str = ""

    def batches(
        self, columns: Sequence[str], *, group: int | None = None, rows: int = _BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Reads columns, dictionaries and views as what they stand for.

        Args:
          columns: names.
          group: one group of rows alone.
          rows: of a batch, at most.
        """
        wanted = list(dict.fromkeys(columns))
        try:
            with pa.parquet.ParquetFile(self.path) as file:
                groups = None if group is None else [group]
                for batch in file.iter_batches(rows, columns=wanted, row_groups=groups):
                    arrays = [_plain(batch.column(batch.schema.names.index(n))) for n in columns]
                    yield pa.RecordBatch.from_arrays(arrays, names=list(columns))
        except _FAULTS as error:
            raise unreadable(self.path, error) from None

    def group_rows(self) -> list[int]:
        """Returns the number of rows of each group."""
        data = pa.parquet.read_metadata(self.path)
        return [data.row_group(number).num_rows for number in range(data.num_row_groups)]

    def type_of(self, column: str) -> pa.DataType:
        """Returns the type that `batches` gives a column."""
        return plain_type(self.schema.types[self.schema.names.index(column)])


type File = TextFile | ParquetFile


def open_file(path: Path, form: TextFormat | None = None) -> File:
    """Finds out what a file holds.

    Raises:
      UserError: when it is empty, damaged or of no known format.
    """
    if not is_parquet(path):
        return look(path, form or TextFormat())
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path} is empty. Give a file with a header and events.")
    try:
        schema = pa.parquet.read_schema(path)
    except _FAULTS as error:
        raise unreadable(path, error) from None
    return ParquetFile(path, tuple(schema.names), schema)


def header(path: Path) -> list[str]:
    """Returns the column names of a file. Raises UserError when it is empty or damaged."""
    return list(open_file(path).names)


def read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Reads columns of one file; those of text files are text. Raises UserError for damage."""
    return read_arrow(open_file(path), columns).to_pandas()


def read_arrow(
    file: File, columns: Sequence[str], kinds: Sequence[pa.DataType] | None = None
) -> pa.Table:
    """Reads columns of a file into memory, as the types that are asked for or as they are."""
    if kinds is None:
        kinds = [_type_of(file, column) for column in columns]
    schema = pa.schema(list(zip(columns, kinds, strict=True)))
    batches = [
        pa.RecordBatch.from_arrays(
            [
                values if values.type == kind else values.cast(kind)
                for values, kind in zip(batch.columns, kinds, strict=True)
            ],
            schema=schema,
        )
        for batch in file.batches(columns)
    ]
    return pa.Table.from_batches(batches, schema)


def common_types(files: Sequence[File], columns: Mapping[str, str]) -> dict[str, pa.DataType]:
    """Returns for each role the type that holds the column of every file; see `check_files`."""
    found = {}
    for role, column in columns.items():
        kinds = {_type_of(file, column) for file in files} - {pa.null()}
        if len(kinds) > 1 and all(map(pa.types.is_integer, kinds)):
            kinds = {pa.int64()}
        elif len(kinds) > 1 and all(map(pa.types.is_timestamp, kinds)):
            units = {kind.unit for kind in kinds}
            finest = next(unit for unit in ("ns", "us", "ms", "s") if unit in units)
            kinds = {pa.timestamp(finest, kinds.pop().tz)}
        elif len(kinds) > 1:
            kinds = {pa.float64()}
        found[role] = kinds.pop() if kinds else pa.string()
    return found


def check_columns(
    present: Iterable[object], wanted: Iterable[str], where: str, advice: str = ""
) -> None:
    """Raises UserError for a wanted column that is absent, naming the closest, or there twice."""
    names = [str(name) for name in present]
    for column in wanted:
        if column not in names:
            close = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
            close_by = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(
                f"{where} has no column {column!r}.{close_by} It has: {', '.join(names)}.{advice}"
            )
        if names.count(column) > 1:
            raise UserError(f"{where} has more than one column {column!r}. Rename all but one.")


def check_file(file: File, wanted: Iterable[str]) -> None:
    """Raises UserError for a wanted column that a file has not, or has twice."""
    advice = hint(file) if isinstance(file, TextFile) else ""
    check_columns(file.names, wanted, str(file.path), advice)


def check_files(
    paths: Sequence[Path], columns: Mapping[str, str], form: TextFormat | None = None
) -> list[File]:
    """Checks that every file has the columns, and that the files agree on their types.

    Args:
      paths: what `find_files` returned.
      columns: role to column name.
      form: how text files are written.

    Returns:
      The files, opened.

    Raises:
      UserError: for an unknown or damaged format, an absent column, or a type that changes. Text
        files have the type string.
    """
    files = [open_file(path, form) for path in paths]
    if form is not None and not form.is_usual and not any(isinstance(f, TextFile) for f in files):
        raise UserError(
            "separator, encoding, quoting and column_names are for text files, and these are "
            "Parquet. Leave them out."
        )
    first: dict[str, tuple[Path, pa.DataType]] = {}
    for file in files:
        check_file(file, columns.values())
        for role, column in columns.items():
            here = _type_of(file, column)
            if pa.types.is_null(here):
                continue
            check_id_type(role, column, here)
            before, there = first.setdefault(role, (file.path, here))
            if _family(role, here) != _family(role, there):
                raise UserError(
                    f"the column {column!r} is {here} in {file.path} and {there} in {before}. "
                    "Write all files with one type."
                )
    return files


def check_id_type(role: str, column: str, kind: pa.DataType) -> None:
    """Raises UserError when values of a type are no ids: lists, structs, truth values, dates."""
    if role in ("user", "item") and (
        pa.types.is_nested(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind)
    ):
        raise UserError(
            f"the {role} column {column!r} holds values of the type {kind}, and an id is a text or "
            "a whole number. Name another column, or convert it."
        )


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type that stands for several that hold the same values."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if is_text(kind):
        return pa.string()
    return pa.binary() if is_bytes(kind) else kind


def _type_of(file: File, column: str) -> pa.DataType:
    return pa.string() if isinstance(file, TextFile) else file.type_of(column)


def _plain(values: pa.Array) -> pa.Array:
    kind = plain_type(values.type)
    return values if kind == values.type else values.cast(kind)


def _family(role: str, kind: pa.DataType) -> str:
    """Returns what types of one column may differ in: widths of integers; of labels, fractions.

    The width of a float changes what it is called: 2.2 or 2.200000047683716.
    """
    if pa.types.is_integer(kind):
        return "number" if role == "label" else "uint64" if kind == pa.uint64() else "integer"
    if pa.types.is_floating(kind):
        return "number" if role == "label" else "float" if role == "time" else str(kind)
    if pa.types.is_timestamp(kind):
        return "time with zone" if kind.tz else "time"
    return str(kind)
