"""The file of rules: what may stand in it, read strictly. configs/rules.toml shows all of it."""

import dataclasses
import difflib
import hashlib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrec.ids import id_text
from jaxrec.serving.items import spell
from jaxrec.typing import UserError

type Context = Mapping[str, str | float | bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What all rules have.

    Attributes:
      name: names the rule in reasons and in the log; no two rules have the same.
      when: values that a request's context must have for the rule to hold; {} always holds.
    """

    name: str
    when: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Raises UserError for values that are out of range or do not go together."""
        for key, value in self.when.items():
            if not isinstance(value, str | int | float):
                raise UserError(f"when.{key} is a text, a number, true or false; got {value!r}.")

    def holds(self, context: Context) -> bool:
        """Returns whether a request's context meets all conditions; a missing value does not."""
        return all(key in context and _same(context[key], self.when[key]) for key in self.when)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Listed(Rule):
    """Some items: `items`, or those in `file`, or those that have one of `values` in `column`."""

    items: list[str | int] | None = None
    file: str | None = None
    column: str | None = None
    values: list[str | int | float | bool] | None = None

    def check(self) -> None:
        super().check()
        ways = [self.items is not None, self.file is not None, self.column is not None]
        if sum(ways) != 1:
            raise UserError(
                "say which items are meant in one way: `items`, or `file`, or `column` with "
                f"`values`; got {sum(ways)} of them."
            )
        if (self.column is None) != (self.values is None):
            raise UserError("`column` and `values` go together; got one of them.")


class Allow(_Listed):
    """Only these items."""


class Deny(_Listed):
    """None of these items."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stock(Rule):
    """Only items in `file`, or whose `column` is true or a number above 0."""

    file: str | None = None
    column: str | None = None

    def check(self) -> None:
        super().check()
        if (self.file is None) == (self.column is None):
            raise UserError("say what is in stock by `file` or by `column`, one of the two.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Age(Rule):
    """No item whose time in `column` is more than `max_days` ago; items without a time stay."""

    column: str
    max_days: float

    def check(self) -> None:
        super().check()
        _check_positive("max_days", self.max_days)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Freshness(Rule):
    """Adds `score` to the score of an item that is new, half of it after each `half_life_days`."""

    column: str
    score: float
    half_life_days: float
    reason: str = "new"

    def check(self) -> None:
        super().check()
        _check_positive("score", self.score)
        _check_positive("half_life_days", self.half_life_days)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cap(Rule):
    """At most `most` items of each value of `column` in a list."""

    column: str
    most: int
    reason: str = "moved up, as there is enough of something else"

    def check(self) -> None:
        super().check()
        if self.most < 1:
            raise UserError(f"`most` is 1 or more; got {self.most}. Use deny to show none.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diversity(Rule):
    """Prefers items unlike those before them: 1 in `relevance` is the model's order."""

    relevance: float
    reason: str = "moved up for variety"

    def check(self) -> None:
        super().check()
        if not 0 <= self.relevance <= 1:
            raise UserError(f"`relevance` lies between 0 and 1; got {self.relevance}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pin(Rule):
    """Shows `item` at `position`, counted from 1, unless something forbids the item."""

    item: str | int
    position: int
    reason: str = "chosen for this place"

    def check(self) -> None:
        super().check()
        if self.position < 1:
            raise UserError(f"`position` counts from 1; got {self.position}.")


_KINDS: dict[str, type[Rule]] = {
    kind.__name__.lower(): kind
    for kind in (Allow, Deny, Stock, Age, Freshness, Cap, Diversity, Pin)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulesFile:
    """What is in a file of rules, and in the files of ids that it names.

    Attributes:
      path: where it lies.
      version: SHA-256 over all of these files.
      category_column: what the filter `categories` of requests looks at; None looks at a column
        "category" or "categories".
      rules: in the order of the file, kind by kind.
      ids: the ids in each file that a rule names, by that name.
      files: where those files lie.
    """

    path: Path
    version: str
    category_column: str | None
    rules: tuple[Rule, ...]
    ids: Mapping[str, list[str]]
    files: tuple[Path, ...]


def label(rule: Rule) -> str:
    """Returns what errors call a rule, such as: deny 'recalled'."""
    return f"{type(rule).__name__.lower()} {rule.name!r}"


def read_rules_file(path: Path) -> RulesFile:
    """Reads a file of rules. Raises UserError, naming file, rule and field, for what is wrong."""
    content = _read(path, str(path))
    try:
        table = tomllib.loads(content.decode())
    except ValueError as error:
        raise UserError(f"{path} is not written in TOML: {error}.") from None
    column = table.pop("category_column", None)
    if not isinstance(column, str | None):
        raise UserError(f"{path}: category_column is a text; got {column!r}.")
    rules: list[Rule] = []
    for kind, entries in table.items():
        if kind not in _KINDS:
            raise UserError(
                f"{path}: {_unknown('kind of rule', kind, [*_KINDS, 'category_column'])}"
            )
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path}: write each rule under a line [[{kind}]] of its own.")
        rules += [_parse(_KINDS[kind], entry, f"{path}: {kind}") for entry in entries]
    names = [rule.name for rule in rules]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: two rules are called {twice!r}. Give each a name of its own.")
    digest, ids, files = hashlib.sha256(content), {}, []
    for rule in rules:
        name = getattr(rule, "file", None)
        if name is not None and name not in ids:
            listed = _read(path.parent / name, f"{path}: {label(rule)}: file {name!r}")
            digest.update(b"\0" + listed)
            ids[name] = _lines(listed, f"{path}: {label(rule)}: file {name!r}")
            files.append(path.parent / name)
    return RulesFile(
        path=path,
        version=digest.hexdigest(),
        category_column=column,
        rules=tuple(rules),
        ids=ids,
        files=tuple(files),
    )


def _parse(kind: type[Rule], entry: dict[str, Any], where: str) -> Rule:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: each rule has a name, which is a text; got {name!r}.")
    where = f"{where} {name!r}"
    hints = typing.get_type_hints(kind)
    for field, value in entry.items():
        if field not in hints:
            raise UserError(f"{where}: {_unknown('field', field, list(hints))}")
        if not _fits(value, hints[field]):
            raise UserError(f"{where}: {field} wants {_spell_type(hints[field])}; got {value!r}.")
    for needed in dataclasses.fields(kind):
        optional = {needed.default, needed.default_factory} != {dataclasses.MISSING}
        if not optional and needed.name not in entry:
            raise UserError(f"{where}: {needed.name} is missing.")
    rule = kind(**entry)
    try:
        rule.check()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return rule


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is types.UnionType:
        return any(_fits(value, choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(v, typing.get_args(hint)[0]) for v in value)
    if typing.get_origin(hint) is dict:
        return isinstance(value, dict)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


_TYPE_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _spell_type(hint: Any) -> str:
    if typing.get_origin(hint) is types.UnionType:
        choices = [choice for choice in typing.get_args(hint) if choice is not type(None)]
        return " or ".join(dict.fromkeys(map(_spell_type, choices)))
    if typing.get_origin(hint) is list:
        return f"a list, each of it {_spell_type(typing.get_args(hint)[0])}"
    return _TYPE_NAMES.get(hint, 'a table such as { country = "DE" }')


def _unknown(what: str, given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.0)[0]
    return f"there is no {what} {given!r}. Did you mean {close!r}? There are: {', '.join(known)}."


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror}.") from None


def _lines(content: bytes, what: str) -> list[str]:
    """Returns the ids in a file, one a line."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except ValueError:
        raise UserError(f"{what} is no text in UTF-8. Write one id a line.") from None
    try:
        return [text for line in lines if (text := to_id(line))]
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def to_id(value: str | int) -> str:
    """Returns the text of an id in a rule, "" for none. Raises UserError for what is no id."""
    return id_text(value) or ""


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise UserError(f"`{name}` is above 0; got {spell(value)}.")


def _same(given: Any, wanted: Any) -> bool:
    # In Python, true is 1.
    return isinstance(given, bool) == isinstance(wanted, bool) and given == wanted
