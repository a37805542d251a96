"""These tests compile many tiny programs once, so the compiler does not optimise them."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
