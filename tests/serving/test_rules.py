"""Rules against the plainest code for the same, on random catalogues, and by hand."""

import datetime
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrec.serving.items import ItemTable
from jaxrec.serving.rules import Candidates, Filters, Ranked, Rules, load_rules
from jaxrec.typing import UserError

ROOT = Path(__file__).parents[2]
DAY = 86_400.0
NOW = 1_700_000_000.0
NO_FILTERS = Filters()
type Load = Callable[..., Rules]

# Items 1 to 6.
IDS = ["a", "b", "c", "d", "e", "f"]
COLUMNS: dict[str, list[Any]] = {
    "category": ["Drama|Comedy", "Drama", None, ["Comedy", "War"], "", "War"],
    "brand": ["x", "x", "y", "x", None, "y"],
    "stock": [3, 0, None, 1, 2, 0],
    "released": [NOW, NOW - DAY, NOW - 2 * DAY, None, NOW - 10 * DAY, NOW + DAY],
}
VECTORS = np.eye(7, dtype=np.float32)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(
        text: str, *, columns: Mapping[str, Sequence[Any]] = COLUMNS, ids: Sequence[str] = IDS
    ) -> Rules:
        path = tmp_path / "rules.toml"
        path.write_text(text)
        return load_rules(path, ItemTable.from_columns(ids, columns))

    return loaded


def allowed(
    rules: Rules, filters: Filters = NO_FILTERS, *, now: float = NOW, **context: Any
) -> str:
    """The ids that may be shown, in one word."""
    _, make = rules.mask(filters, context, now)
    mask = make()
    assert mask.shape == (7,) and mask.dtype == bool and not mask[0]
    return "".join(IDS[item - 1] for item in np.flatnonzero(mask))


def candidates(items: Any, scores: Any, **more: Any) -> Candidates:
    vectors = more.pop("vectors", VECTORS)
    return Candidates(
        items=np.array(items, np.int32),
        scores=np.array(scores, np.float32),
        vectors=lambda rows: vectors[rows],
        **more,
    )


def order(ranked: Sequence[Ranked]) -> list[int]:
    return [one.item for one in ranked]


def named(ranked: Sequence[Ranked]) -> list[list[str]]:
    return [[reason.name for reason in one.reasons] for one in ranked]


# Which items -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ('[[deny]]\nname = "n"\nitems = ["a", "c"]', "bdef"),
        ('[[allow]]\nname = "n"\nitems = ["a", "c"]', "ac"),
        ('[[deny]]\nname = "n"\ncolumn = "category"\nvalues = ["Comedy"]', "bcef"),
        ('[[allow]]\nname = "n"\ncolumn = "category"\nvalues = ["Comedy", "War"]', "adf"),
        ('[[stock]]\nname = "n"\ncolumn = "stock"', "ade"),
        ('[[age]]\nname = "n"\ncolumn = "released"\nmax_days = 2', "abcdf"),
        ('[[age]]\nname = "n"\ncolumn = "released"\nmax_days = 1.5', "abdf"),
        (
            '[[allow]]\nname = "n"\ncolumn = "brand"\nvalues = ["x"]\n'
            '[[stock]]\nname = "m"\ncolumn = "stock"',
            "ad",
        ),
    ],
)
def test_masks_by_hand(load: Load, rule: str, left: str) -> None:
    assert allowed(load(rule), now=NOW // 3600 * 3600) == left


def test_files_of_ids_lie_beside_the_rules_and_may_run_ahead_of_the_model(
    load: Load, tmp_path: Path
) -> None:
    (tmp_path / "stock.txt").write_text("\ufeffa\r\n\r\n  f \r\nnew item\r\n", encoding="utf-8")
    rules = load('[[stock]]\nname = "in stock"\nfile = "stock.txt"')
    assert allowed(rules) == "af"
    assert rules.warnings == [
        "stock 'in stock': 1 of 3 ids are not in the catalogue, such as 'new item'."
    ]
    assert rules.watched() == [tmp_path / "rules.toml", tmp_path / "stock.txt"]


def test_filters_narrow_what_the_rules_leave(load: Load) -> None:
    rules = load('[[deny]]\nname = "n"\nitems = ["a"]')
    assert allowed(rules, Filters(allow=["a", "b", "f", "unknown"])) == "bf"
    assert allowed(rules, Filters(deny=["b", "unknown"])) == "cdef"
    assert allowed(rules, Filters(categories=["Comedy"])) == "d"
    assert allowed(rules, Filters(categories=["War", "Drama"], deny=["f"])) == "bd"
    assert allowed(rules, Filters(allow=[])) == allowed(rules, Filters(categories=["no"])) == ""
    assert allowed(rules, Filters(deny=[])) == "bcdef"


def test_categories_are_those_of_the_column_named(load: Load) -> None:
    rules = load('category_column = "brand"')
    assert allowed(rules, Filters(categories=["y"])) == "cf"
    without = load("", columns={"brand": COLUMNS["brand"]})
    with pytest.raises(UserError, match="no column 'category' or 'categories'"):
        without.mask(Filters(categories=["y"]), {}, NOW)


def test_without_a_file_requests_filter_all_the_same() -> None:
    rules = load_rules(None, ItemTable.from_columns(IDS, COLUMNS))
    assert allowed(rules, Filters(categories=["War"])) == "df"
    assert rules.mask(NO_FILTERS, {}, NOW)[0] is None
    assert (rules.version, rules.watched(), rules.warnings) == ("", [], [])


def test_conditions_are_equal_values_of_the_context(load: Load) -> None:
    rules = load('[[deny]]\nname = "n"\nitems = ["a"]\nwhen = { kids = true, age = 6 }')
    assert allowed(rules, kids=True, age=6.0) == "bcdef"
    contexts: list[dict[str, Any]] = [
        {},
        {"kids": True},
        {"kids": 1, "age": 6},
        {"kids": True, "age": "6"},
    ]
    for context in contexts:
        assert allowed(rules, **context) == "abcdef"
        assert rules.mask(NO_FILTERS, context, NOW)[0] is None


def test_equal_masks_have_equal_keys_and_others_do_not(load: Load) -> None:
    text = (
        '[[deny]]\nname = "n"\nitems = ["a"]\nwhen = { kids = true }\n'
        '[[age]]\nname = "m"\ncolumn = "released"\nmax_days = 1\nwhen = { page = "news" }'
    )
    rules = load(text)

    def key(filters: Filters = NO_FILTERS, now: float = NOW, **context: Any) -> Any:
        return rules.mask(filters, context, now)[0]

    hour = NOW // 3600 * 3600
    assert key(kids=True) == key(kids=True, other="x", now=NOW + 9999)
    assert key(page="news", now=hour) == key(page="news", now=hour + 3599)
    assert key(Filters(deny=["a", "b"])) == key(Filters(deny=["b", "a", "b"]))
    distinct = [
        *(key(), key(kids=True), key(page="news"), key(kids=True, page="news")),
        *(key(page="news", now=hour + 3600), key(Filters(deny=["a"])), key(Filters(allow=["a"]))),
        *(key(Filters(categories=["a"])), key(Filters(allow=[]))),
        load(text.replace('"a"', '"b"')).mask(NO_FILTERS, {"kids": True}, NOW)[0],
    ]
    assert len(set(distinct)) == len(distinct)


def test_a_mask_of_an_hour_is_the_same_whenever_it_is_made(load: Load) -> None:
    columns = {"released": [NOW - n * 1000 for n in range(6)]}
    rules = load('[[age]]\nname = "n"\ncolumn = "released"\nmax_days = 0.04', columns=columns)
    hour = NOW // 3600 * 3600
    masks = {allowed(rules, now=hour + late) for late in (0, 1800, 3599)}
    assert len(masks) == 1 and masks != {allowed(rules, now=hour + 3600)}


# In what order -----------------------------------------------------------------------------------


def test_without_rules_about_order_the_list_is_the_candidates(load: Load) -> None:
    ranked = load('[[deny]]\nname = "n"\nitems = ["a"]').rerank(
        candidates([3, 1, 2], [0.5, 0.25, 0.125]), 2, {}, NOW
    )
    assert ranked == [Ranked(3, 0.5), Ranked(1, 0.25)]


def test_freshness_halves_with_each_half_life(load: Load) -> None:
    rules = load(
        '[[freshness]]\nname = "new"\ncolumn = "released"\nscore = 0.8\nhalf_life_days = 1\n'
        'reason = "came out lately"'
    )
    ranked = rules.rerank(candidates([5, 4, 3, 2, 1, 6], [0.5] * 6), 6, {}, NOW)
    # Released now, in the future, 1 and 2 days ago, 10 days ago; of item 4 nothing is known.
    assert order(ranked) == [1, 6, 2, 3, 5, 4]
    assert [one.score for one in ranked] == pytest.approx(
        [1.3, 1.3, 0.9, 0.7, 0.5 + 0.8 / 1024, 0.5]
    )
    assert named(ranked) == [["new"]] * 4 + [[], []]
    assert ranked[0].reasons[0].text == "came out lately"


def test_a_cap_leaves_out_what_is_too_much_and_says_what_moved_up(load: Load) -> None:
    rules = load('[[cap]]\nname = "brands"\ncolumn = "brand"\nmost = 1')
    ranked = rules.rerank(candidates([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]), 6, {}, NOW)
    assert order(ranked) == [1, 3, 5]
    assert named(ranked) == [[], ["brands"], ["brands"]]


def test_pins_take_their_places(load: Load) -> None:
    rules = load(
        '[[pin]]\nname = "two"\nitem = "e"\nposition = 2\n'
        '[[pin]]\nname = "one"\nitem = "f"\nposition = 1\n'
        '[[pin]]\nname = "also two"\nitem = "a"\nposition = 2\nreason = "for you"\n'
        '[[pin]]\nname = "far"\nitem = "b"\nposition = 5\n'
        '[[pin]]\nname = "unknown"\nitem = "zzz"\nposition = 1'
    )
    ranked = rules.rerank(candidates([1, 2, 3, 4], [4, 3, 2, 1]), 4, {}, NOW)
    assert order(ranked) == [6, 5, 1, 2]
    assert [one.score for one in ranked] == [None, None, 4, 3]
    assert named(ranked) == [["one"], ["two"], ["also two"], []]
    assert order(rules.rerank(candidates([3], [1]), 6, {}, NOW)) == [6, 5, 1, 3, 2]
    assert order(rules.rerank(candidates([1, 2], [2, 1]), 1, {}, NOW)) == [6]
    assert rules.warnings == ["pin 'unknown': 'zzz' is not in the catalogue."]


def test_what_may_not_be_shown_is_not_pinned(load: Load) -> None:
    pin = '[[pin]]\nname = "p"\nitem = "a"\nposition = 1\n'
    found = candidates([2, 3], [2, 1])
    assert order(load(pin).rerank(found, 2, {}, NOW)) == [1, 2]
    rules = load(pin + '[[deny]]\nname = "n"\nitems = ["a"]\nwhen = { kids = true }')
    assert order(rules.rerank(found, 2, {"kids": True}, NOW)) == [2, 3]
    assert order(rules.rerank(found, 2, {}, NOW)) == [1, 2]
    old = '[[age]]\nname = "n"\ncolumn = "released"\nmax_days = 1'
    assert order(load(pin + old).rerank(found, 2, {}, NOW + 2 * DAY)) == [2, 3]
    for filters in (Filters(deny=["a"]), Filters(allow=["b", "c"]), Filters(categories=["War"])):
        assert order(rules.rerank(found, 2, {}, NOW, filters)) == [2, 3]
    seen = candidates([2, 3], [2, 1], excluded=np.array([1, 5]))
    assert order(rules.rerank(seen, 2, {}, NOW)) == [2, 3]


def naive(
    items: list[int],
    scores: list[float],
    count: int,
    *,
    brands: Mapping[int, set[str]],
    most: int | None,
    relevance: float | None,
    vectors: np.ndarray,
    pins: Mapping[int, int],
) -> list[int]:
    """Pins, then one item after the other by looking at all that are left, with no shortcut."""
    pinned = [pins[place] for place in sorted(pins) if place <= count]
    counts = Counter(brand for item in pinned for brand in brands[item])
    left = [(item, score) for item, score in zip(items, scores, strict=True) if item not in pinned]
    low = min((score for _, score in left), default=0)
    high = max((score for _, score in left), default=0)
    there: list[int] = list(pinned)
    chosen: list[int] = []
    while left and len(chosen) < count - len(pinned):
        best, best_value = None, -np.inf
        for item, score in left:
            if most is not None and any(counts[brand] >= most for brand in brands[item]):
                continue
            value = score
            if relevance is not None:
                likeness = max(
                    (float(vectors[item] @ vectors[other]) for other in there), default=0
                )
                share = (score - low) / (high - low) if high > low else 0
                value = relevance * share - (1 - relevance) * likeness
            if value > best_value:
                best, best_value = item, value
        if best is None:
            break
        left = [(item, score) for item, score in left if item != best]
        counts.update(brands[best])
        there.append(best)
        chosen.append(best)
    for place in sorted(pins):
        if place <= count:
            chosen.insert(place - 1, pins[place])
    return chosen


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 12),
    most=st.none() | st.integers(1, 3),
    relevance=st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    pins=st.dictionaries(st.integers(1, 12), st.integers(1, 30), max_size=3),
)
def test_order_is_that_of_looking_at_everything(
    load: Load,
    seed: int,
    count: int,
    most: int | None,
    relevance: float | None,
    pins: dict[int, int],
) -> None:
    random = np.random.default_rng(seed)
    pins = {place: item for place, item in pins.items() if list(pins.values()).count(item) == 1}
    ids = [str(n) for n in range(1, 31)]
    brands = {n: set(random.choice(list("uvwxyz"), random.integers(0, 3))) for n in range(1, 31)}
    vectors = random.normal(size=(31, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = random.choice(np.arange(1, 31), random.integers(0, 21), replace=False).tolist()
    scores = sorted((random.integers(0, 8, len(items)) / 8).tolist(), reverse=True)
    text = "".join(
        f'[[pin]]\nname = "pin {place}"\nitem = {item}\nposition = {place}\n'
        for place, item in pins.items()
    )
    if most is not None:
        text += f'[[cap]]\nname = "cap"\ncolumn = "brand"\nmost = {most}\n'
    if relevance is not None:
        text += f'[[diversity]]\nname = "variety"\nrelevance = {relevance}\n'
    cells = ["|".join(sorted(brands[n])) for n in range(1, 31)]
    rules = load(text, ids=ids, columns={"brand": cells})
    ranked = rules.rerank(candidates(items, scores, vectors=vectors), count, {}, NOW)
    expected = naive(
        items,
        scores,
        count,
        brands=brands,
        most=most,
        relevance=relevance,
        vectors=vectors,
        pins=pins,
    )
    assert order(ranked) == expected


def test_variety_prefers_what_is_unlike_and_says_so(load: Load) -> None:
    vectors = np.zeros((7, 2), np.float32)
    vectors[[1, 2, 3]] = [1, 0]
    vectors[4] = [0, 1]
    rules = load('[[diversity]]\nname = "variety"\nrelevance = 0.5')
    ranked = rules.rerank(
        candidates([1, 2, 3, 4], [1.0, 0.9, 0.8, 0.2], vectors=vectors), 3, {}, NOW
    )
    # Shares are 1, 0.875, 0.75 and 0; after item 1: 0.4375 - 0.5, 0.375 - 0.5, and 0 - 0.
    assert order(ranked) == [1, 4, 2]
    assert named(ranked) == [[], ["variety"], []]


def test_a_hundred_candidates_are_ranked_in_about_a_millisecond(load: Load) -> None:
    random = np.random.default_rng(0)
    ids = [str(n) for n in range(1, 1001)]
    columns = {
        "brand": [str(n % 37) for n in range(1000)],
        "released": [NOW - n * 3600 for n in range(1000)],
    }
    rules = load(
        '[[freshness]]\nname = "new"\ncolumn = "released"\nscore = 0.5\nhalf_life_days = 14\n'
        '[[cap]]\nname = "brands"\ncolumn = "brand"\nmost = 2\n'
        '[[diversity]]\nname = "variety"\nrelevance = 0.7\n'
        '[[pin]]\nname = "pin"\nitem = "5"\nposition = 2',
        ids=ids,
        columns=columns,
    )
    vectors = random.normal(size=(1001, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = candidates(
        random.permutation(1000)[:100] + 1, -np.sort(random.random(100)), vectors=vectors
    )
    times = []
    for _ in range(50):
        start = time.perf_counter()
        assert len(rules.rerank(found, 20, {}, NOW)) == 20
        times.append(time.perf_counter() - start)
    assert min(times) < 0.002  # 0.4 ms on an idle core


# The file ----------------------------------------------------------------------------------------


def test_the_example_holds_for_a_catalogue_with_its_columns() -> None:
    ids = ["171", "302", "242", "1", "2"]
    columns: dict[str, list[Any]] = {
        "genres": ["Drama", "War", "Horror|Drama", "Comedy|Crime", None],
        "countries": ["AT|DE", "AT", "AT", "DE", "AT"],
        "stock": [5, 5, 5, 5, 0],
        "released": ["2023-11-01", None, datetime.date(2023, 1, 1), "2023-11-14T10:00:00Z", ""],
        "brand": ["x", "y", "z", "x", "y"],
    }
    rules = load_rules(ROOT / "configs" / "rules.toml", ItemTable.from_columns(ids, columns))
    assert rules.warnings == []
    shown = np.flatnonzero(rules.mask(NO_FILTERS, {}, NOW)[1]())
    assert [ids[item - 1] for item in shown] == ["242", "1"]
    in_austria = np.flatnonzero(rules.mask(NO_FILTERS, {"country": "AT"}, NOW)[1]())
    assert [ids[item - 1] for item in in_austria] == ["242"]
    ranked = rules.rerank(candidates([4], [1.0]), 2, {"page": "home"}, NOW)
    assert order(ranked) == [4, 3]
    assert named(ranked) == [["new releases"], ["spring sale"]]


def test_the_version_follows_the_content_of_all_files(load: Load, tmp_path: Path) -> None:
    text = '[[deny]]\nname = "n"\nfile = "ids.txt"'
    (tmp_path / "ids.txt").write_text("a\n")
    first = load(text).version
    assert len(first) == 64 and load(text).version == first
    (tmp_path / "ids.txt").write_text("b\n")
    second = load(text).version
    assert len({first, second, load(text + "\n# A comment.").version}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[deny]", "is not written in TOML"),
        ('[[ban]]\nname = "n"', "no kind of rule 'ban'. Did you mean '[a-z_]*'?"),
        ("category_column = 3", "category_column is a text; got 3"),
        ('category_column = "brnd"', "category_column: .*no column 'brnd'. Did you mean 'brand'?"),
        ('[deny]\nname = "n"', r"write each rule under a line \[\[deny\]\]"),
        ("[[deny]]\nitems = []", "deny: each rule has a name, which is a text; got None"),
        ('[[deny]]\nname = "n"', "deny 'n': say which items are meant in one way.*got 0"),
        (
            '[[deny]]\nname = "n"\nitems = ["a"]\nfile = "x"',
            "deny 'n': say which items are meant in one way.*got 2",
        ),
        ('[[deny]]\nname = "n"\ncolumn = "brand"', "deny 'n': `column` and `values` go together"),
        ('[[deny]]\nname = "n"\nitem = ["a"]', "deny 'n': there is no field 'item'. .*'items'"),
        ('[[deny]]\nname = "n"\nitems = "a"', "items wants a list, each of it a text or a whole"),
        (
            '[[deny]]\nname = "n"\nfile = "no.txt"',
            "deny 'n': file 'no.txt' cannot be read: No such",
        ),
        (
            '[[deny]]\nname = "n"\ncolumn = "brands"\nvalues = ["x"]',
            "deny 'n': the items have no column 'brands'. Did you mean 'brand'?",
        ),
        ('[[stock]]\nname = "n"\ncolumn = "brand"', "stock 'n': column 'brand' does not say what"),
        ('[[stock]]\nname = "n"', "stock 'n': say what is in stock by `file` or by `column`"),
        ('[[age]]\nname = "n"\ncolumn = "released"', "age 'n': max_days is missing"),
        (
            '[[age]]\nname = "n"\ncolumn = "released"\nmax_days = "2"',
            "age 'n': max_days wants a number; got '2'",
        ),
        ('[[age]]\nname = "n"\ncolumn = "released"\nmax_days = nan', "wants a number; got nan"),
        ('[[age]]\nname = "n"\ncolumn = "released"\nmax_days = 0', "`max_days` is above 0; got 0"),
        (
            '[[age]]\nname = "n"\ncolumn = "brand"\nmax_days = 1',
            "age 'n': column 'brand' is no column of times: item 'a' has 'x'",
        ),
        ('[[cap]]\nname = "n"\ncolumn = "brand"\nmost = 0', "`most` is 1 or more; got 0"),
        (
            '[[cap]]\nname = "n"\ncolumn = "brand"\nmost = true',
            "most wants a whole number; got True",
        ),
        ('[[diversity]]\nname = "n"\nrelevance = 1.5', "between 0 and 1; got 1.5"),
        ('[[pin]]\nname = "n"\nitem = "a"\nposition = 0', "`position` counts from 1; got 0"),
        (
            '[[pin]]\nname = "n"\nitem = "a"\nposition = 1\nwhen = { page = ["home"] }',
            "pin 'n': when.page is a text, a number, true or false; got",
        ),
        ('[[pin]]\nname = "n"\nitem = "a"\nposition = 1\nwhen = "home"', "when wants a table"),
        (
            '[[pin]]\nname = "n"\nitem = "a"\nposition = 1\n[[deny]]\nname = "n"\nitems = []',
            "two rules are called 'n'",
        ),
    ],
)
def test_a_mistake_is_named_with_file_rule_and_field(load: Load, text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"rules.toml.*{message}"):
        load(text)


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.toml cannot be read: No such file"):
        load_rules(tmp_path / "absent.toml", ItemTable.from_columns(IDS, COLUMNS))


def test_values_that_no_item_has_are_warnings(load: Load) -> None:
    rules = load('[[deny]]\nname = "n"\ncolumn = "category"\nvalues = ["Dramma", "War"]')
    assert allowed(rules) == "abce"
    assert rules.warnings == ["deny 'n': no item has 'Dramma' in 'category'."]
