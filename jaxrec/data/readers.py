"""Files of logs: finding them, what they hold, and reading them with pandas and Arrow."""

import difflib
import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jaxrec.typing import UserError

MISSING_WORDS = ("", "NULL", "null", "NaN", "nan", "NA", "N/A", "n/a", "None", "<NA>", "#N/A")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_PARQUET = (".parquet", ".pq")
_BLOCK_BYTES = 8 << 20  # a row, review text and all, must fit


def read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Reads columns of one file, which `check_file` found good, in the order of its rows.

    Columns of text files are text, whatever they hold, and `MISSING_WORDS` are null.

    Raises:
      UserError: when the file is damaged or not UTF-8.
    """
    try:
        if is_parquet(path):
            return pd.read_parquet(path, columns=list(columns))
        table = pa.csv.read_csv(path, **_csv_options(path, columns))
        return table.to_pandas(split_blocks=True, self_destruct=True)
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Reads a text file as `read` does, some megabytes at a time."""
    try:
        with pa.csv.open_csv(path, **_csv_options(path, columns)) as reader:
            yield from reader
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def find_files(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    """Returns the files that names, globs and directories stand for, without repeats.

    Raises:
      UserError: when one of them matches no file.
    """
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not given:
        raise UserError("no input was given. Name at least one file.")
    found: dict[Path, None] = {}
    for name in given:
        path = Path(name)
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.is_file() and _kind(f) is not None)
        elif path.exists():
            files = [path]
        else:
            files = [Path(f) for f in sorted(glob.glob(str(name), recursive=True))]
        if not files:
            raise UserError(f"no file matches {str(name)!r}. Check the path.")
        found |= dict.fromkeys(files)
    return list(found)


def read_table(path: str | Path, key: str) -> pd.DataFrame:
    """Reads a whole file of metadata; the column `key` stays text.

    Raises:
      UserError: for a file that is not there, is damaged or has no such column.
    """
    (path,) = find_files(path)[:1]
    check_columns(header(path), [key], str(path))
    try:
        if is_parquet(path):
            return pd.read_parquet(path)
        return pd.read_csv(path, sep=separator_of(path), dtype={key: "str"}, low_memory=False)
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def header(path: Path) -> list[str]:
    """Returns the column names of a file. Raises UserError when it is empty or damaged."""
    kind = _kind(path)
    if kind is None:
        raise UserError(
            f"{path} is of no known format. Wanted: .csv, .tsv (or these with .gz), .parquet."
        )
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path} is empty. Give a file with a header and events.")
    try:
        if is_parquet(path):
            return list(pa.parquet.read_schema(path).names)
        # As a row and not as a header, which would rename columns that occur twice.
        first = pd.read_csv(path, sep=_SEPARATORS[kind], nrows=1, header=None, dtype="str")
        return first.iloc[0].fillna("").tolist()
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty. Give a file with a header and events.") from None
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def check_columns(present: Iterable[object], wanted: Iterable[str], where: str) -> None:
    """Raises UserError for a wanted column that is absent, naming the closest, or there twice."""
    names = [str(name) for name in present]
    for column in wanted:
        if column not in names:
            close = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{where} has no column {column!r}.{hint} It has: {', '.join(names)}.")
        if names.count(column) > 1:
            raise UserError(f"{where} has more than one column {column!r}. Rename all but one.")


def check_files(paths: Sequence[Path], columns: Mapping[str, str]) -> None:
    """Checks that every file has the columns, and that the files agree on their types.

    Args:
      paths: what `find_files` returned.
      columns: role to column name.

    Raises:
      UserError: for an unknown or damaged format, an absent column, or a type that changes. Text
        files have the type string.
    """
    first: dict[str, tuple[Path, pa.DataType]] = {}
    for path in paths:
        check_columns(header(path), columns.values(), str(path))
        schema = pa.parquet.read_schema(path) if is_parquet(path) else None
        for role, column in columns.items():
            here = pa.string() if schema is None else schema.field(column).type
            if pa.types.is_null(here):
                continue
            before, there = first.setdefault(role, (path, here))
            if _family(role, here) != _family(role, there):
                raise UserError(
                    f"the column {column!r} is {here} in {path} and {there} in {before}. Write "
                    "all files with one type."
                )


def is_parquet(path: Path) -> bool:
    """Whether a file's name says Parquet and not text."""
    return _kind(path) in _PARQUET


def separator_of(path: Path) -> str:
    """Returns what separates the columns of a text file."""
    return _SEPARATORS[_kind(path) or ".csv"]


def unreadable(path: Path, error: Exception) -> UserError:
    """Returns the one sentence for a file that made a reader fail."""
    words = str(error).strip()
    reason = words.splitlines()[0][:200] if words else type(error).__name__
    if "utf8" in reason.lower() or isinstance(error, UnicodeDecodeError):
        return UserError(f"{path} is not UTF-8 text ({reason}). Convert it to UTF-8 first.")
    return UserError(f"{path} cannot be read ({reason}). It may be damaged or of another format.")


def _csv_options(path: Path, columns: Sequence[str]) -> dict[str, object]:
    return {
        "read_options": pa.csv.ReadOptions(block_size=_BLOCK_BYTES),
        "parse_options": pa.csv.ParseOptions(delimiter=separator_of(path), newlines_in_values=True),
        "convert_options": pa.csv.ConvertOptions(
            include_columns=list(columns),
            column_types={name: pa.string() for name in columns},
            null_values=list(MISSING_WORDS),
            strings_can_be_null=True,
        ),
    }


def _family(role: str, kind: pa.DataType) -> str:
    """Returns what types of one column may differ in: widths, and for labels, fractions."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return "number" if role == "label" else "integer"
    if pa.types.is_floating(kind):
        return "number" if role == "label" else "float"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_timestamp(kind):
        return "time with zone" if kind.tz else "time"
    return str(kind)


def _kind(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    return next((end for end in (*_SEPARATORS, *_PARQUET) if name.endswith(end)), None)
