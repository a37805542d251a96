"""The area under the curve against pairs counted one by one."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec import metrics


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_auc_is_the_share_of_pairs_in_order(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in pairs], np.float64)
    labels = np.array([label for _, label in pairs])
    differences = scores[labels][:, None] - scores[~labels][None, :]
    wins = (differences > 0) + 0.5 * (differences == 0)
    expected = wins.mean() if wins.size else 0.5
    np.testing.assert_allclose(metrics.auc(scores, labels), expected)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_hand_worked_values(array: type) -> None:
    scores, labels = array(np.array([0.1, 0.4, 0.35, 0.8])), array(np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(metrics.auc(scores, labels), 0.75)
    np.testing.assert_allclose(metrics.auc(-scores, labels), 0.25)
