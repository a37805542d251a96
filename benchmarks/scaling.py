"""Memory, exchange and time of a training step as tables, batches and devices grow.

Prints one JSON object a case. Devices are emulated on a CPU, in one process for each number of
them; where there are accelerators, the step is measured on those as well. Emulated devices share
the cores of the machine, so that more of them are not faster. Bytes are exact.

  python benchmarks/scaling.py                        # growth with rows and devices, and a peer
  python benchmarks/scaling.py --full                 # also batches, placements, losses, the host
  python benchmarks/scaling.py --pod                  # compiles for 256 devices and 1e9 items

The model is a SASRec of one block. "gspmd" is what a user would write in its place: the same loss
of the same batch, tables with a NamedSharding, plain `jax.jit`, dense Optax; XLA splits the work.

  plan_bytes, state_bytes   of a device: as planned, and as the shards of the state have it
  temporary_bytes           of a device, from the compiled program
  exchange                  bytes of the results of collectives a step and device, by kind
  slow_way, turn            the same if rows are wanted too unevenly; of a turn of the loss's loop
  predicted                 what the formula in docs/scaling.md says of `exchange`
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any, Literal

import jax
import numpy as np
import optax
from _exchange import Sizes, exchanged, predicted
from _report import emit, seconds_of
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.functional import Functional, functional
from jaxrec.models import sasrec
from jaxrec.objectives import FullSoftmax, Objective, SampledSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import AXIS_RULES, Layout, MeshConfig, replicate, shard_batch, shardings
from jaxrec.training import TrainState, init_state, make_step
from jaxrec.training.host import HostStep, Slices, to_host
from jaxrec.training.planning import Plan, make_plan
from jaxrec.training.state import abstract_state
from jaxrec.training.step import make_draw
from jaxrec.typing import Batch

_FULL = flags.DEFINE_bool(
    "full", False, "All cases, which takes about a quarter of an hour on two busy cores."
)
_POD = flags.DEFINE_bool("pod", False, "Compile, and do not run, the step of a pod.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps.", lower_bound=1)
_ALONE = flags.DEFINE_string("alone", None, "Measure these cases (JSON) in this process.")
_HERE = flags.DEFINE_bool("here", False, "Measure on the accelerators of this machine, if any.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement; `growth` says what it is to be compared with."""

    growth: str
    way: Literal["jaxrec", "gspmd"] = "jaxrec"
    data: int = 1
    model: int = 1
    tables: Literal["replicated", "row", "column", "host"] = "row"
    rows: int = 100_000
    width: int = 64
    batch: int = 64
    length: int = 50
    loss: Literal["sampled", "full"] = "sampled"
    negatives: int = 256
    capacity: int = 0
    optimizer: Literal["adagrad", "rowwise_adagrad"] = "adagrad"
    table_dtype: Literal["float32", "bfloat16"] = "float32"
    ids: Literal["uniform", "first"] = "uniform"
    run: bool = True


def _cases() -> list[Case]:
    if _POD.value:
        pod: dict[str, Any] = {"growth": "pod", "rows": 10**9, "batch": 65_536, "run": False}
        pod |= {"negatives": 8192, "optimizer": "rowwise_adagrad"}
        shapes = ((1, 256, 0), (1, 256, 16_384), (32, 8, 0))
        return [Case(data=d, model=m, capacity=c, **pod) for d, m, c in shapes]
    quick = [Case(growth="rows", rows=rows) for rows in (100_000, 1_000_000)]
    quick += [Case(growth="devices", model=model) for model in (2, 4, 8)]
    quick += [Case(growth="way", model=8, way="gspmd")]
    if not _FULL.value:
        return quick
    more = [Case(growth="rows", rows=10_000_000)]
    more += [Case(growth="rows", rows=rows, model=8) for rows in (1_000_000, 10_000_000)]
    more += [Case(growth="batch", batch=batch, model=8) for batch in (128, 256)]
    more += [Case(growth="placement", data=2, model=4, tables=t) for t in ("row", "column")]
    more += [Case(growth="placement", data=8, tables="replicated")]
    more += [Case(growth="ids", model=8, ids="first")]
    small: dict[str, Any] = {"growth": "loss", "loss": "full", "batch": 16}
    more += [Case(**small), Case(model=8, **small), Case(data=2, model=4, **small)]
    more += [Case(model=8, way="gspmd", **small)]
    more += [Case(growth="way", rows=1_000_000, model=8, way="gspmd")]
    more += [Case(growth="slots", rows=1_000_000, model=8, optimizer="rowwise_adagrad")]
    slim: dict[str, Any] = {"optimizer": "rowwise_adagrad", "table_dtype": "bfloat16"}
    more += [Case(growth="slots", rows=1_000_000, model=8, **slim)]
    more += [Case(growth="host", tables="host", rows=rows) for rows in (1_000_000, 10_000_000)]
    return quick + more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything a case wants before a state is made."""

    case: Case
    network: Functional
    objective: Objective
    optimizer: optax.GradientTransformation
    mesh: Mesh
    plan: Plan

    @classmethod
    def of(cls, case: Case) -> "Setup":
        objective: Objective = SampledSoftmax(num_negatives=case.negatives)
        if case.loss == "full":
            objective = FullSoftmax()
        # One row less than items and padding together have, so that parts are of one size.
        config = sasrec.Config(num_items=case.rows - 1, dim=case.width, num_blocks=1)
        network = functional(config.build)
        optimizer = OptimizerConfig(name=case.optimizer).build(10_000)
        where = MeshConfig(
            data=case.data, model=case.model, tables=case.tables, replicate_below=0.0
        )
        mesh = where.build()
        shapes = abstract_state(network, optimizer, table_dtype=case.table_dtype)
        catalogue = ("items",) if case.loss == "full" else ()
        plan = make_plan(shapes, where, mesh, catalogue=catalogue)
        return cls(
            case=case,
            network=network,
            objective=objective,
            optimizer=optimizer,
            mesh=mesh,
            plan=plan,
        )

    def state(self) -> TrainState:
        where: dict[str, Any] = {"mesh": self.mesh, "layout": self.plan.layout}
        dtype = self.case.table_dtype
        return init_state(self.network, self.optimizer, 0, table_dtype=dtype, **where)

    def step(self) -> Any:
        parts = (self.network, self.objective, self.optimizer)
        where: dict[str, Any] = {"seed": 0, "mesh": self.mesh, "layout": self.plan.layout}
        if self.case.way == "gspmd":
            return _gspmd_step(*parts, **where)
        return make_step(*parts, capacity=self.case.capacity, **where)

    def batch(self) -> Batch:
        """Histories without padding; "first" ids are of the first 1 / 16 of the catalogue."""
        case, random = self.case, np.random.default_rng(0)
        last = case.rows // 16 if case.ids == "first" else case.rows
        ids = random.integers(1, last, (case.batch, case.length + 1)).astype(np.int32)
        where = np.ones((case.batch, case.length), bool)
        return Batch(history=ids[:, :-1], positives=ids[:, 1:], where=where)

    def statistics(self) -> Any:
        rows = self.case.rows
        log: Any = SimpleNamespace(item_counts=np.ones(rows), num_items=rows - 1)
        return self.objective.statistics(log)

    def abstract(self) -> tuple[Any, Batch, Any]:
        """Returns the arguments of a step without their values."""
        shapes = jax.eval_shape(self.state)
        state = _placed(shapes, shardings(shapes, self.mesh, self.plan.layout))
        split = NamedSharding(self.mesh, PartitionSpec(*AXIS_RULES["batch"]))
        batch = _placed(self.batch(), split)
        whole = NamedSharding(self.mesh, PartitionSpec())
        return state, batch, _placed(self.statistics(), whole)


def _placed(tree: Any, where: Any) -> Any:
    if isinstance(where, NamedSharding):
        where = jax.tree.map(lambda _: where, tree)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where
    )


def _gspmd_step(
    network: Functional,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    mesh: Mesh,
    layout: Layout,
) -> Any:
    """Returns the step that says nothing of devices: XLA divides it as its arguments are split."""
    draw = make_draw(objective, seed=seed, accumulate=1, layout=Layout())

    def step(state: TrainState, batch: Batch, statistics: Any) -> tuple[TrainState, Any]:
        drawn = draw(state.step, batch, statistics)
        part, key = jax.tree.map(lambda x: x[0], (drawn.parts, drawn.keys))

        def loss(params: Any) -> jax.Array:
            total, weight = objective.loss(network.bind(params), part, key)
            return total / weight

        value, gradients = jax.value_and_grad(loss)(state.params)
        updates, slots = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(step=state.step + 1, params=params, optimizer=slots, average={})
        where = shardings(new, mesh, layout)
        return jax.lax.with_sharding_constraint(new, where), value

    return jax.jit(step, donate_argnums=0)


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _measure(case: Case) -> dict[str, Any]:
    setup = Setup.of(case)
    start = time.perf_counter()
    arguments = setup.abstract()
    compiled = setup.step().lower(*arguments).compile()
    figures: dict[str, Any] = {"compile_s": time.perf_counter() - start}
    found = exchanged(compiled.as_text())
    figures |= {
        "plan_bytes": setup.plan.device_bytes,
        "statistics_bytes": _bytes(arguments[2]),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "exchange": found.usual,
        "exchange_total": sum(found.usual.values()),
        "slow_way_total": sum(found.slow_way.values()),
        "turn": found.turn,
    }
    if case.way == "jaxrec":
        figures |= {"predicted": (expected := predicted(_sizes(setup, arguments[0].params)))}
        figures |= {"predicted_total": sum(expected.values())}
    if not case.run:
        return figures
    state: Any = setup.state()
    first = setup.mesh.devices.flat[0]
    shards = [s for x in jax.tree.leaves(state) for s in x.addressable_shards]
    figures["state_bytes"] = sum(s.data.nbytes for s in shards if s.device == first)
    batch = shard_batch(setup.batch(), setup.mesh)
    statistics = replicate(setup.statistics(), setup.mesh)
    held = [state, None]
    del state, shards

    def work() -> Any:
        held[:] = compiled(held[0], batch, statistics)
        return held

    figures["step_ms"] = 1e3 * seconds_of(work, _REPEATS.value)
    return figures | {"slow": bool(getattr(held[1], "slow", False))}


def _sizes(setup: Setup, params: Any) -> Sizes:
    case = setup.case
    rows = case.batch // (case.data * case.model)
    shared = 0 if case.loss == "full" else case.negatives
    looked_up = rows * case.length * (1 if case.loss == "full" else 2)
    dense = {name: value for name, value in params.items() if name != "items"}
    placement = setup.plan.tables[0].placement
    assert placement != "host", "a table in the host's memory is measured elsewhere"
    return Sizes(
        data=case.data,
        model=case.model,
        placement=placement,
        rows=case.rows,
        width=case.width,
        value_bytes=2 if case.table_dtype == "bfloat16" else 4,
        ids=min(case.capacity or looked_up + shared, looked_up + shared),
        shared=shared,
        tokens=rows * case.length if case.loss == "full" else 0,
        dense_bytes=_bytes(dense),
    )


def _measure_host(case: Case) -> dict[str, Any]:
    """Measures tables in the host's memory; `moved` are bytes a step and way."""
    setup, batch = Setup.of(case), Setup.of(case).batch()
    tables = setup.plan.layout.on_host
    step = HostStep(setup.network, setup.objective, setup.optimizer, tables=tables, seed=0)
    held = [to_host(setup.state(), tables), None]
    on_device = [x for x in jax.tree.leaves(held[0]) if not isinstance(x, np.ndarray)]
    drawn = batch.replace(negatives=np.arange(1, case.negatives + 1, dtype=np.int32))
    fields = {name: use.fields for name, use in step.uses.items()}
    small = Slices.of(drawn, fields).take(held[0])
    statistics = jax.device_put(setup.statistics())

    def work() -> Any:
        held[:] = step(held[0], batch, statistics)
        return held[1]

    return {
        "state_bytes": _bytes(on_device),
        "moved": _bytes(small) - _bytes(on_device),
        "step_ms": 1e3 * seconds_of(work, _REPEATS.value),
    }


def _print(case: Case, *, emulated: bool) -> None:
    figures = _measure_host(case) if case.tables == "host" else _measure(case)
    emit("scaling", dataclasses.asdict(case) | {"emulated": emulated} | figures)


def _spawn(arguments: list[str], devices: int | None = None) -> None:
    """Runs this file again, with so many emulated devices, or with those that are there."""
    extra = {}
    if devices is not None:
        count = f"--xla_force_host_platform_device_count={devices}"
        extra = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}"}
    options = [f"--repeats={_REPEATS.value}", f"--full={_FULL.value}", *arguments]
    subprocess.run([sys.executable, __file__, *options], env=os.environ | extra, check=True)


def main(_: list[str]) -> None:
    if _ALONE.value:
        for fields in json.loads(_ALONE.value):
            _print(Case(**fields), emulated=True)
    elif _HERE.value:
        count = jax.device_count() if jax.default_backend() != "cpu" else 0
        for case in _cases() if count else ():
            if case.data * case.model in (1, count):
                _print(case, emulated=False)
    else:
        cases = _cases()
        for devices in sorted({case.data * case.model for case in cases}):
            here = [dataclasses.asdict(c) for c in cases if c.data * c.model == devices]
            _spawn([f"--alone={json.dumps(here)}"], devices)
        if not _POD.value:
            _spawn(["--here"])


if __name__ == "__main__":
    app.run(main)
