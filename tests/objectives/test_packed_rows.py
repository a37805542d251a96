"""Packing changes no number: the loss and gradients of packed rows are those of a window a row."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jaxrec.data import Dataset, SequenceData
from jaxrec.functional import functional
from jaxrec.models import sasrec
from jaxrec.objectives import FullSoftmax
from jaxrec.typing import Batch

MAX_LEN = 9


def unpacked(batch: Batch) -> Batch:
    """Returns the same windows, each in a row of its own with padding in front."""
    found = []
    for history, positives, segments in zip(
        batch.history, batch.positives, batch.segments, strict=True
    ):
        for number in range(1, int(segments.max()) + 1):
            window = np.stack([history, positives])[:, segments == number]
            found.append(np.pad(window, ((0, 0), (MAX_LEN - window.shape[1], 0))))
    history, positives = np.stack(found, axis=1)
    return Batch(history=history, positives=positives, where=history > 0)


@pytest.mark.grid(quick=2)
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("row_len", [0, 25])
def test_packed_rows_have_the_loss_and_gradients_of_their_windows(
    row_len: int, positions: Any, random_dataset: Callable[..., Dataset]
) -> None:
    dataset = random_dataset(0, num_users=40, num_items=12, mean_length=6)
    data = SequenceData(max_len=MAX_LEN, targets="packed", row_len=row_len)
    packed = data.batches(dataset, 5, seed=0).batch(0)
    alone = unpacked(packed)
    assert len(alone.history) > 1.5 * len(packed.history)
    config = sasrec.Config(max_len=MAX_LEN, dim=8, hidden=16, init_std=0.3, positions=positions)
    model = functional(config.fit(dataset.manifest).build)
    params = model.init(jax.random.key(0))

    def total(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return FullSoftmax().loss(model.bind(params), batch, None)

    compute = jax.jit(jax.value_and_grad(total, has_aux=True))
    (loss, tokens), gradients = compute(params, packed)
    (wanted_loss, wanted_tokens), wanted = compute(params, alone)
    assert float(tokens) == float(wanted_tokens) == np.sum(alone.where)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
    largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(wanted))
    assert largest > 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gradients, wanted
    )
