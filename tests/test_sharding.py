"""Meshes: what fits the devices, and what is refused with the numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxrec.sharding import (
    AXIS_RULES,
    Layout,
    MeshConfig,
    mesh_of,
    own_rows,
    replicate,
    shard_batch,
)
from jaxrec.typing import Batch, UserError


def test_zero_takes_all_devices() -> None:
    assert dict(MeshConfig(data=0).build().shape) == {"data": 8, "model": 1}
    assert dict(MeshConfig(data=0, model=4).build().shape) == {"data": 2, "model": 4}


@pytest.mark.parametrize(
    ("mesh", "sentence"),
    [
        (MeshConfig(data=0, model=3), "mesh.model=3 does not divide the devices: 8"),
        (MeshConfig(data=3, model=3), "want 9 devices and 8 .cpu. are there"),
    ],
)
def test_meshes_that_do_not_fit_the_devices_are_refused(mesh: MeshConfig, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        mesh.build()


@pytest.mark.parametrize(
    "values",
    [{"data": -1}, {"model": 0}, {"slack": 0.5}, {"memory_gb": -1}, {"replicate_below": -1}],
)
def test_values_out_of_range_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="mesh\\."):
        MeshConfig(**values)


def test_rows_of_a_process_are_all_rows_when_it_is_alone() -> None:
    mesh = MeshConfig(data=2, model=4).build()
    assert own_rows(16, mesh) == slice(0, 16)
    with pytest.raises(UserError, match="12 rows cannot be split evenly over 8 devices"):
        own_rows(12, mesh)


def test_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="6 rows cannot be split evenly over 4 devices"):
        shard_batch(Batch(users=np.arange(6, dtype=np.int32)), MeshConfig(data=4).build())


def test_tables_and_their_slots_are_split_alike_and_nothing_else_is() -> None:
    layout = Layout(
        axes=("data", "model"), table_axis="model", placements={"a": "row", "b": "column"}
    )
    table = jnp.zeros((4, 2))
    tree = {"a": {"table": table}, "b": {"table": table}, "c": {"table": table}, "d": table}
    specs = layout.specs(
        {"params": tree, "slots": ({"a": {"table": jnp.zeros((4, 1))}}, jnp.zeros(()))}
    )
    assert specs["params"]["a"]["table"] == PartitionSpec(*AXIS_RULES["table, by row"])
    assert specs["params"]["b"]["table"] == PartitionSpec(*AXIS_RULES["table, by column"])
    assert specs["params"]["c"]["table"] == specs["params"]["d"] == PartitionSpec()
    assert specs["slots"][0]["a"]["table"] == PartitionSpec("model")


def test_the_mesh_of_a_tree_is_that_of_its_arrays() -> None:
    mesh = MeshConfig(data=2).build()
    assert mesh_of({"a": np.zeros(2), "b": jnp.zeros(2)}) is None
    assert mesh_of({"a": replicate(np.zeros(2), mesh)}) == mesh
    assert mesh_of(replicate({"a": jax.numpy.zeros(2)}, MeshConfig().build())) is None
