"""Errors of ratings against values written out as arithmetic."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import metrics


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_hand_worked_values(array):
    predictions, labels = array(np.array([1.0, 4.0, 2.0])), array(np.array([2, 2, 2]))
    np.testing.assert_allclose(metrics.rmse(predictions, labels), ((1 + 4 + 0) / 3) ** 0.5)
    np.testing.assert_allclose(metrics.mae(predictions, labels), (1 + 2 + 0) / 3)
    where = array(np.array([True, False, True]))
    np.testing.assert_allclose(metrics.rmse(predictions, labels, where=where), (1 / 2) ** 0.5)
    np.testing.assert_allclose(metrics.mae(predictions, labels, where=where), 1 / 2)


def test_nothing_to_measure_gives_zero():
    where = np.zeros(2, bool)
    assert metrics.rmse(np.array([np.nan, 1]), np.ones(2), where=where) == 0
    assert metrics.mae(np.array([np.nan, 1]), np.ones(2), where=where) == 0
