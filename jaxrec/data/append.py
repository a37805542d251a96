"""Adding later events to a dataset without reading the earlier logs again."""

import dataclasses
from pathlib import Path

import numpy as np

from jaxrec.data.dataset import Dataset, split_alone
from jaxrec.data.recipe import Options, Recipe
from jaxrec.data.spool import CHUNK_EVENTS, DTYPES, Column, Log, Spool
from jaxrec.data.times import MEANING
from jaxrec.typing import UserError

_MAY_CHANGE = ("valid_from", "test_from")


def recipe_of(dataset: Dataset, options: Options) -> Recipe:
    """Returns the recipe of a dataset, with the cuts of a temporal split if they are given anew.

    Raises:
      UserError: when another option differs from what the dataset was prepared with.
    """
    recipe = Recipe(**dataset.manifest.recipe)
    wanted = dataclasses.replace(recipe, **options)
    for name in options:
        before, value = getattr(recipe, name), getattr(wanted, name)
        if name not in _MAY_CHANGE and value != before:
            raise UserError(
                f"the dataset was prepared with {name}={before!r}, and events cannot be appended "
                f"with {value!r}. Leave {name} out, or prepare all logs again."
            )
    changes = {name: value for name, value in options.items() if name in _MAY_CHANGE}
    return dataclasses.replace(recipe, **changes)  # type: ignore[arg-type] # names are checked


def merge(earlier: Dataset, log: Log, recipe: Recipe, directory: Path | None = None) -> Spool:
    """Merges the events of a dataset and those of a log, sorted by user and time.

    At equal times the earlier events come first; without times, all of them do. Both are sorted
    already, so this is one pass over each, in slices of users.

    Args:
      earlier: the dataset.
      log: whose ids extend the vocabularies of the dataset.
      recipe: which columns there are.
      directory: where the events go; None keeps them in memory.

    Raises:
      UserError: when the log's times are of another kind.
    """
    source, source_before = log.time_source, earlier.manifest.time_source
    if source != source_before:
        raise UserError(
            f"the times of the log are {MEANING[source]} and those of the dataset are "
            f"{MEANING[source_before]}. Give times of one kind, or prepare all logs again."
        )
    readings = {log.day_first, earlier.manifest.day_first} - {None}
    if len(readings) > 1:
        leading = {True: "the day", False: "the month"}
        raise UserError(
            f"the dates of the log have {leading[bool(log.day_first)]} first and those of the "
            f"dataset {leading[not log.day_first]}. Write them alike, best as 2024-01-31."
        )
    names = [name for name in DTYPES if name in recipe.columns]
    merged = Spool(directory, {name: DTYPES[name] for name in names})
    fields = {"time": earlier.times, "label": earlier.labels, "split": earlier.split}
    fresh = log.events.columns
    before, after = _starts(earlier, len(log.users)), _user_starts(fresh["user"], len(log.users))
    for first, last in _user_slices(before + after):
        old, new = slice(before[first], before[last]), slice(after[first], after[last])
        chunk = {
            "user": np.concatenate([np.asarray(earlier.users[old]) - 1, fresh["user"][new]]),
            "item": np.concatenate([np.asarray(earlier.items[old]) - 1, fresh["item"][new]]),
        }
        for name in names[2:]:
            there = fields[name]
            assert there is not None
            known = split_alone(there[old]) if name == "split" else there[old]
            chunk[name] = np.concatenate([known, fresh[name][new]])
        keys = (chunk["time"], chunk["user"]) if "time" in chunk else (chunk["user"],)
        order = np.lexsort(keys)
        merged.append({name: values[order] for name, values in chunk.items()})
    return merged


def _starts(earlier: Dataset, num_users: int) -> np.ndarray:
    """Returns (num_users + 1,) where the events of each user begin; new users have none."""
    starts = np.asarray(earlier.offsets)[1:]
    return np.concatenate([starts, np.full(num_users - earlier.num_users, starts[-1])])


def _user_starts(users: Column, num_users: int) -> np.ndarray:
    counts = np.zeros(num_users, np.int64)
    for start in range(0, len(users), CHUNK_EVENTS):
        counts += np.bincount(users[start : start + CHUNK_EVENTS], minlength=num_users)
    return np.concatenate([[0], np.cumsum(counts)])


def _user_slices(starts: np.ndarray) -> list[tuple[int, int]]:
    """Cuts users into ranges of about CHUNK_EVENTS events."""
    marks = np.arange(0, int(starts[-1]), CHUNK_EVENTS)
    cuts = np.unique(np.append(np.searchsorted(starts, marks, side="right") - 1, len(starts) - 1))
    return list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
