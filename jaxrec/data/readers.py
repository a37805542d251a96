"""Reading logs: CSV, TSV and Parquet files, or a data frame, as one frame of the needed columns."""

import difflib
import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jaxrec.data.engines import read_with_duckdb, read_with_spark
from jaxrec.data.recipe import choose
from jaxrec.typing import UserError

ENGINES = ("pandas", "duckdb", "spark")
MISSING_WORDS = ("", "NULL", "null", "NaN", "nan", "NA", "N/A", "n/a", "None", "<NA>", "#N/A")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_PARQUET = (".parquet", ".pq")
_BLOCK_BYTES = 8 << 20  # a row, review text and all, must fit


def read(
    inputs: str | Path | Sequence[str | Path] | pd.DataFrame,
    columns: Sequence[str],
    *,
    text: Sequence[str] = (),
    engine: str = "pandas",
) -> pd.DataFrame:
    """Reads a log.

    Args:
      inputs: files, globs or directories of .csv, .tsv (both may end in .gz) and .parquet files,
        read in the order given and, inside a glob or directory, by name; or a data frame.
      columns: names of the columns to read; the others are not loaded.
      text: those of the columns that text files must not turn into numbers, such as ids: "007"
        stays "007".
      engine: what reads the files: "pandas", "duckdb" or "spark".

    Returns:
      One frame with these columns and a fresh index; rows in the order of the files.

    Raises:
      UserError: no such file, an unknown or damaged format, an empty log, a missing column, a text
        that is not UTF-8, or an engine that is not installed.
    """
    choose("engine", engine, ENGINES)
    if isinstance(inputs, pd.DataFrame):
        check_columns(inputs.columns, columns, "the data frame")
        frame = inputs.loc[:, list(columns)].reset_index(drop=True)
    else:
        parts = [_read_file(path, columns, text, engine) for path in find_files(inputs)]
        frame = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
    if frame.empty:
        raise UserError("the log has no rows. Give a file with at least one event.")
    return frame


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
      UserError: as `read`.
    """
    (path,) = find_files(path)[:1]
    check_columns(header(path), [key], str(path))
    try:
        if _kind(path) in _PARQUET:
            return pd.read_parquet(path)
        separator = _SEPARATORS[_kind(path) or ".csv"]
        return pd.read_csv(path, sep=separator, dtype={key: "str"}, low_memory=False)
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


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
        if kind in _PARQUET:
            return list(pa.parquet.read_schema(path).names)
        # As a row and not as a header, which would rename columns that occur twice.
        first = pd.read_csv(path, sep=_SEPARATORS[kind], nrows=1, header=None, dtype="str")
        return first.iloc[0].fillna("").tolist()
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty. Give a file with a header and events.") from None
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


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


def _read_file(
    path: Path, columns: Sequence[str], text: Sequence[str], engine: str
) -> pd.DataFrame:
    check_columns(header(path), columns, str(path))
    separator = _SEPARATORS.get(_kind(path) or "")
    if engine == "duckdb":
        return read_with_duckdb(path, columns, text, separator, MISSING_WORDS)
    if engine == "spark":
        return read_with_spark(path, columns, separator, MISSING_WORDS)
    try:
        if separator is None:
            return pd.read_parquet(path, columns=list(columns))
        return _read_text(path, columns, text, separator)
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _read_text(
    path: Path, columns: Sequence[str], text: Sequence[str], separator: str
) -> pd.DataFrame:
    try:
        return _read_arrow(path, columns, text, separator)
    except pa.ArrowInvalid:
        # A type was guessed from the first block and a later value does not fit it. As text, the
        # value reaches the checks, which name its row.
        return _read_arrow(path, columns, columns, separator)


def _read_arrow(
    path: Path, columns: Sequence[str], text: Sequence[str], separator: str
) -> pd.DataFrame:
    table = pa.csv.read_csv(
        path,
        read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(columns),
            column_types={name: pa.string() for name in text},
            null_values=list(MISSING_WORDS),
            strings_can_be_null=True,
        ),
    )
    return table.to_pandas(split_blocks=True, self_destruct=True)


def _kind(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    return next((end for end in (*_SEPARATORS, *_PARQUET) if name.endswith(end)), None)


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = (
        str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    )
    if "utf8" in reason.lower() or isinstance(error, UnicodeDecodeError):
        return UserError(f"{path} is not UTF-8 text ({reason}). Convert it to UTF-8 first.")
    return UserError(f"{path} cannot be read ({reason}). It may be damaged or of another format.")
