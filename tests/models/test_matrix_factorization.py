"""Matrix factorisation's scores by hand, and configs that fit a dataset."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data import Dataset
from jaxrec.functional import functional
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.models.matrix_factorization import Config, MatrixFactorization
from jaxrec.typing import Batch, UserError


def test_scores_are_dot_products_plus_biases_plus_the_mean() -> None:
    config = Config(num_users=2, num_items=3, dim=2, global_mean=3.5)
    model = functional(lambda rngs: MatrixFactorization(config, rngs=rngs))
    random = np.random.default_rng(0)
    users = random.standard_normal((3, 3)).astype(np.float32)
    items = random.standard_normal((4, 3)).astype(np.float32)
    params = {"users": {"table": users}, "items": {"table": items}}
    batch = Batch(users=jnp.array([2, 1]))
    vectors = np.asarray(model.apply(params, batch, method="user_vectors"))
    catalogue = np.asarray(model.apply(params, method="item_vectors"))
    expected = [
        [users[u, :2] @ items[i, :2] + users[u, 2] + items[i, 2] + 3.5 for i in range(4)]
        for u in (2, 1)
    ]
    np.testing.assert_allclose(vectors @ catalogue.T, expected, rtol=1e-5, atol=1e-6)
    some = model.apply(params, jnp.array([[3], [1]]), method="item_vectors")
    np.testing.assert_array_equal(some, catalogue[[[3], [1]]])


def test_its_two_tables_are_indexed_by_users_and_by_items() -> None:
    config = Config(num_users=2, num_items=3, dim=2)
    model = functional(lambda rngs: MatrixFactorization(config, rngs=rngs))
    params = model.init(jax.random.key(0))
    assert params["users"]["table"].shape == (3, 3)
    assert params["items"]["table"].shape == (4, 3)
    expected = {"users": ("users",), "items": ("positives", "negatives")}
    assert model.bind(params).tables == expected


def test_configs_take_the_datasets_counts(dataset_of: Callable[..., Dataset]) -> None:
    manifest = dataset_of([(1, 1, 0), (2, 3, 0)], num_items=4).manifest
    manifest = dataclasses.replace(manifest, label_mean=3.25)
    fitted = Config(dim=5).fit(manifest)
    assert fitted == Config(num_users=2, num_items=4, dim=5, global_mean=3.25)
    assert fitted.fit(manifest) == fitted
    assert Config(global_mean=1.0).fit(manifest).global_mean == 1.0
    assert sasrec.Config().fit(manifest) == sasrec.Config(num_items=4)


def test_configs_that_ask_for_other_counts_are_refused(
    dataset_of: Callable[..., Dataset],
) -> None:
    manifest = dataset_of([(1, 1, 0), (2, 3, 0)], num_items=4).manifest
    with pytest.raises(UserError, match="num_items=5 does not fit.*has 4"):
        sasrec.Config(num_items=5).fit(manifest)
    with pytest.raises(UserError, match="num_users=1 does not fit.*has 2"):
        matrix_factorization.Config(num_users=1).fit(manifest)
