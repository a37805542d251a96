"""Optional engines for large logs: DuckDB and Spark read and project, pandas receives."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from jaxrec.typing import UserError


def read_with_duckdb(
    path: Path,
    columns: Sequence[str],
    text: Sequence[str],
    separator: str | None,
    missing_words: Sequence[str],
) -> pd.DataFrame:
    """Reads the columns of one file with DuckDB; a None separator means Parquet.

    Raises:
      UserError: when DuckDB is not installed or cannot read the file.
    """
    try:
        import duckdb
    except ImportError:
        raise _not_installed("duckdb") from None
    chosen = ", ".join(map(_identifier, columns))
    scans = []
    if separator is None:
        scans.append(f"read_parquet({_literal(path)})")
    else:
        nulls = ", ".join(map(_literal, missing_words))
        common = f"{_literal(path)}, header=true, delim={_literal(separator)}, nullstr=[{nulls}]"
        types = ", ".join(f"{_literal(name)}: 'VARCHAR'" for name in text)
        # The second scan is for values that do not fit the guessed types: the checks name them.
        scans.append(f"read_csv({common}{f', types={{{types}}}' if types else ''})")
        scans.append(f"read_csv({common}, all_varchar=true)")
    with duckdb.connect() as connection:
        for scan in scans:
            try:
                return connection.execute(f"SELECT {chosen} FROM {scan}").df()
            except duckdb.Error as error:
                failure = str(error).strip().splitlines()[0][:200]
    raise UserError(f"{path} cannot be read by DuckDB ({failure}).")


def read_with_spark(
    path: Path, columns: Sequence[str], separator: str | None, missing_words: Sequence[str]
) -> pd.DataFrame:
    """Reads the columns of one file with Spark; a None separator means Parquet.

    Text files are read as text in every column: the checks that follow find numbers and dates.

    Raises:
      UserError: when Spark is not installed or cannot read the file.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise _not_installed("spark") from None
    try:
        session = SparkSession.builder.getOrCreate()
        reader = session.read
        where = path.resolve().as_uri()
        if separator is None:
            frame = reader.parquet(where)
        else:
            frame = reader.csv(where, header=True, sep=separator, multiLine=True, escape='"')
        quoted = [f"`{name.replace('`', '``')}`" for name in columns]
        events = frame.select(*quoted).toPandas()
    except (PySparkException, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{path} cannot be read by Spark ({reason}).") from None
    if separator is None:
        return events
    return events.mask(events.isin(list(missing_words)))


def _not_installed(extra: str) -> UserError:
    return UserError(
        f"engine={extra} needs the extra {extra!r}, which is not installed. "
        f"Install it with: pip install jaxrec[{extra}]"
    )


def _literal(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
