"""From a log as it was read to typed, numbered events in order, on any engine.

What each value means is decided here: ids become the numbers of a vocabulary, times and labels
become numbers, and events that lack one of them go. The rules that look at histories come after,
in `jaxrec.data.histories`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa

from jaxrec.data.dataset import SPLITS
from jaxrec.data.dates import BAD_TIME
from jaxrec.data.engines import ROWS_OF_A_FILE, ChunkColumn, Conversion, Engine
from jaxrec.data.label_values import is_number, label_columns
from jaxrec.data.recipe import Recipe
from jaxrec.data.report import Report, sample
from jaxrec.data.spelling import REFUSED, RESPELLED, WORD, id_columns, refused
from jaxrec.data.spool import DTYPES, Log, Spool
from jaxrec.data.times import (
    UNITS,
    Reading,
    choose_reading,
    examine,
    time_columns,
)
from jaxrec.data.vocabulary import vocabulary_order
from jaxrec.typing import UserError

type Frame = nw.LazyFrame[Any]

_MISSING = ("missing user or item", "missing time", "missing label")
_KEPT = len(_MISSING)
_LARGEST_LABEL = float(np.finfo(np.float32).max)
_NO_WORD = nw.col("split") == len(SPLITS)
_WANTED = {
    "time": "neither a number nor a date between 1678 and 2261",
    "label": "no finite number",
    "split": "none of the words train, valid and test",
}


def read_log(
    engine: Engine,
    frame: Frame,
    recipe: Recipe,
    *,
    directory: Path | None = None,
    known_users: pd.Index | None = None,
    known_items: pd.Index | None = None,
    paths: Sequence[Path] = (),
    day_first: bool | None = None,
    notes: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Log:
    """Types, numbers and sorts the events of a log.

    Args:
      engine: what carries the frame.
      frame: columns named by role, and `row`.
      recipe: which rules there are.
      directory: where the events go; None keeps them in memory.
      known_users, known_items: vocabularies to extend; ids that are not in them come after them.
      paths: the files that were read, to name the one with a bad value.
      day_first: how dates such as 05/02/2024 are read in the dataset that this log is added to.
      notes: what the report says of reading.
      progress: called with what is done, how many events of it and of how many.

    Raises:
      UserError: for an id, time, label or split word that is none, with its row; for an empty log;
        when nothing is left.
    """
    source = _Source(engine, frame, recipe, paths)
    typed, reading = _typed(source, day_first)
    fate: Any = nw.lit(_KEPT)
    for rule, role in reversed(list(enumerate(("item", "time", "label")))):
        if role in recipe.columns:
            absent = nw.col(role).is_null()
            absent = absent | nw.col("user").is_null() if role == "item" else absent
            fate = nw.when(absent).then(nw.lit(rule)).otherwise(fate)
    typed = typed.with_columns(fate.alias("fate"))
    words, spellings = _marks(source, typed)
    if reading is not None and reading.note:
        notes = [*notes, reading.note]
    report, users, items = _missing_report(source, typed, [*notes, *spellings], words)
    user_table, user_ids = _number(users, "user", known_users)
    item_table, item_ids = _number(items, "item", known_items)
    chosen = [name for name in (*recipe.columns, "row") if name not in ("user", "item")]
    numbered = (
        typed.filter(nw.col("fate") == _KEPT)
        .join(engine.table(user_table), on="user", how="inner")
        .join(engine.table(item_table), on="item", how="inner")
        .select(nw.col("user_number").alias("user"), nw.col("item_number").alias("item"), *chosen)
    )
    events = Spool(
        directory, {name: kind for name, kind in DTYPES.items() if name in recipe.columns}
    )
    done, total = 0, report.left_events
    for chunk in engine.in_order(numbered):
        events.append(chunk)
        done += len(chunk["user"])
        if progress is not None:
            progress("sorted", done, total)
    return Log(
        events=events,
        users=user_ids,
        items=item_ids,
        time_unit="row" if reading is None else reading.unit,
        time_source="row" if reading is None else reading.source,
        day_first=None if reading is None else reading.day_first,
        report=report,
    )


class _Source:
    """A log as it was read, to look up values and to say where they are."""

    def __init__(self, engine: Engine, raw: Frame, recipe: Recipe, paths: Sequence[Path]) -> None:
        self.engine, self.raw, self.recipe, self.paths = engine, raw, recipe, paths

    def place(self, row: int) -> str:
        """Returns words for a row."""
        file, line = divmod(int(row), ROWS_OF_A_FILE)
        return f"row {line + 1}" + (f" of {self.paths[file]}" if len(self.paths) > 1 else "")

    def value(self, role: str, row: int) -> Any:
        """Returns what was read for a role in a row."""
        found = self.engine.collect(self.raw.filter(nw.col("row") == row).select(role))
        return found[role].tolist()[0]

    def refuse(self, role: str, row: int) -> UserError:
        """Returns the one sentence for a value that cannot be."""
        value, column = self.value(role, row), self.recipe.columns[role]
        if role in ("user", "item"):
            error = refused([value])
            return UserError(
                f"the {role} column {column!r} in {self.place(row)} (header not counted): {error}"
            )
        return UserError(
            f"the {role} column {column!r} holds {str(value)!r} in {self.place(row)} (header not "
            f"counted), which is {_WANTED[role]}. Correct that row, or remove it."
        )

    def first(self, frame: Frame, condition: Any) -> int | None:
        """Returns the first row where a condition holds."""
        rows = self.engine.collect(frame.filter(condition).select(nw.col("row").min()))["row"]
        return None if rows.isna().all() else int(rows.iloc[0])


def _typed(source: _Source, day_first: bool | None) -> tuple[Frame, Reading | None]:
    """Gives each column its type: ids int64 or text, time int64, label float32, split uint8.

    A converted column comes with another, `user_raw` and so on, of what was not taken as it is.
    """
    engine, frame, recipe = source.engine, source.raw, source.recipe
    kinds, words = frame.collect_schema(), frozenset(recipe.missing_words)
    plain = not any(is_number(word) for word in words)
    conversions: dict[str, Conversion] = {}
    reading: Reading | None = None
    for role in ("user", "item"):
        _check_id_kind(role, recipe, kinds[role])
        if not (kinds[role].is_integer() and plain):
            conversions[role] = _conversion(role, pa.string(), partial(id_columns, words=words))
    if "time" in kinds:
        reading = choose_reading(
            engine.examine(frame, "time", partial(examine, words=words)),
            name=recipe.columns["time"],
            place=source.place,
            time_unit=recipe.time_unit,
            day_first=recipe.day_first,
            before=day_first,
        )
        if not (kinds["time"].is_signed_integer() and plain and reading.source in UNITS):
            function = partial(time_columns, reading=reading, words=words)
            conversions["time"] = _conversion("time", pa.int64(), function)
    if "label" in kinds and not (_is_numeric(kinds["label"]) and plain):
        function = partial(label_columns, words=words)
        conversions["label"] = _conversion("label", pa.float64(), function)
    if "split" in kinds and kinds["split"] != nw.String:
        conversions["split"] = Conversion(_words, {"split": pa.string()})
    if conversions:
        frame = engine.convert(frame, conversions)
    for role in ("user", "item"):
        if role in conversions:
            row = source.first(frame, nw.col(f"{role}_raw") == REFUSED)
            if row is not None:
                raise source.refuse(role, row)
    kinds = frame.collect_schema()
    scale = "time" in kinds and "time" not in conversions and reading is not None
    typed = [
        _scaled_time(reading) if scale and role == "time" else _typed_column(role, kinds[role])
        for role in recipe.columns
    ]
    frame = frame.with_columns(*typed)
    checks = {"time": nw.col("time") == BAD_TIME, "split": _NO_WORD}
    checks["label"] = nw.col("label").abs() > _LARGEST_LABEL
    for role, is_bad in checks.items():
        if role in kinds and not (role == "label" and kinds[role].is_integer()):
            row = source.first(frame, is_bad)
            if row is not None:
                raise source.refuse(role, row)
    if "label" in kinds:
        frame = frame.with_columns(nw.col("label").cast(nw.Float32))
    return frame, reading


def _conversion(role: str, kind: pa.DataType, function: Callable[..., Any]) -> Conversion:
    return Conversion(function, {role: kind, f"{role}_raw": pa.string()})


def _check_id_kind(role: str, recipe: Recipe, kind: nw.dtypes.DType) -> None:
    if kind == nw.Boolean or kind.is_temporal() or kind.is_nested():
        raise UserError(
            f"the {role} column {recipe.columns[role]!r} holds values of the type {kind}, and an "
            "id is a text or a whole number. Name another column, or convert it."
        )


def _is_numeric(kind: nw.dtypes.DType) -> bool:
    return kind.is_integer() or kind.is_float() or kind.is_decimal() or kind == nw.Boolean


def _scaled_time(reading: Reading | None) -> nw.Expr:
    """Returns integers in nanoseconds, `BAD_TIME` where they have none."""
    assert reading is not None
    time, factor = nw.col("time").cast(nw.Int64), UNITS[reading.source][1]
    if factor == 1:
        return time
    largest = (2**63 - 1) // factor
    fits = (time <= largest) & (time >= -largest)
    # What does not fit is 0 before it is multiplied: an engine may compute both branches.
    scaled = nw.when(fits).then(time).otherwise(nw.lit(0)) * nw.lit(factor)
    scaled = nw.when(fits).then(scaled).otherwise(nw.lit(BAD_TIME, nw.Int64))
    return nw.when(~time.is_null()).then(scaled).cast(nw.Int64).alias("time")


def _typed_column(role: str, kind: nw.dtypes.DType) -> nw.Expr:
    column = nw.col(role)
    if role in ("user", "item"):
        return column.cast(nw.Int64 if kind.is_integer() and kind != nw.UInt64 else nw.String)
    if role == "time":
        return column.cast(nw.Int64)
    if role == "label":
        numbers = column.cast(nw.Float64)
        return nw.when(~numbers.is_nan()).then(numbers) if kind.is_float() else numbers
    words = column.str.strip_chars().str.to_lowercase()
    code: Any = nw.lit(len(SPLITS))
    for word, number in SPLITS.items():
        code = nw.when(words == word).then(nw.lit(number)).otherwise(code)
    return code.cast(nw.Int32).alias("split")


def _words(values: ChunkColumn) -> tuple[pa.Array]:
    found = values.to_pylist() if isinstance(values, pa.Array) else list(values)
    return (pa.array([None if v is None else str(v) for v in found], pa.string()),)


def _marks(source: _Source, typed: Frame) -> tuple[list[str], list[str]]:
    """Returns what the report says of missing words, and of ids in other spellings."""
    words, spellings = [], []
    present = typed.collect_schema().names()
    for role, column in source.recipe.columns.items():
        raw = f"{role}_raw"
        if raw not in present:
            continue
        marked = typed.filter(~nw.col(raw).is_null())
        kinds = marked.with_columns(nw.col(raw).str.slice(0, 1).alias("mark")).group_by("mark")
        found = source.engine.collect(kinds.agg(nw.len().alias("count"), nw.col("row").min()))
        by_mark = {row["mark"]: row for _, row in found.iterrows()}
        if WORD in by_mark:
            only = marked.filter(nw.col(raw).str.starts_with(WORD)).group_by(raw)
            counts = source.engine.collect(only.agg(nw.len().alias("count")))
            pairs = sorted(zip(counts[raw].str[1:], counts["count"], strict=True))
            listed = sample([f"{word!r} {count:,} times" for word, count in pairs])
            words.append(f"taken for missing in {column!r}: {listed}")
        if RESPELLED in by_mark:
            count, row = int(by_mark[RESPELLED]["count"]), int(by_mark[RESPELLED]["row"])
            one = typed.filter(nw.col("row") == row).select(role, raw)
            other = source.engine.collect(one).iloc[0]
            spellings.append(
                f"{column!r}: {count:,} values are other spellings of an id, such as "
                f"{other[raw][1:]!r} of {other[role]!r} in {source.place(row)}"
            )
    return words, spellings


def _missing_report(
    source: _Source, typed: Frame, notes: Sequence[str], words: Sequence[str]
) -> tuple[Report, Any, Any]:
    """Counts what each rule for missing values leaves; returns the ids with the best fate too."""
    engine, recipe = source.engine, source.recipe
    by_fate = typed.group_by("fate").agg(nw.len().alias("count"), nw.col("row").min())
    counts = engine.collect(by_fate)
    if counts.empty:
        raise UserError("the log has no rows. Give at least one event.")
    dropped = np.bincount(counts["fate"], counts["count"], minlength=_KEPT + 1).astype(np.int64)
    first = dict(zip(counts["fate"], counts["row"], strict=True))
    users, items = (
        engine.collect(
            typed.filter(~nw.col(role).is_null()).group_by(role).agg(nw.col("fate").max())
        )
        for role in ("user", "item")
    )
    report = Report().note("read", int(dropped.sum()), len(users), len(items), notes=notes)
    left = int(dropped.sum())
    for fate, (rule, role) in enumerate(zip(_MISSING, ("user", "time", "label"), strict=True)):
        if role in recipe.columns:
            left -= int(dropped[fate])
            ids = (int((table["fate"] > fate).sum()) for table in (users, items))
            said = []
            if dropped[fate]:
                said = [f"{rule}: {dropped[fate]:,} rows, the first is {source.place(first[fate])}"]
            report = report.note(rule, left, *ids, notes=[*said, *(words if fate == 0 else ())])
    return report, users, items


def _number(
    fates: pd.DataFrame, role: str, known: pd.Index | None
) -> tuple[pd.DataFrame, pd.Index]:
    """Returns a table from the keys of a role to positions, and the ids in these positions."""
    keys = fates.loc[fates["fate"] == _KEPT, role]
    texts = pd.Index(keys.astype("str"))
    numbers = np.full(len(texts), -1) if known is None else known.get_indexer(texts)
    fresh = np.flatnonzero(numbers < 0)
    fresh = fresh[vocabulary_order(texts[fresh])]
    first = 0 if known is None else len(known)
    numbers[fresh] = first + np.arange(len(fresh))
    ids = texts[fresh] if known is None else known.append(texts[fresh])
    table = {role: keys.to_numpy() if keys.dtype != "str" else keys.array}
    return pd.DataFrame({**table, f"{role}_number": numbers.astype(np.int32)}), ids
