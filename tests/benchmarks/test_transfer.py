"""What content carries from one catalogue to another, in numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrec.data import TEST, TRAIN


@pytest.fixture(scope="module")
def transfer(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("transfer")


def test_only_the_chosen_users_are_learned_from_and_the_test_stays(transfer: Any) -> None:
    target = transfer.domain("b", 1, num_users=50, num_items=96)
    few = transfer.some_users(target, 0.1, 0)
    assert len(np.unique(few.users[few.split == TRAIN])) == 5
    np.testing.assert_array_equal(few.split == TEST, target.split == TEST)
    assert target.item_vocabulary["id"].str.startswith("b").all()


@pytest.mark.slow
def test_a_source_with_the_same_attributes_helps_where_users_are_few(
    transfer: Any, tmp_path: Path
) -> None:
    source, target = (transfer.domain(name, seed, num_users=800) for seed, name in enumerate("ab"))
    sizes: dict[str, Any] = {"shares": [0.02], "steps": 300, "more_steps": 100, "seed": 0}
    cases = transfer.measure(source, target, tmp_path, columns=["attributes"], **sizes)
    found = {(case["users"], case["start"]): case["test"] for case in cases}
    assert found[0.02, "source"] > 1.2 * found[0.02, "nothing"]
