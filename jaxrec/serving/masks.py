"""Rules about which items may be shown, and the filters of requests, as masks of a catalogue."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from jaxrec.serving.items import ItemTable, Values, spell
from jaxrec.serving.rules_file import (
    Age,
    Allow,
    Context,
    Deny,
    Rule,
    RulesFile,
    Stock,
    label,
    to_id,
)
from jaxrec.typing import UserError

type MaskRule = Allow | Deny | Stock | Age

_DAY, _HOUR = 86_400.0, 3_600.0
_CATEGORY_COLUMNS = ("category", "categories")


@dataclasses.dataclass(frozen=True, slots=True)
class Filters:
    """What a request itself wants; None is no wish. Ids and categories may be unknown."""

    allow: Sequence[str] | None = None
    deny: Sequence[str] | None = None
    categories: Sequence[str] | None = None


NO_FILTERS = Filters()


class Masks:
    """The rules about which items may be shown, for a catalogue of V rows. Nothing in it changes.

    Attributes:
      warnings: sentences about ids and values that no item has.
    """

    def __init__(self, file: RulesFile | None, items: ItemTable) -> None:
        """Raises UserError when the category column of the file is absent."""
        self._file, self._items = file, items
        self.warnings: list[str] = []
        column = _category_column(file, items)
        # Now, as it takes a while, and requests wait for each other.
        self._category_values = items.values(column) if column else None
        self._kept: list[tuple[MaskRule, np.ndarray]] = []  # (V,): bool, or times for ages

    def add(self, rule: MaskRule) -> None:
        """Adds a rule. Raises UserError when a column does not fit."""
        match rule:
            case Allow():
                self._kept.append((rule, self._listed(rule)))
            case Deny():
                self._kept.append((rule, ~self._listed(rule)))
            case Stock(file=str(file)):
                self._kept.append((rule, self._named(rule, self._ids(file))))
            case Stock(column=str(column)):
                self._kept.append((rule, _in_stock(self._items, column)))
            case Age():
                self._kept.append((rule, self._items.times(rule.column)))

    def mask(
        self, filters: Filters, context: Context, now: float
    ) -> tuple[Hashable, Callable[[], np.ndarray]]:
        """See `Rules.mask`."""
        active = [n for n, (rule, _) in enumerate(self._kept) if rule.holds(context)]
        hour = None
        if any(isinstance(self._kept[n][0], Age) for n in active):
            now = hour = now // _HOUR * _HOUR
        if filters.categories is not None:
            self._categories()
        if not active and filters is NO_FILTERS:
            return None, functools.partial(self._make, filters, context, now)
        wishes = tuple(
            None if wish is None else frozenset(wish)
            for wish in (filters.allow, filters.deny or None, filters.categories)
        )
        make = functools.partial(self._make, filters, context, now)
        if not active and wishes == (None, None, None):
            return None, make
        return (self._file.version if self._file else "", tuple(active), hour, wishes), make

    def allowed(
        self, items: np.ndarray, filters: Filters, context: Context, now: float
    ) -> np.ndarray:
        """Returns (n,) bool: which of n items all masks and filters allow."""
        allowed = np.ones(len(items), bool)
        for rule, kept in self._kept:
            if not rule.holds(context):
                continue
            if isinstance(rule, Age):
                allowed &= ~(now - kept[items] > rule.max_days * _DAY)  # NaN is not above
            else:
                allowed &= kept[items]
        if filters.allow is not None:
            allowed &= np.isin(items, self._items.indices(filters.allow)[0])
        if filters.deny:
            allowed &= ~np.isin(items, self._items.indices(filters.deny)[0])
        if filters.categories is not None:
            allowed &= self._categories().having(items, filters.categories)
        return allowed

    def _make(self, filters: Filters, context: Context, now: float) -> np.ndarray:
        allowed = self.allowed(np.arange(len(self._items)), filters, context, now)
        return allowed & self._items.known

    def _listed(self, rule: Allow | Deny) -> np.ndarray:
        if rule.column is None:
            ids = self._ids(rule.file) if rule.file is not None else map(to_id, rule.items or ())
            return self._named(rule, ids)
        values, names = self._items.values(rule.column), [spell(name) for name in rule.values or ()]
        if absent := [name for name in names if name not in values.names]:
            self.warnings.append(
                f"{label(rule)}: no item has {', '.join(map(repr, absent))} in {rule.column!r}."
            )
        return values.having(np.arange(len(self._items)), names)

    def _ids(self, file: str) -> list[str]:
        assert self._file is not None
        return list(self._file.ids[file])

    def _named(self, rule: Rule, ids: Iterable[str]) -> np.ndarray:
        ids = list(ids)
        known, unknown = self._items.indices(ids)
        if unknown:
            self.warnings.append(
                f"{label(rule)}: {len(unknown)} of {len(ids)} ids are not in the catalogue, such "
                f"as {unknown[0]!r}."
            )
        mask = np.zeros(len(self._items), bool)
        mask[known] = True
        return mask

    def _categories(self) -> Values:
        if self._category_values is None:
            raise UserError(
                "the items have no column 'category' or 'categories' to filter by. Name another "
                "one as category_column in the file of rules."
            )
        return self._category_values


def _category_column(file: RulesFile | None, items: ItemTable) -> str | None:
    if file and file.category_column:
        try:
            items.check_column(file.category_column)
        except UserError as error:
            raise UserError(f"{file.path}: category_column: {error}") from None
        return file.category_column
    return next((name for name in _CATEGORY_COLUMNS if name in items.columns), None)


def _in_stock(items: ItemTable, column: str) -> np.ndarray:
    """Returns (V,) bool: true, or a number above 0; what is not known is not in stock."""
    values = items.values(column)

    def there(name: str) -> bool:
        try:
            return name == "true" or float(name) > 0
        except ValueError:
            if name == "false":
                return False
            raise UserError(
                f"column {column!r} does not say what is in stock: it holds {name!r}, and should "
                "hold true and false, or numbers."
            ) from None

    return values.having(np.arange(len(items)), [name for name in values.names if there(name)])
