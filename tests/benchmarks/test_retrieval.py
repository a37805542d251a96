"""What is timed finds the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


def test_exact_search_is_compared_on_what_it_finds(benchmark: Callable[[str], Any]) -> None:
    pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    items, users = random.normal(size=(301, 8)), random.normal(size=(3, 8))
    items[0] = 100  # padding, which neither finds
    found = benchmark("retrieval").exact(
        users.astype(np.float32), items.astype(np.float32), 10, seconds=0.01
    )
    assert found["same_as_faiss"] == 1.0
    assert found["faiss_flat_over_jaxrec"] == pytest.approx(
        found["faiss_flat_ms"] / found["jaxrec_ms"]
    )


def test_works_take_turns(benchmark: Callable[[str], Any]) -> None:
    called: list[str] = []
    works = {name: lambda name=name: called.append(name) for name in ("a", "b")}
    medians = benchmark("retrieval").in_turns(works, seconds=0)
    assert called == ["a", "b"] * 4 and medians.keys() == works.keys()
