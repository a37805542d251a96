"""The rules that look at histories and counts: duplicates, repeats, thresholds and the k-core.

Events come sorted by user, time and source, so that each rule is a pass over slices of whole users.
A rule marks the events that are left; nothing is copied, and no more than a slice is in memory.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from jaxrec.data.recipe import Recipe
from jaxrec.data.report import Report
from jaxrec.data.spool import Column, Spool, read_chunk, whole_users

type Chunk = dict[str, np.ndarray]
type Rule = Callable[[Chunk], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """Which events are left.

    Attributes:
      marks: (N,) bool; False for events that a rule for histories dropped.
      users, items: (number of ids,) bool; False for ids that are not in the dataset. An event is
        left when it is marked and both its user and its item are left.
      num_events: how many events are left.
      report: what was dropped.
    """

    marks: Column
    users: np.ndarray
    items: np.ndarray
    num_events: int
    report: Report

    def chunks(self, events: Mapping[str, Column]) -> Iterator[Chunk]:
        """Gives the events that are left in slices of whole users, some of them empty."""
        for where in whole_users(events["user"]):
            chunk = read_chunk(events, where)
            left = self.marks[where] & self.users[chunk["user"]] & self.items[chunk["item"]]
            yield chunk if left.all() else {name: v[left] for name, v in chunk.items()}


def apply_rules(
    events: Mapping[str, Column],
    recipe: Recipe,
    report: Report,
    *,
    user_ids: pd.Index,
    item_ids: pd.Index,
    directory: Path | None = None,
    old_users: int = 0,
    old_items: int = 0,
) -> Kept:
    """Applies the rules for histories, then the k-core.

    Args:
      events: columns as in `jaxrec.data.spool.Log`.
      recipe: which rules.
      report: goes on from here.
      user_ids, item_ids: the vocabularies.
      directory: where the marks go; None keeps them in memory.
      old_users, old_items: the first so many users and items are never dropped.

    Raises:
      UserError: when a rule drops the last event.
    """
    num_users, num_items = len(user_ids), len(item_ids)
    rules = _rules(recipe, num_items)
    examples: dict[str, str] = {}
    marks = Spool(directory, {"marks": np.bool_})
    counts = [_Counts(num_users, num_items) for _ in range(max(1, len(rules)))]
    for where in whole_users(events["user"]):
        chunk = read_chunk(events, where)
        left = np.arange(len(chunk["user"]))
        passes = rules.items() or (("", _everything),)
        for (name, rule), count in zip(passes, counts, strict=True):
            good = rule({name: values[left] for name, values in chunk.items()})
            if name not in examples and not good.all():
                event = left[int(np.argmin(good))]
                ids = user_ids[chunk["user"][event]], item_ids[chunk["item"][event]]
                examples[name] = f"{name}: dropped are such as user {ids[0]!r}, item {ids[1]!r}"
            left = left[good]
            count.add(chunk["user"][left], chunk["item"][left])
        mark = np.zeros(len(chunk["user"]), bool)
        mark[left] = True
        marks.append({"marks": mark})
    for name, count in zip(rules, counts, strict=False):
        notes = [examples[name]] if name in examples else []
        report = report.note(name, *count.totals(), notes=notes)
    last, column = counts[-1], marks.columns["marks"]
    if max(recipe.min_user_events, recipe.min_item_events) > 1:
        names = (user_ids, item_ids)
        report = _core(events, column, last, recipe, report, old_users, old_items, names)
    return Kept(
        marks=column,
        users=(last.users > 0) | (np.arange(num_users) < old_users),
        items=(last.items > 0) | (np.arange(num_items) < old_items),
        num_events=int(last.users.sum()),
        report=report,
    )


class _Counts:
    """Events of each user and of each item."""

    def __init__(self, num_users: int, num_items: int) -> None:
        self.users = np.zeros(num_users, np.int64)
        self.items = np.zeros(num_items, np.int64)

    def add(self, users: np.ndarray, items: np.ndarray) -> None:
        if len(users):
            first = int(users[0])  # users ascend
            counted = np.bincount(users - first)
            self.users[first : first + len(counted)] += counted
            self.items += np.bincount(items, minlength=len(self.items))

    def totals(self) -> tuple[int, int, int]:
        users, items = np.count_nonzero(self.users), np.count_nonzero(self.items)
        return int(self.users.sum()), int(users), int(items)


def _rules(recipe: Recipe, num_items: int) -> dict[str, Rule]:
    """Returns, by name, functions from events to a mask of those that are left."""
    rules: dict[str, Rule] = {}
    if recipe.time_column is not None:
        # The one that `keep` would choose: then events that are appended find what they would have
        # found had all come at once.
        last = recipe.keep == "last"
        rules["exact duplicates"] = lambda chunk: _without_duplicates(chunk, last=last)
    if recipe.keep != "all":
        rules[f"repeated events (keep={recipe.keep})"] = lambda chunk: _one_of_a_pair(
            chunk, num_items, last=recipe.keep == "last"
        )
    if recipe.min_label is not None:
        least = np.float32(recipe.min_label)
        name = f"label below min_label={recipe.min_label:g}"
        rules[name] = lambda chunk: chunk["label"] >= least
    return rules


def _everything(chunk: Chunk) -> np.ndarray:
    return np.ones(len(chunk["user"]), bool)


def _without_duplicates(chunk: Chunk, *, last: bool) -> np.ndarray:
    """Keeps the first or last of equal events; they lie in one run of equal user and time."""
    users, times = chunk["user"], chunk["time"]
    tied = np.zeros(len(users) + 1, bool)
    tied[1:-1] = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    left = np.ones(len(users), bool)
    where = np.flatnonzero(tied[1:] | tied[:-1])
    equal = pd.DataFrame({name: values[where] for name, values in chunk.items()})
    left[where] = ~equal.duplicated(keep="last" if last else "first").to_numpy()
    return left


def _one_of_a_pair(chunk: Chunk, num_items: int, *, last: bool) -> np.ndarray:
    pairs = pd.Series(chunk["user"].astype(np.int64) * num_items + chunk["item"])
    return ~pairs.duplicated(keep="last" if last else "first").to_numpy()


def _core(
    events: Mapping[str, Column],
    marks: Column,
    counts: _Counts,
    recipe: Recipe,
    report: Report,
    old_users: int,
    old_items: int,
    names: tuple[pd.Index, pd.Index],
) -> Report:
    """Drops users and items with too few events until none is left to drop.

    An id that is dropped takes its events from the counts of the other side, each of them once, and
    its own count becomes 0. What is taken from a count that is 0 already does not matter.
    """
    sides = (
        ("user", "item", counts.users, counts.items, recipe.min_user_events, old_users),
        ("item", "user", counts.items, counts.users, recipe.min_item_events, old_items),
    )
    gone = {"user": counts.users == 0, "item": counts.items == 0}
    before = {role: absent.copy() for role, absent in gone.items()}
    blame, quiet, turn = "", 0, 0
    while quiet < 2:
        role, other, own, others, least, old = sides[turn % 2]
        turn += 1
        few = (own < least) & ~gone[role]
        few[:old] = False
        quiet = quiet + 1 if not few.any() else 0
        if few.any():
            blame = f"min_{role}_events={least}"
            gone[role] |= few
            own[few] = 0
            others -= _events_of(events, marks, few, role, other, len(others))
            others[gone[other]] = 0
    least_user, least_item = recipe.min_user_events, recipe.min_item_events
    rule = f"k-core (min_user_events={least_user}, min_item_events={least_item})"
    notes = []
    for role, ids in zip(("user", "item"), names, strict=True):
        dropped = np.flatnonzero(gone[role] & ~before[role])
        if len(dropped):
            notes.append(f"{rule}: {len(dropped):,} {role}s go, such as {ids[dropped[0]]!r}")
    return report.note(rule, *counts.totals(), blame=blame, notes=notes)


def _events_of(
    events: Mapping[str, Column],
    marks: Column,
    few: np.ndarray,
    role: str,
    other: str,
    length: int,
) -> np.ndarray:
    """Counts, for each id of the other side, its marked events with the ids in `few`."""
    counted = np.zeros(length, np.int64)
    for where in whole_users(events["user"]):
        theirs = few[events[role][where]] & marks[where]
        if theirs.any():
            counted += np.bincount(events[other][where][theirs], minlength=length)
    return counted
