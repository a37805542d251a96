"""From a log as it was read to typed, numbered events in order, on any engine.

What each value means is decided here: ids become the numbers of a vocabulary, times and labels
become numbers, and events that lack one of them go. The rules that look at histories come after,
in `jaxrec.data.histories`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa

from jaxrec.data.dataset import SPLITS
from jaxrec.data.engines import ROWS_OF_A_FILE, Conversion, Engine
from jaxrec.data.recipe import Recipe
from jaxrec.data.report import Report
from jaxrec.data.spool import DTYPES, Log, Spool
from jaxrec.data.times import (
    BAD_TIME,
    Spelling,
    choose_spelling,
    examine,
    not_numbers,
    to_times,
)
from jaxrec.data.vocabulary import id_texts, vocabulary_order
from jaxrec.typing import UserError

type Frame = nw.LazyFrame[Any]

_MISSING = ("missing user or item", "missing time", "missing label")
_KEPT = len(_MISSING)
_LARGEST_LABEL = float(np.finfo(np.float32).max)
_TRUTH = {"true": 1, "True": 1, "TRUE": 1, "false": 0, "False": 0, "FALSE": 0}
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
      progress: called with what is done, how many events of it and of how many.

    Raises:
      UserError: for a time, label or split word that is none, with its row; for an empty log; when
        nothing is left.
    """
    typed, dates = _typed(engine, frame, recipe, paths)
    fate: Any = nw.lit(_KEPT)
    for rule, role in reversed(list(enumerate(("item", "time", "label")))):
        if role in recipe.columns:
            absent = nw.col(role).is_null()
            absent = absent | nw.col("user").is_null() if role == "item" else absent
            fate = nw.when(absent).then(nw.lit(rule)).otherwise(fate)
    typed = typed.with_columns(fate.alias("fate"))
    report, users, items = _missing_report(engine, typed, recipe)
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
    return Log(events=events, users=user_ids, items=item_ids, dates=dates, report=report)


def _typed(
    engine: Engine, frame: Frame, recipe: Recipe, paths: Sequence[Path]
) -> tuple[Frame, bool]:
    """Gives each column its type: ids int64 or text, time int64, label float32, split uint8."""
    raw, kinds = frame, frame.collect_schema()
    spelling: Spelling | None = None
    conversions: dict[str, Conversion] = {}
    for role in ("user", "item"):
        if not (kinds[role].is_integer() or kinds[role] == nw.String):
            conversions[role] = Conversion(id_texts, pa.string())
    bad_numbers = 0
    if "time" in kinds and not kinds["time"].is_integer():
        chunks = engine.examine(frame, "time", examine)
        spelling, bad_numbers = choose_spelling(chunks), sum(c.not_numbers for c in chunks)
        conversions["time"] = Conversion(partial(to_times, spelling=spelling), pa.int64())
    if "label" in kinds and not (kinds["label"].is_numeric() or kinds["label"] == nw.Boolean):
        conversions["label"] = Conversion(_labels, pa.float64())
    if "split" in kinds and kinds["split"] != nw.String:
        conversions["split"] = Conversion(_words, pa.string())
    if conversions:
        frame = engine.convert(frame, conversions)
        kinds = frame.collect_schema()
    frame = frame.with_columns(*(_typed_column(role, kinds[role]) for role in recipe.columns))
    blame = partial(_refuse, engine, raw, recipe, paths)
    if spelling is not None:
        bad = engine.collect(
            frame.filter(nw.col("time") == BAD_TIME).select(
                nw.len().alias("count"), nw.col("row").min()
            )
        ).iloc[0]
        if bad["count"]:
            if spelling == "dates" and bad["count"] >= bad_numbers > 0:
                marked = engine.convert(raw, {"time": Conversion(not_numbers, pa.bool_())})
                bad = engine.collect(marked.filter("time").select(nw.col("row").min())).iloc[0]
            blame("time", int(bad["row"]))
    for role, is_bad in (("label", nw.col("label").abs() > _LARGEST_LABEL), ("split", _NO_WORD)):
        if role in kinds and not kinds[role].is_integer():
            first = engine.collect(frame.filter(is_bad).select(nw.col("row").min()))["row"].dropna()
            if len(first):
                blame(role, int(first.iloc[0]))
    if "label" in kinds:
        frame = frame.with_columns(nw.col("label").cast(nw.Float32))
    return frame, spelling in ("dates", "seconds")


def _typed_column(role: str, kind: nw.dtypes.DType) -> nw.Expr:
    column = nw.col(role)
    if role in ("user", "item"):
        if kind == nw.UInt64:
            return column.cast(nw.String)
        return column.cast(nw.Int64) if kind.is_integer() else nw.when(column != "").then(column)
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


def _labels(values: pd.Series) -> pd.Series:
    """Reads numbers in a column of texts; what is none becomes infinite."""
    read = pd.to_numeric(values.astype(object).replace(_TRUTH), errors="coerce")
    numbers = read.astype("Float64").to_numpy(np.float64, na_value=np.nan)
    return pd.Series(np.where(np.isnan(numbers) & values.notna(), np.inf, numbers))


def _words(values: pd.Series) -> pd.Series:
    return values.astype("str")


def _refuse(
    engine: Engine, raw: Frame, recipe: Recipe, paths: Sequence[Path], role: str, row: int
) -> NoReturn:
    value = engine.collect(raw.filter(nw.col("row") == row).select(role)).iloc[0, 0]
    file, line = divmod(row, ROWS_OF_A_FILE)
    of = f" of {paths[file]}" if len(paths) > 1 else ""
    raise UserError(
        f"the {role} column {recipe.columns[role]!r} holds {str(value)!r} in row {line + 1}{of} "
        f"(header not counted), which is {_WANTED[role]}. Correct that row, or remove it."
    )


def _missing_report(engine: Engine, typed: Frame, recipe: Recipe) -> tuple[Report, Any, Any]:
    """Counts what each rule for missing values leaves; returns the ids with the best fate too."""
    counts = engine.collect(typed.group_by("fate").agg(nw.len().alias("count")))
    if counts.empty:
        raise UserError("the log has no rows. Give at least one event.")
    dropped = np.bincount(counts["fate"], counts["count"], minlength=_KEPT + 1).astype(np.int64)
    users, items = (
        engine.collect(
            typed.filter(~nw.col(role).is_null()).group_by(role).agg(nw.col("fate").max())
        )
        for role in ("user", "item")
    )
    report = Report().note("read", int(dropped.sum()), len(users), len(items))
    left = int(dropped.sum())
    for fate, (rule, role) in enumerate(zip(_MISSING, ("user", "time", "label"), strict=True)):
        if role in recipe.columns:
            left -= int(dropped[fate])
            ids = (int((table["fate"] > fate).sum()) for table in (users, items))
            report = report.note(rule, left, *ids)
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
