"""Rules: which items may be shown, and in what order, after the model has spoken.

Rules about which items are masks, which the retrieval applies, so that a list stays as long as it
was asked for. Rules about the order work on the candidates: fresh items are raised, then places are
pinned, then the others are chosen one by one under caps and for variety.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrec.serving.items import ItemTable, Values
from jaxrec.serving.masks import NO_FILTERS, Filters, Masks
from jaxrec.serving.reranking import Limit, Variety, choose
from jaxrec.serving.rules_file import (
    Age,
    Allow,
    Cap,
    Context,
    Deny,
    Diversity,
    Freshness,
    Pin,
    Rule,
    RulesFile,
    Stock,
    label,
    read_rules_file,
    to_id,
)
from jaxrec.typing import UserError

__all__ = ["Candidates", "Filters", "Ranked", "Reason", "Rules", "load_rules"]

_DAY = 86_400.0
_TOLD_SHARE = 0.1  # of a boost, from which on it is told as a reason


@dataclasses.dataclass(frozen=True, slots=True)
class Candidates:
    """What retrieval found.

    Attributes:
      items: (n,) int32, best first.
      scores: (n,) float32.
      vectors: gives the (m, dim) unit vectors of m items.
      excluded: (e,) items that may not be pinned either, such as those that a user has seen.
    """

    items: np.ndarray
    scores: np.ndarray
    vectors: Callable[[np.ndarray], np.ndarray]
    excluded: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))


@dataclasses.dataclass(frozen=True, slots=True)
class Reason:
    """Why an item is where it is."""

    kind: str
    name: str
    text: str


class Ranked(NamedTuple):
    """An item of the list; the score is None for a pinned item that was no candidate."""

    item: int
    score: float | None
    reasons: tuple[Reason, ...] = ()


class Rules:
    """The rules of a file, for the items of a catalogue. Nothing in it changes.

    Attributes:
      version: SHA-256 over the file and the files that it names; "" without a file.
      warnings: sentences about ids and values that no item has. Files of stock run ahead of models,
        so they are no errors.
    """

    def __init__(self, file: RulesFile | None, items: ItemTable) -> None:
        self._file, self._items = file, items
        self.version = file.version if file else ""
        self._masks = Masks(file, items)
        self.warnings = self._masks.warnings
        self._boosts: list[tuple[Freshness, np.ndarray]] = []
        self._caps: list[tuple[Cap, Values]] = []
        self._diversities: list[Diversity] = []
        self._pins: list[tuple[Pin, int]] = []
        for rule in file.rules if file else ():
            try:
                self._add(rule)
            except UserError as error:
                raise UserError(f"{file and file.path}: {label(rule)}: {error}") from None
        self._pins.sort(key=lambda pin: pin[0].position)

    @property
    def described(self) -> dict[str, Any]:
        """What is told of them: version, warnings, and each rule with its kind and fields."""
        rules = [
            {"kind": type(rule).__name__.lower()}
            | {key: x for key, x in dataclasses.asdict(rule).items() if x is not None}
            for rule in (self._file.rules if self._file else ())
        ]
        return {"version": self.version, "rules": rules, "warnings": self.warnings}

    def mask(
        self, filters: Filters, context: Context, now: float
    ) -> tuple[Hashable, Callable[[], np.ndarray]]:
        """Returns which items may be shown: a key, and what makes the (V,) mask.

        The key is equal for equal masks, and None when every item may be shown. Where ages matter
        it changes with the hour.

        Raises:
          UserError: for the filter `categories` where the items have no column for it.
        """
        return self._masks.mask(filters, context, now)

    def rerank(
        self,
        candidates: Candidates,
        k: int,
        context: Context,
        now: float,
        filters: Filters = NO_FILTERS,
    ) -> list[Ranked]:
        """Returns the list of at most k items; it is shorter where caps leave no more.

        Args:
          candidates: best first, and already masked.
          k: how many to return.
          context: what conditions of rules look at.
          now: Unix seconds.
          filters: those of the request, which pinned items obey too.
        """
        boosts = [boost for boost in self._boosts if boost[0].holds(context)]
        caps = [cap for cap in self._caps if cap[0].holds(context)]
        diversity = next((rule for rule in self._diversities if rule.holds(context)), None)
        pins = self._pinned(candidates.excluded, k, context, now, filters)
        items, scores = candidates.items, candidates.scores
        if not (boosts or caps or diversity or pins):
            pairs = zip(items[:k].tolist(), scores[:k].tolist(), strict=True)
            return [Ranked(item, score) for item, score in pairs]
        reasons: dict[int, list[Reason]] = {}
        if boosts:
            items, scores = _boosted(items, scores, boosts, now, reasons)
        pinned = np.array([item for _, item in pins], np.int32)
        score_of = dict(zip(items.tolist(), scores.tolist(), strict=True))
        left = ~np.isin(items, pinned)
        items, scores = items[left], scores[left]
        limits = [_limit(cap, values, items, pinned) for cap, values in caps]
        variety = None
        if diversity:
            vectors = candidates.vectors(np.concatenate([items, pinned]))
            variety = Variety(
                relevance=diversity.relevance,
                vectors=vectors[: len(items)],
                already=vectors[len(items) :],
            )
        chosen = choose(scores, k - len(pins), limits, variety)
        ranked = []
        for one in chosen:
            item = int(items[one.index])
            why = reasons.setdefault(item, [])
            why += [_reason(caps[n][0]) for n in one.over_limits]
            if diversity and one.for_variety:
                why.append(_reason(diversity))
            ranked.append(Ranked(item, score_of[item], tuple(why)))
        place = -1
        for pin, item in pins:
            place = max(place + 1, pin.position - 1)  # of two for one place the later moves down
            why = [_reason(pin), *reasons.get(item, ())]
            ranked.insert(place, Ranked(item, score_of.get(item), tuple(why)))
        return ranked

    def watched(self) -> list[Path]:
        """Returns the files whose change means that the rules should be loaded again."""
        return [self._file.path, *self._file.files] if self._file else []

    def _add(self, rule: Rule) -> None:
        """Keeps a rule with what it needs of the items."""
        match rule:
            case Allow() | Deny() | Stock() | Age():
                self._masks.add(rule)
            case Freshness():
                self._boosts.append((rule, self._items.times(rule.column)))
            case Cap():
                self._caps.append((rule, self._items.values(rule.column)))
            case Diversity():
                self._diversities.append(rule)
            case Pin():
                known, unknown = self._items.indices([to_id(rule.item)])
                self._pins += [(rule, int(item)) for item in known]
                self.warnings += [
                    f"{label(rule)}: {item!r} is not in the catalogue." for item in unknown
                ]

    def _pinned(
        self, excluded: np.ndarray, k: int, context: Context, now: float, filters: Filters
    ) -> list[tuple[Pin, int]]:
        """Returns pins that hold, whose place is in the list, and whose item may be shown."""
        pins = [pin for pin in self._pins if pin[0].position <= k and pin[0].holds(context)]
        if not pins:
            return []
        items = np.array([item for _, item in pins])
        allowed = self._masks.allowed(items, filters, context, now) & ~np.isin(items, excluded)
        first: dict[int, Pin] = {}
        for (pin, item), may in zip(pins, allowed.tolist(), strict=True):
            if may:
                first.setdefault(item, pin)
        return [(pin, item) for item, pin in first.items()][:k]


def load_rules(path: Path | None, items: ItemTable) -> Rules:
    """Returns the rules of a file, or for None what obeys the filters of requests alone.

    Raises:
      UserError: naming file, rule and field, for what is wrong.
    """
    return Rules(None if path is None else read_rules_file(path), items)


def _boosted(
    items: np.ndarray,
    scores: np.ndarray,
    boosts: Sequence[tuple[Freshness, np.ndarray]],
    now: float,
    reasons: dict[int, list[Reason]],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns candidates in the order of their raised scores; writes down why they are raised."""
    scores = scores.astype(np.float64)
    for rule, times in boosts:
        ages = np.maximum(now - times[items], 0)
        shares = np.nan_to_num(0.5 ** (ages / (rule.half_life_days * _DAY)))
        scores += rule.score * shares
        for item in items[shares >= _TOLD_SHARE].tolist():
            reasons.setdefault(item, []).append(_reason(rule))
    order = np.argsort(-scores, kind="stable")
    return items[order], scores[order]


def _limit(cap: Cap, values: Values, items: np.ndarray, pinned: np.ndarray) -> Limit:
    already = [value for item in pinned.tolist() for value in values.of(item)]
    return Limit(most=cap.most, values=list(map(values.of, items.tolist())), already=already)


def _reason(rule: Freshness | Cap | Diversity | Pin) -> Reason:
    return Reason("rule", rule.name, rule.reason)
