"""What a preparation does, as one frozen value that is checked when it is made."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from jaxrec.data.times import TIME_UNITS
from jaxrec.typing import UserError

SPLIT_NAMES = ("leave_last_out", "temporal", "random", "given")
KEEP_NAMES = ("all", "first", "last")
DUPLICATE_NAMES = ("refuse", "first")
MISSING_WORDS = ("NULL", "null", "NaN", "nan", "NA", "N/A", "n/a", "None", "<NA>", "#N/A")


class Options(TypedDict, total=False):
    """The keywords of `build` and `prepare`; `Recipe` says what each means."""

    user_column: str
    item_column: str
    time_column: str | None
    label_column: str | None
    split_column: str | None
    min_user_events: int
    min_item_events: int
    min_label: float | None
    positive_from: float | None
    keep: str
    split: str
    valid_fraction: float
    test_fraction: float
    valid_from: str | int | None
    test_from: str | int | None
    seed: int
    missing_words: Sequence[str]
    time_unit: str
    day_first: bool | None
    rows_in_time_order: bool
    metadata_duplicates: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a log becomes a dataset.

    Attributes:
      user_column, item_column: columns of the ids.
      time_column: column of the times. None: rows are in time order, which is refused when the log
        has a column that looks like times; see `rows_in_time_order`.
      label_column: column of numbers, such as ratings. None: the dataset has no labels.
      split_column: column of the words train, valid and test, for split "given".
      min_user_events, min_item_events: k-core: users and items with fewer events are dropped, again
        and again until all that are left have enough. 0 and 1 keep everything.
      min_label: events with a smaller label are dropped.
      positive_from: events with a smaller label stay, and are not positive: they train heads and
        regressions, and are no target of ranking, no history and no popularity. None: labels above
        0 are positive, so that a 0 in a log of clicks is no click.
      keep: what to do with several events of one user and item: keep "all", the "first" or the
        "last". It is applied before `min_label`, so that "last" means the last opinion.
      split: one of `SPLIT_NAMES`; see `jaxrec.data.splits`.
      valid_fraction, test_fraction: in [0, 1), for the splits "temporal" and "random".
      valid_from, test_from: for "temporal": the first moment of validation and of test, as a date
        or as a number in the unit of the time column. They take the place of the fractions.
      seed: of the split "random".
      missing_words: texts that stand for a missing id, time or label, besides "".
      time_unit: of times that are numbers, one of `jaxrec.data.times.TIME_UNITS`. "auto" tells it
        by their magnitude, which must be one for all.
      day_first: whether 05/02/2024 is 5 February. None leaves it to the dates that can be read in
        one way alone.
      rows_in_time_order: that rows are, although a column looks like times.
      metadata_duplicates: what to do with rows of metadata that say different things of one id:
        "refuse", or take the "first".

    Raises:
      UserError: for a value that cannot be, with what was wanted.
    """

    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    min_user_events: int = 0
    min_item_events: int = 0
    min_label: float | None = None
    positive_from: float | None = None
    keep: str = "all"
    split: str = "leave_last_out"
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    valid_from: str | int | None = None
    test_from: str | int | None = None
    seed: int = 0
    missing_words: Sequence[str] = MISSING_WORDS
    time_unit: str = "auto"
    day_first: bool | None = None
    rows_in_time_order: bool = False
    metadata_duplicates: str = "refuse"

    def __post_init__(self) -> None:
        choose("split", self.split, SPLIT_NAMES)
        choose("keep", self.keep, KEEP_NAMES)
        choose("time_unit", self.time_unit, TIME_UNITS)
        choose("metadata_duplicates", self.metadata_duplicates, DUPLICATE_NAMES)
        words = self.missing_words
        given = words.split(",") if isinstance(words, str) else words
        object.__setattr__(self, "missing_words", tuple(w.strip() for w in given if w.strip()))
        if self.rows_in_time_order and self.time_column is not None:
            raise UserError(
                f"rows_in_time_order does not go with time_column={self.time_column}. Leave one "
                "out."
            )
        roles = self.columns
        if len(set(roles.values())) < len(roles):
            raise UserError(
                f"one column is given two roles: {roles}. Name one column for each role."
            )
        for name in ("min_user_events", "min_item_events", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        for name in ("min_label", "positive_from"):
            if getattr(self, name) is not None and self.label_column is None:
                raise UserError(f"{name} needs label_column: name the column of the labels.")
        if self.split == "given" and self.split_column is None:
            raise UserError("split=given needs split_column, with the words train, valid and test.")
        if self.split != "given" and self.split_column is not None:
            raise UserError(f"split_column is only read with split=given, not {self.split}.")
        self._check_cuts()

    def _check_cuts(self) -> None:
        valid, test = self.valid_fraction, self.test_fraction
        if not (0 <= valid < 1 and 0 <= test < 1 and valid + test < 1):
            raise UserError(
                f"valid_fraction={valid} and test_fraction={test} must be in [0, 1) "
                "and leave something for training."
            )
        if self.split == "temporal" and self.time_column is None:
            raise UserError("split=temporal needs time_column.")
        if (self.valid_from is None) != (self.test_from is None):
            raise UserError("give both valid_from and test_from, or neither.")
        if self.valid_from is not None and self.split != "temporal":
            raise UserError(
                f"valid_from and test_from are only read with split=temporal, not {self.split}."
            )

    def is_positive(self, labels: np.ndarray) -> np.ndarray:
        """Returns bool: which events of some labels are positive."""
        where = labels > 0 if self.positive_from is None else labels >= self.positive_from
        return np.asarray(where)

    @property
    def columns(self) -> dict[str, str]:
        """Role to column name, for the roles that are given."""
        names = ("user", "item", "time", "label", "split")
        pairs = {name: getattr(self, f"{name}_column") for name in names}
        return {role: column for role, column in pairs.items() if column is not None}


def choose(what: str, given: str, known: Sequence[str]) -> None:
    """Raises UserError, naming the closest word, when `given` is none of the known words."""
    if given not in known:
        close = difflib.get_close_matches(str(given), known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{what}={given!r} is not known.{hint} Choose one of: {', '.join(known)}.")
