"""Rows that travel between devices: everybody gets what he asked for, and gradients go back."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxrec.ops.exchange import most_of_one_owner, route_rows, swap

DEVICES, BLOCK, WIDTH = 4, 6, 3
ROWS = PartitionSpec("x")


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:DEVICES]), ("x",))


def wanted_rows(seed: int, count: int) -> np.ndarray:
    """(DEVICES, count) distinct rows a device, ascending, the last ones beyond the table."""
    random, end = np.random.default_rng(seed), DEVICES * BLOCK
    rows = []
    for device in range(DEVICES):
        real = np.sort(random.choice(end, count - device, replace=False))
        rows.append(np.concatenate([real, end + np.arange(count - device, count)]))
    return np.stack(rows).astype(np.int32)


def fetch(table: Any, wanted: Any, capacity: int) -> jax.Array:
    route = route_rows(wanted, BLOCK, capacity, "x")
    (asked,) = swap([route.asked], "x")
    (rows,) = swap([table.at[asked].get(mode="fill", fill_value=0)], "x")
    return rows.reshape(-1, WIDTH).at[route.back].get(mode="clip")


@pytest.mark.parametrize("count", [5, 11])
def test_each_device_gets_the_rows_that_it_wants(mesh: Mesh, count: int) -> None:
    table = np.random.default_rng(0).normal(size=(DEVICES * BLOCK, WIDTH)).astype(np.float32)
    wanted = wanted_rows(1, count)
    run = jax.jit(
        jax.shard_map(
            lambda t, w: fetch(t, w[0], count)[None],
            mesh=mesh,
            in_specs=(ROWS, ROWS),
            out_specs=ROWS,
            check_vma=False,
        )
    )
    found = np.asarray(run(table, wanted))
    for device in range(DEVICES):
        real = wanted[device] < len(table)
        np.testing.assert_array_equal(found[device][real], table[wanted[device][real]])


def test_gradients_of_a_row_add_up_from_all_who_wanted_it(mesh: Mesh) -> None:
    table = np.ones((DEVICES * BLOCK, WIDTH), np.float32)
    wanted = wanted_rows(2, 7)
    weights = np.random.default_rng(3).normal(size=(DEVICES, 7, WIDTH)).astype(np.float32)
    weights[wanted >= len(table)] = 0

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(ROWS, ROWS, ROWS), out_specs=ROWS, check_vma=False
    )
    def gradient(t: Any, w: Any, weight: Any) -> Any:
        return jax.grad(lambda block: jnp.sum(fetch(block, w[0], 7) * weight[0]))(t)

    expected = np.zeros_like(table)
    real = wanted < len(table)
    np.add.at(expected, wanted[real], weights[real])
    np.testing.assert_allclose(jax.jit(gradient)(table, wanted, weights), expected, rtol=1e-6)


def test_the_most_of_one_owner_is_counted(mesh: Mesh) -> None:
    wanted = np.array([[0, 1, 2, 3], [0, 6, 12, 18], [6, 7, 23, 24], [24, 25, 26, 27]], np.int32)
    run = jax.shard_map(
        lambda w: most_of_one_owner(w[0], BLOCK, "x")[None],
        mesh=mesh,
        in_specs=ROWS,
        out_specs=ROWS,
        check_vma=False,
    )
    assert jax.jit(run)(wanted).tolist() == [4, 1, 2, 0]


def test_arrays_of_one_shape_travel_in_one_collective(mesh: Mesh) -> None:
    arrays: list[Any] = [np.arange(64, dtype=np.float32).reshape(16, 2, 2) + i for i in range(3)]
    arrays.append(np.arange(16, dtype=np.int32).reshape(16, 1))

    def send(*blocks: Any) -> Any:
        return tuple(swap(list(blocks), "x"))

    run = jax.jit(jax.shard_map(send, mesh=mesh, in_specs=ROWS, out_specs=ROWS, check_vma=False))
    found = run(*arrays)
    for sent, arrived in zip(arrays, found, strict=True):
        blocks = sent.reshape(DEVICES, DEVICES, *sent.shape[1:])
        np.testing.assert_array_equal(
            np.asarray(arrived), np.swapaxes(blocks, 0, 1).reshape(sent.shape)
        )
    text = run.lower(*arrays).as_text()
    assert text.count("stablehlo.all_to_all") == 2
