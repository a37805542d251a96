"""Parameters by name."""

import pytest

from jaxrec.paths import divide, flatten, nest, select, unite
from jaxrec.typing import UserError

TREE = {"items": {"table": 1}, "blocks": {"0": {"up": {"kernel": 2, "bias": 3}}, "1": {"up": 4}}}
PATHS = ["blocks/0/up/bias", "blocks/0/up/kernel", "blocks/1/up", "items/table"]


def test_flat_and_nested_are_each_others_inverse() -> None:
    flat = flatten(TREE)
    assert sorted(flat) == PATHS
    assert nest(flat) == TREE
    assert flatten({}) == nest({}) == {}


def test_a_divided_tree_is_whole_again_when_united() -> None:
    first, second = divide(TREE, {"blocks/0/up/bias", "items/table"})
    assert first == {"items": {"table": 1}, "blocks": {"0": {"up": {"bias": 3}}}}
    assert second == {"blocks": {"0": {"up": {"kernel": 2}}, "1": {"up": 4}}}
    assert unite(first, second) == unite(second, first) == TREE
    assert divide(TREE, None) == (TREE, {})
    assert unite(TREE, {"items": {"table": 9}})["items"] == {"table": 9}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("items/table", ["items/table"]),
        ("items", ["items/table"]),
        ("blocks/0/", ["blocks/0/up/bias", "blocks/0/up/kernel"]),
        ("*/bias", ["blocks/0/up/bias"]),
        ("blocks/*/up*", ["blocks/0/up/bias", "blocks/0/up/kernel", "blocks/1/up"]),
        ("*", PATHS),
    ],
)
def test_a_pattern_is_a_path_a_beginning_or_a_glob(pattern: str, found: list[str]) -> None:
    assert sorted(select([pattern], PATHS, option="x")) == found


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"trained: 'block/0' matches .* mean 'blocks/0'\?"):
        select(["items", "block/0"], PATHS, option="trained")
    # The beginning of a word is not the beginning of a path.
    with pytest.raises(UserError, match="'blo' matches no parameter"):
        select(["blo"], PATHS, option="trained")
