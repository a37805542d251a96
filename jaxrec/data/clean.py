"""Cleaning of a raw log: types, missing values, duplicates, repeats, thresholds and the k-core."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from jaxrec.data.recipe import Recipe
from jaxrec.data.times import to_times
from jaxrec.data.vocabulary import encode_ids
from jaxrec.typing import UserError


def clean(frame: pd.DataFrame, recipe: Recipe) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Cleans a log and says what was dropped and why.

    Rules in order: missing ids, missing times, missing labels, exact duplicates, repeated events,
    labels below the threshold, k-core. Without a time column, equal rows cannot be told from
    repeated events, so only the rule for repeats applies to them.

    Args:
      frame: the raw log with the columns that the recipe names.
      recipe: columns and rules.

    Returns:
      The events that are left, sorted by user, then time, then source order. Columns, as far as the
      recipe names them: `user` and `item` (categorical, categories in vocabulary order, all used),
      `time` (int64 for counters, datetime64[ns] in UTC for dates), `label` (float32) and `split`
      (text). Without a time column, `time` is the position in the user's history.

      And the report: for each rule a dict with "rule", "dropped_events", "left_events",
      "left_users", "left_items".

    Raises:
      UserError: for a time or label that is no number, with its row; when there is no event; when a
        rule drops the last one.
    """
    if frame.empty:
        raise UserError("the log has no rows. Give at least one event.")
    events, missing = _typed(frame, recipe)
    log = _Log(events=events, report=[]).note("read")
    log = log.drop("missing user or item", missing["id"])
    if "time" in missing:
        log = log.drop("missing time", missing["time"][log.events.index])
    if "label" in missing:
        log = log.drop("missing label", missing["label"][log.events.index])
    log = _in_order(log)
    if recipe.time_column is not None:
        log = log.drop("exact duplicates", _duplicates(log.events))
    if recipe.keep != "all":
        repeated = pd.Series(_pair_keys(log.events)).duplicated(
            keep="first" if recipe.keep == "first" else "last"
        )
        log = log.drop(f"repeated events (keep={recipe.keep})", repeated.to_numpy())
    if recipe.min_label is not None:
        low = log.events["label"].to_numpy() < np.float32(recipe.min_label)
        log = log.drop(f"label below min_label={recipe.min_label:g}", low)
    if max(recipe.min_user_events, recipe.min_item_events) > 1:
        log = _core(log, recipe.min_user_events, recipe.min_item_events)
    events = log.events.reset_index(drop=True)
    for role in ("user", "item"):
        events[role] = events[role].cat.remove_unused_categories()
    if recipe.time_column is None:
        events["time"] = events.groupby("user", observed=True).cumcount().to_numpy(np.int64)
    return events, log.report


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Log:
    """Events on their way through the rules, with the report so far."""

    events: pd.DataFrame
    report: list[dict[str, Any]]

    def drop(self, rule: str, where: np.ndarray, *, blame: str | None = None) -> "_Log":
        dropped = int(np.count_nonzero(where))
        if dropped == len(self.events):
            raise UserError(
                f"no events are left: the rule {blame or rule!r} dropped the last {dropped:,} of "
                f"{self.report[0]['left_events']:,}. Loosen that rule, or give a larger log."
            )
        events = self.events[~where] if dropped else self.events
        return _Log(events=events, report=self.report).note(rule, dropped)

    def note(self, rule: str, dropped: int = 0) -> "_Log":
        row = {
            "rule": rule,
            "dropped_events": dropped,
            "left_events": len(self.events),
            "left_users": _count_distinct(self.events["user"]),
            "left_items": _count_distinct(self.events["item"]),
        }
        return _Log(events=self.events, report=[*self.report, row])


def _typed(frame: pd.DataFrame, recipe: Recipe) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Returns standard columns with source order as the index, and what is missing by role."""
    user = encode_ids(frame[recipe.user_column])
    item = encode_ids(frame[recipe.item_column])
    columns: dict[str, Any] = {"user": user, "item": item}
    missing = {"id": (user.codes < 0) | (item.codes < 0)}
    if recipe.time_column is not None:
        times = to_times(frame[recipe.time_column], recipe.time_column)
        columns["time"], missing["time"] = times
    if recipe.label_column is not None:
        labels = _labels(frame[recipe.label_column], recipe.label_column)
        columns["label"], missing["label"] = labels, np.isnan(labels)
    if recipe.split_column is not None:
        columns["split"] = frame[recipe.split_column].to_numpy()
    return pd.DataFrame(columns, index=pd.RangeIndex(len(frame))), missing


def _labels(values: pd.Series, name: str) -> np.ndarray:
    if pd.api.types.is_numeric_dtype(values.dtype):
        numbers = values
    else:
        numbers = pd.to_numeric(values.astype(object), errors="coerce")
    labels = numbers.astype("Float32").to_numpy(np.float32, na_value=np.nan)
    bad = (np.isnan(labels) & values.notna().to_numpy()) | np.isinf(labels)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"the label column {name!r} holds {str(values.iloc[row])!r} in row {row + 1} (header "
            "not counted), which is no finite number. Correct that row, or remove it."
        )
    return labels


def _in_order(log: _Log) -> _Log:
    users = log.events["user"].cat.codes.to_numpy().astype(np.int64)
    if "time" in log.events:
        times = log.events["time"].to_numpy().view(np.int64)
        first, span = int(times.min()), int(times.max()) - int(times.min()) + 1
        if (int(users.max()) + 1) * span < 2**63:  # one key is sorted in half the time of two
            order = np.argsort(users * span + (times - first), kind="stable")
        else:
            order = np.lexsort((times, users))
    else:
        order = np.argsort(users, kind="stable")
    if (order[1:] > order[:-1]).all():
        return log
    return dataclasses.replace(log, events=log.events.iloc[order])


def _duplicates(events: pd.DataFrame) -> np.ndarray:
    """Marks all but the first of equal rows; they lie in one run of equal user and time."""
    users, times = events["user"].cat.codes.to_numpy(), events["time"].to_numpy()
    tied = np.zeros(len(events) + 1, bool)
    tied[1:-1] = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    where = tied[1:] | tied[:-1]
    where[where] = events[where].duplicated().to_numpy()
    return where


def _pair_keys(events: pd.DataFrame) -> np.ndarray:
    items = events["item"].cat
    users = events["user"].cat.codes.to_numpy().astype(np.int64)
    return users * len(items.categories) + items.codes.to_numpy()


def _core(log: _Log, min_user: int, min_item: int) -> _Log:
    """Drops users and items with too few events until none is left to drop."""
    users, items = (log.events[role].cat.codes.to_numpy() for role in ("user", "item"))
    left = np.arange(len(users))
    blame, stable = "", False
    while not stable:
        stable = True
        for role, codes, least in (("user", users, min_user), ("item", items, min_item)):
            counts = np.bincount(codes[left]) if len(left) else np.zeros(0, np.int64)
            kept = left[counts[codes[left]] >= least]
            if len(kept) < len(left):
                blame, stable = f"min_{role}_events={least}", False
            left = kept
    where = np.ones(len(users), bool)
    where[left] = False
    rule = f"k-core (min_user_events={min_user}, min_item_events={min_item})"
    return log.drop(rule, where, blame=blame)


def _count_distinct(column: pd.Series) -> int:
    codes = column.cat.codes.to_numpy()
    return int(np.count_nonzero(np.bincount(codes[codes >= 0])))
