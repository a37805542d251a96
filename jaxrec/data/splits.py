"""Which events are for training, validation and test.

Each function takes whole users, sorted by user, then time, so that a log can be split in slices.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxrec.data.dataset import TEST, TRAIN, VALID
from jaxrec.data.recipe import Recipe
from jaxrec.data.times import parse_moment
from jaxrec.typing import UserError

_BINS = 1 << 16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

type Split = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def make_split(
    recipe: Recipe,
    times: Callable[[], Iterable[np.ndarray]],
    user_ids: pd.Index,
    *,
    unit: str,
    cuts: tuple[int, int] | None = None,
) -> tuple[Split, dict[str, Any]]:
    """Chooses the function that splits events as the recipe says.

    Args:
      recipe: names the split and its options.
      times: gives the times of all events that are left, in pieces; for "temporal".
      user_ids: the original id of each user, which decides over "random".
      unit: of the times, as in the manifest.
      cuts: for "temporal": first moments of validation and test that hold already.

    Returns:
      A function of columns `user` (from 0), `time`, `split` and `positive` of whole users that
      returns (N,) uint8; and the split's name and options.

    Raises:
      UserError: when a cut is no moment of this log, or cuts are not in order.
    """
    valid, test = recipe.valid_fraction, recipe.test_fraction
    options: dict[str, Any] = {"name": recipe.split}
    if recipe.split == "leave_last_out":
        return lambda chunk: leave_last_out(chunk["user"], chunk.get("positive")), options
    if recipe.split == "temporal":
        first, second = cuts or _cuts(recipe, times, unit=unit)
        _check_cuts(first, second)
        options |= {"valid_from": first, "test_from": second}
        return lambda chunk: temporal(chunk["time"], first, second), options
    if recipe.split == "random":
        keys = pd.util.hash_pandas_object(pd.Series(user_ids), index=False).to_numpy()

        def split(chunk: Mapping[str, np.ndarray]) -> np.ndarray:
            return random(
                chunk["user"],
                keys=keys[chunk["user"]],
                valid_fraction=valid,
                test_fraction=test,
                seed=recipe.seed,
            )

        options |= {"valid_fraction": valid, "test_fraction": test, "seed": recipe.seed}
        return split, options
    return lambda chunk: chunk["split"], options | {"column": recipe.split_column}


def leave_last_out(users: np.ndarray, positive: np.ndarray | None = None) -> np.ndarray:
    """The last event of each user is test, the last but one validation, the others training.

    Users with fewer than 3 events stay whole in training.

    Args:
      users: (N,) integers, ascending; a user's events are in time order.
      positive: (N,) bool, the events that count; an event between two of them goes with the later
        one, and one after the last with the last. None means all.

    Returns:
      (N,) uint8.
    """
    position, counts = positions(users)
    if positive is not None:
        starts = np.flatnonzero(position == 0)
        lengths = counts[starts]
        total = np.concatenate([[0], np.cumsum(positive)])
        before = total[:-1] - np.repeat(total[starts], lengths)
        counts = np.repeat(total[starts + lengths] - total[starts], lengths)
        position = np.minimum(before, (counts - 1).clip(min=0))
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
    _check_cuts(valid_from, test_from)
    later = (times >= valid_from).astype(np.uint8) + (times >= test_from)
    return np.asarray([TRAIN, VALID, TEST], np.uint8)[later]


def random(
    users: np.ndarray,
    *,
    keys: np.ndarray | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> np.ndarray:
    """Splits the events of each user at random.

    A user with n events has round(n (1 - valid - test)) of them in training, at least one, and
    round(n (1 - test)) in training and validation together.

    Args:
      users: (N,) integers, ascending.
      keys: (N,) uint64, what the random numbers of a user depend on; None means `users`. They also
        depend on the position in the user's history and on nothing else of the log.
      valid_fraction, test_fraction: in [0, 1).
      seed: another seed gives another split.

    Returns:
      (N,) uint8.
    """
    position, counts = positions(users)
    key = (users if keys is None else keys).astype(np.uint64)
    start = _mixed(np.uint64(seed % 2**64) + _GOLDEN)
    order = np.lexsort((_mixed(_mixed(key ^ start) + _GOLDEN * position.astype(np.uint64)), users))
    # Rounding before rint keeps 5 x 0.9 = 4.5 a tie on every platform.
    train = np.rint(np.round(counts * (1 - valid_fraction - test_fraction), 9)).clip(1)
    not_test = np.rint(np.round(counts * (1 - test_fraction), 9)).clip(train)
    split = np.empty(len(users), np.uint8)
    split[order] = np.select([position < train, position < not_test], [TRAIN, VALID], TEST)
    return split


def _mixed(bits: Any) -> Any:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64 bits."""
    with np.errstate(over="ignore"):
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


def _check_cuts(valid_from: int, test_from: int) -> None:
    if valid_from > test_from:
        raise UserError(f"valid_from={valid_from} is later than test_from={test_from}. Swap them.")


def _cuts(
    recipe: Recipe, times: Callable[[], Iterable[np.ndarray]], *, unit: str
) -> tuple[int, int]:
    extremes = [(len(t), int(t.min()), int(t.max())) for t in times() if len(t)]
    count = sum(length for length, _, _ in extremes)
    low, high = min(low for _, low, _ in extremes), max(high for _, _, high in extremes)
    if recipe.valid_from is not None and recipe.test_from is not None:
        rest: dict[str, Any] = {
            "unit": unit,
            "time_unit": recipe.time_unit,
            "day_first": recipe.day_first,
            "largest": max(abs(low), abs(high)),
        }
        return (
            parse_moment(recipe.valid_from, "valid_from", **rest),
            parse_moment(recipe.test_from, "test_from", **rest),
        )
    test, both = recipe.test_fraction, recipe.valid_fraction + recipe.test_fraction
    valid_from, test_from = (
        nth(times, min(round(count * (1 - share)), count - 1), low, high) if share else high + 1
        for share in (both, test)
    )
    return valid_from, test_from


def nth(times: Callable[[], Iterable[np.ndarray]], rank: int, low: int, high: int) -> int:
    """Returns the value of a rank, as sorting would give it, by counting in bins.

    Args:
      times: gives the values in pieces, as often as it is called; at most four times.
      rank: from 0.
      low, high: the smallest and largest value.
    """
    while low < high:
        width = (high - low) // _BINS + 1
        counts = np.zeros(_BINS, np.int64)
        for piece in times():
            inside = piece[(piece >= low) & (piece <= high)].astype(np.int64)
            # Unsigned, since the distance of two int64 may not fit an int64.
            distance = inside.view(np.uint64) - np.int64(low).view(np.uint64)
            bins = (distance // np.uint64(width)).astype(np.int64)
            counts += np.bincount(bins, minlength=_BINS)
        totals = np.cumsum(counts)
        place = int(np.searchsorted(totals, rank, side="right"))
        rank -= int(totals[place] - counts[place])
        low, high = low + place * width, min(high, low + (place + 1) * width - 1)
    return low


def positions(users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each event's position in its user's run, from 0, and the length of that run."""
    starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    lengths = np.diff(np.append(starts, len(users)))
    position = np.arange(len(users)) - np.repeat(starts, lengths)
    return position, np.repeat(lengths, lengths)
