"""Which events are for training, validation and test. Events come sorted by user, then time."""

from typing import Any

import numpy as np
import pandas as pd

from jaxrec.data.dataset import SPLITS, TEST, TRAIN, VALID
from jaxrec.data.recipe import Recipe
from jaxrec.data.times import parse_moment
from jaxrec.typing import UserError


def split_events(recipe: Recipe, events: pd.DataFrame) -> tuple[np.ndarray, dict[str, Any]]:
    """Splits cleaned events as the recipe says.

    Args:
      recipe: names the split and its options.
      events: what `clean` returned.

    Returns:
      (N,) uint8 of TRAIN, VALID and TEST; and the split's name, its options and the number of
      events in each part.

    Raises:
      UserError: when nothing is left for training.
    """
    users = events["user"].cat.codes.to_numpy()
    valid, test = recipe.valid_fraction, recipe.test_fraction
    options: dict[str, Any] = {"name": recipe.split}
    if recipe.split == "leave_last_out":
        split = leave_last_out(users)
    elif recipe.split == "temporal":
        times = events["time"].to_numpy()
        cuts = _cuts(recipe, times)
        split = temporal(times.view(np.int64), *cuts)
        options |= {"valid_from": cuts[0], "test_from": cuts[1]}
    elif recipe.split == "random":
        split = random(users, valid_fraction=valid, test_fraction=test, seed=recipe.seed)
        options |= {"valid_fraction": valid, "test_fraction": test, "seed": recipe.seed}
    else:
        split = given(events["split"])
        options |= {"column": recipe.split_column}
    counts = np.bincount(split, minlength=len(SPLITS))
    if not counts[TRAIN]:
        raise UserError(
            f"split={recipe.split} leaves no event for training. "
            "Move its cuts, lower its fractions, or give a longer log."
        )
    return split, options | {"events": {name: int(counts[i]) for name, i in SPLITS.items()}}


def leave_last_out(users: np.ndarray) -> np.ndarray:
    """The last event of each user is test, the last but one validation, the others training.

    Users with fewer than 3 events stay whole in training.

    Args:
      users: (N,) integers, ascending; a user's events are in time order.

    Returns:
      (N,) uint8.
    """
    position, counts = _positions(users)
    from_end = counts - position
    split = np.full(len(users), TRAIN, np.uint8)
    split[(counts >= 3) & (from_end == 2)] = VALID
    split[(counts >= 3) & (from_end == 1)] = TEST
    return split


def temporal(times: np.ndarray, valid_from: int, test_from: int) -> np.ndarray:
    """Everything before `valid_from` is training, everything from `test_from` on is test.

    Equal times are never on two sides of a cut, and nothing that trains is later than anything
    that is measured.

    Args:
      times: (N,) int64, in any order.
      valid_from, test_from: the first moments of validation and test.

    Returns:
      (N,) uint8.

    Raises:
      UserError: when the cuts are not in order.
    """
    if valid_from > test_from:
        raise UserError(f"valid_from={valid_from} is later than test_from={test_from}. Swap them.")
    later = (times >= valid_from).astype(np.uint8) + (times >= test_from)
    return np.asarray([TRAIN, VALID, TEST], np.uint8)[later]


def random(
    users: np.ndarray, *, valid_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0
) -> np.ndarray:
    """Splits the events of each user at random.

    A user with n events has round(n (1 - valid - test)) of them in training, at least one, and
    round(n (1 - test)) in training and validation together.

    Args:
      users: (N,) integers, ascending.
      valid_fraction, test_fraction: in [0, 1).
      seed: the same seed and users give the same split.

    Returns:
      (N,) uint8.
    """
    order = np.lexsort((np.random.default_rng(seed).random(len(users)), users))
    position, counts = _positions(users)
    # Rounding before rint keeps 5 x 0.9 = 4.5 a tie on every platform.
    train = np.rint(np.round(counts * (1 - valid_fraction - test_fraction), 9)).clip(1)
    not_test = np.rint(np.round(counts * (1 - test_fraction), 9)).clip(train)
    split = np.empty(len(users), np.uint8)
    split[order] = np.select([position < train, position < not_test], [TRAIN, VALID], TEST)
    return split


def given(words: pd.Series) -> np.ndarray:
    """Reads the split from a column of the words train, valid and test, in any case.

    Args:
      words: (N,) text.

    Returns:
      (N,) uint8.

    Raises:
      UserError: for any other word.
    """
    lowered = words.astype("str").str.strip().str.lower()
    codes = lowered.map(SPLITS)
    if codes.isna().any():
        word = words[codes.isna()].iloc[0]
        raise UserError(
            f"the split column holds {str(word)!r}; it may hold only train, valid and test."
        )
    return codes.to_numpy(np.uint8)


def _cuts(recipe: Recipe, times: np.ndarray) -> tuple[int, int]:
    if recipe.valid_from is not None and recipe.test_from is not None:
        return (
            parse_moment(recipe.valid_from, times, "valid_from"),
            parse_moment(recipe.test_from, times, "test_from"),
        )
    times = times.view(np.int64)
    ranks = [
        min(round(len(times) * (1 - share)), len(times) - 1)
        for share in (recipe.valid_fraction + recipe.test_fraction, recipe.test_fraction)
    ]
    ordered = np.partition(times, ranks)
    after = int(times.max()) + 1
    none = (recipe.valid_fraction + recipe.test_fraction == 0, recipe.test_fraction == 0)
    valid_from, test_from = (
        after if empty else int(ordered[rank]) for empty, rank in zip(none, ranks, strict=True)
    )
    return valid_from, test_from


def _positions(users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each event's position in its user's run, from 0, and the length of that run."""
    starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    lengths = np.diff(np.append(starts, len(users)))
    position = np.arange(len(users)) - np.repeat(starts, lengths)
    return position, np.repeat(lengths, lengths)
