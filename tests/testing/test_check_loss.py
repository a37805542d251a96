"""Every loss of the package has the properties; one that lacks any is refused by its name."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import losses
from jaxrec.testing import check_loss
from jaxrec.typing import UserError

SHRINKING = {"masked_mean"}
NO_LOSSES = {"gbce_beta"}  # a number for a config
LOSSES = [name for name in losses.__all__ if name not in NO_LOSSES]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_the_properties(name: str) -> None:
    loss = getattr(losses, name)
    checked = check_loss(loss, shrinks=name in SHRINKING)
    masks = {"where", "where_negatives"} & inspect.signature(loss).parameters.keys()
    assert {"float32 comes out", "gradients are finite"} <= set(checked.held)
    assert all(f"what {mask} leaves out changes nothing" in checked.held for mask in masks)


def squares(predictions: Any, labels: Any, *, where: Any = None, fault: str = "") -> Any:
    """A squared error with one thing wrong, or none."""
    dtype = None if fault == "dtype" else jnp.float32
    gap = jnp.asarray(predictions, dtype) - jnp.asarray(labels, dtype)
    values = jnp.square(gap)
    if fault == "extremes":
        values = jnp.log(jnp.exp(values))
    if fault == "order":
        values = values * jnp.arange(len(values), dtype=values.dtype)
    if fault == "gradient":
        values = jnp.sqrt(jnp.abs(gap - jax.lax.stop_gradient(gap)))
    if fault == "shape":
        return values.sum()
    if where is None:
        return values
    if fault == "mask":
        return values - jnp.mean(values)
    if fault == "nothing":
        return values / jnp.sum(where, dtype=jnp.float32) * where
    return jnp.where(where, values, 0)


def test_a_sound_loss_passes() -> None:
    assert len(check_loss(squares).held) > 8


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("dtype", "float32 comes out"),
        ("extremes", "finite at scores of"),
        ("order", "the order of examples does not matter"),
        ("gradient", "gradients are finite"),
        ("shape", "one value an example"),
        ("mask", "where of ones is none at all"),
        ("nothing", "where of ones is none at all|all masked gives 0"),
    ],
)
def test_a_loss_that_lacks_a_property_is_refused_by_its_name(fault: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_loss(functools.wraps(squares)(functools.partial(squares, fault=fault)))


def test_arguments_that_are_not_known_are_asked_for() -> None:
    def odd(oranges: Any) -> Any:
        return jnp.asarray(oranges, jnp.float32)

    with pytest.raises(UserError, match="does not know what odd wants as 'oranges'"):
        check_loss(odd)
    assert check_loss(odd, inputs={"oranges": np.ones(3, np.float32)}).held
