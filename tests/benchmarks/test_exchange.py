"""Bytes between devices: counted in programs, and what the formula says of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrec.functional import functional
from jaxrec.models import sasrec
from jaxrec.objectives import FullSoftmax, Objective, SampledSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import AXIS_RULES, MeshConfig
from jaxrec.training import init_state, make_step
from jaxrec.training.planning import make_plan
from jaxrec.training.state import abstract_state
from jaxrec.typing import Batch

PROGRAM = """
HloModule jit_step

%body (x: f32[8]) -> f32[8] {
  %a = f32[8,2]{1,0} all-gather(%x), replica_groups={{0,1},{2,3}}, dimensions={0}
}

%turns (x: f32[8]) -> f32[8] {
  %b = (f32[4]{0}, bf16[4]{0}) all-reduce(%x, %y), replica_groups=[2,4]<=[8], to_apply=%add
}

%usual (x: f32[8]) -> f32[8] {
  %c = (f32[1,16]{1,0}, f32[1,16]{1,0}) all-to-all(%x, %x), replica_groups={{0,1}}
  %d = f32[100]{0} all-reduce(%x), replica_groups=mesh['data'=1,'model'=2] {'data'}, to_apply=%add
  %e = f32[100]{0} all-reduce(%x), replica_groups=[8,1]<=[8], to_apply=%add
  %f = f32[100]{0} all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add
}

%slow (x: f32[8]) -> f32[8] {
  %g = f32[2,64]{1,0} all-to-all(%x), replica_groups=mesh['data'=1,'model'=2] {'model'}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %h = f32[8]{0} while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %i = f32[8]{0} while(%x), condition=%c, body=%turns
  %j = f32[8]{0} conditional(%p, %x, %x), branch_computations={%usual, %slow}
  %k = (f32[8]{0}, f32[24]{0}) all-gather-start(%x), replica_groups={{0,1,2}}, dimensions={0}
  %l = f32[24]{0} all-gather-done(%k)
}
"""


@pytest.fixture(scope="module")
def exchange(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("_exchange")


def test_counts_results_once_a_turn_and_only_what_leaves_a_device(exchange: Any) -> None:
    found = exchange.exchanged(PROGRAM)
    assert found.usual == {"all-to-all": 2 * 16 * 4, "all-gather": 5 * 8 * 2 * 4 + 24 * 4}
    assert found.slow_way == {"all-to-all": 2 * 64 * 4, "all-gather": 5 * 8 * 2 * 4 + 24 * 4}
    assert found.turn == {"all-reduce": 4 * 4 + 4 * 2}


def compiled_step(where: MeshConfig, *, whole: bool) -> tuple[Any, int]:
    """A step of 256 rows of 4 with a table of 5000 x 8, and the bytes of its other parameters."""
    config = sasrec.Config(
        num_items=4999, max_len=4, dim=8, num_blocks=0, dropout=0.0, positions="none"
    )
    network, optimizer = functional(config.build), OptimizerConfig(name="adagrad").build(9)
    mesh = where.build()
    layout = make_plan(abstract_state(network, optimizer), where, mesh).layout
    shapes = jax.eval_shape(lambda: init_state(network, optimizer, 0, mesh=mesh, layout=layout))

    def abstract(shape: tuple[int, ...], dtype: Any, *axes: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    state = jax.tree.map(lambda x, s: abstract(x.shape, x.dtype, *s), shapes, layout.specs(shapes))
    rows = AXIS_RULES["batch"]
    ids = abstract((256, 4), jnp.int32, *rows)
    batch = Batch(history=ids, positives=ids, where=abstract((256, 4), bool, *rows))
    objective: Objective = FullSoftmax() if whole else SampledSoftmax(num_negatives=7)
    statistics = {} if whole else {"num_items": abstract((), jnp.int32)}
    step: Any = make_step(network, objective, optimizer, seed=0, mesh=mesh, layout=layout)
    dense = [x for name, x in state.params.items() if name != "items"]
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(dense))
    return step.lower(state, batch, statistics).compile(), size


@pytest.mark.grid
@pytest.mark.parametrize(
    ("tables", "data", "model", "whole"),
    [
        ("row", 2, 4, False),
        ("column", 2, 4, False),
        ("row", 2, 4, True),
        pytest.param("row", 1, 8, False, marks=pytest.mark.slow),
        pytest.param("replicated", 2, 4, False, marks=pytest.mark.slow),
    ],
)
def test_formula_says_what_the_compiled_step_sends(
    exchange: Any, tables: Any, data: int, model: int, whole: bool
) -> None:
    where = MeshConfig(data=data, model=model, tables=tables, replicate_below=0.0)
    compiled, dense_bytes = compiled_step(where, whole=whole)
    tokens = 256 // 8 * 4
    sizes = exchange.Sizes(
        data=data,
        model=model,
        placement=tables,
        rows=5000,
        width=8,
        ids=tokens if whole else 2 * tokens + 7,
        shared=0 if whole else 7,
        tokens=tokens if whole else 0,
        dense_bytes=dense_bytes,
    )
    found = exchange.exchanged(compiled.as_text())
    assert found.usual == exchange.predicted(sizes)
    # Chunks of 256 tokens: the peak, the sum and the target's score of each.
    assert found.turn == ({"all-reduce": 3 * 256 * 4} if whole else {})
    everything = exchange.predicted(dataclasses.replace(sizes, slack=float(model)))
    assert found.slow_way.get("all-to-all") == everything.get("all-to-all")
