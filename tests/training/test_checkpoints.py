"""Restoring: rows of tables follow the mesh, and nothing else changes its shape."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.training.checkpoints import SKIP, Checkpoints
from jaxrec.typing import UserError

STATE = {
    "items": {"table": jnp.arange(8.0).reshape(4, 2), "table_lora": jnp.ones((4, 1))},
    "projection": jnp.ones((4, 3)),
    "bias": jnp.ones(3),
    "moments": ({"items": {"table": jnp.full((4, 2), 7.0)}}, jnp.int32(5)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, STATE, {"a": 1}, best=None)
        checkpoints.wait()
    return directory


def wanted(**changes: Any) -> dict[str, Any]:
    return STATE | changes


@pytest.mark.parametrize("kind", [jnp.zeros, np.zeros], ids=["device", "host"])
@pytest.mark.parametrize("rows", [3, 4, 6])
def test_rows_of_tables_are_cut_off_or_added_with_zeros(rows: int, kind: Any, saved: Path) -> None:
    like = wanted(items={"table": kind((rows, 2)), "table_lora": kind((rows, 1))})
    with Checkpoints(saved, read_only=True) as checkpoints:
        found = checkpoints.restore(1, like)
    expected = np.zeros((rows, 2))
    kept = min(rows, 4)
    expected[:kept] = np.arange(8.0).reshape(4, 2)[:kept]
    np.testing.assert_array_equal(found["items"]["table"], expected)
    assert found["items"]["table_lora"].shape == (rows, 1)
    np.testing.assert_array_equal(found["moments"][0]["items"]["table"], np.full((4, 2), 7.0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"projection": jnp.zeros((6, 3))}, r"has projection of shape \(4, 3\), and \(6, 3\)"),
        ({"projection": jnp.zeros((4, 2))}, r"has projection of shape \(4, 3\), and \(4, 2\)"),
        ({"bias": jnp.zeros(5)}, r"has bias of shape \(3,\), and \(5,\)"),
        ({"bias": np.zeros(2)}, r"has bias of shape \(3,\), and \(2,\)"),
        (
            {"items": {"table": jnp.zeros((4, 3)), "table_lora": jnp.zeros((4, 1))}},
            r"has items/table of shape \(4, 2\), and \(4, 3\)",
        ),
        (
            {"moments": ({"items": {"table": jnp.zeros((4, 1))}}, jnp.int32(5))},
            r"has moments/0/items/table of shape",
        ),
    ],
)
def test_no_other_array_may_have_another_shape(
    changes: dict[str, Any], said: str, saved: Path
) -> None:
    with (
        Checkpoints(saved, read_only=True) as checkpoints,
        pytest.raises(UserError, match=said),
    ):
        checkpoints.restore(1, wanted(**changes))


def test_what_is_skipped_may_have_any_shape(saved: Path) -> None:
    with Checkpoints(saved, read_only=True) as checkpoints:
        found = checkpoints.restore(1, wanted(projection=SKIP))
    np.testing.assert_array_equal(found["bias"], np.ones(3))
