"""These tests compile many tiny programs once, so the compiler does not optimise them."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest) -> Iterator[None]:
    plain = "optimised" not in request.keywords
    jax.config.update("jax_disable_most_optimizations", plain)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
