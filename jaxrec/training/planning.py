"""Where each table goes, and how much memory that takes, before anything is allocated."""

import dataclasses
import math
import types
from collections.abc import Collection, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxrec.optim import table_of
from jaxrec.sharding import Layout, MeshConfig, Placement
from jaxrec.typing import UserError

_FEW_ROWS = 64  # a table with fewer rows a device than this is better split by columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablePlan:
    """One table's place.

    Attributes:
      name: the parameter's name.
      shape: (rows, width) of the whole table.
      placement: whole on each device, split by row or by column, or in the host's memory.
      num_bytes: of the table, its optimiser slots and its running average, on all devices together
        if there was one copy.
      device_bytes: of the same on one device; 0 for a table in the host's memory, of which only
        the rows of a batch come to the device.
      step: "dense", "touched rows", or "dense or touched rows" when that is for each batch to say;
        empty when nobody asked.
    """

    name: str
    shape: tuple[int, int]
    placement: Placement
    num_bytes: int
    device_bytes: int
    step: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What goes where.

    Attributes:
      layout: for the step.
      tables: one entry for each table.
      dense_bytes: of everything else that is trained, on each device.
      limit: bytes of a device that may be used; 0 when nobody knows.
      devices: how many devices there are, as text, such as "2 x 4".
    """

    layout: Layout
    tables: tuple[TablePlan, ...]
    dense_bytes: int
    limit: int
    devices: str

    @property
    def device_bytes(self) -> int:
        """Bytes of parameters and optimiser state on one device."""
        return self.dense_bytes + sum(table.device_bytes for table in self.tables)

    def __str__(self) -> str:
        rows = [
            (t.name, f"{t.shape[0]:,} x {t.shape[1]}", t.placement, t.device_bytes, t.step)
            for t in self.tables
        ]
        rows += [("everything else", "", "replicated", self.dense_bytes, "")]
        lines = [
            f"  {name:16} {shape:>20}  {placement:10} {_mib(size):>14} a device"
            + (f", step: {step}" if step else "")
            for name, shape, placement, size, step in rows
        ]
        limit = f" of {_mib(self.limit)}" if self.limit else ""
        total = f"  {_mib(self.device_bytes)}{limit} on each of {self.devices} devices"
        return "\n".join(["parameters, optimiser slots and averages:", *lines, total])


def make_plan(
    state: Any,
    config: MeshConfig,
    mesh: Mesh,
    *,
    catalogue: Collection[str] = (),
    steps: Mapping[str, str] = types.MappingProxyType({}),
) -> Plan:
    """Chooses where each table goes.

    Args:
      state: shapes of the training state, as `abstract_state` returns them.
      config: what was asked for.
      mesh: the devices.
      catalogue: tables that the loss reads as a whole, which can only be split by rows.
      steps: how each table on the devices is updated; see `TablePlan`.

    Raises:
      UserError: when a table cannot be split as asked, or the state does not fit a device.
    """
    parts = mesh.shape["model"]
    leaves = jax.tree_util.tree_leaves_with_path(state)
    tables, placements = [], {}
    for name in sorted({name for path, _ in leaves if (name := table_of(path))}):
        mine = [leaf for path, leaf in leaves if table_of(path) == name]
        shape = state.params[name]["table"].shape
        placement = _place(name, mine, config, parts, name in catalogue)
        placements[name] = placement
        total = sum(map(_bytes, mine))
        device = {
            "replicated": total,
            "row": -(-shape[0] // parts) * (total // shape[0]),
            "column": total // parts,
            "host": 0,
        }[placement]
        tables.append(
            TablePlan(
                name=name,
                shape=shape,
                placement=placement,
                num_bytes=total,
                device_bytes=device,
                step="touched rows" if placement == "host" else steps.get(name, ""),
            )
        )
    layout = Layout(placements=placements)
    if mesh.size > 1:
        layout = Layout(
            axes=("data", "model"), table_axis="model", placements=placements, slack=config.slack
        )
    plan = Plan(
        layout=layout,
        tables=tuple(tables),
        dense_bytes=sum(_bytes(leaf) for path, leaf in leaves if table_of(path) is None),
        limit=_limit(config, mesh),
        devices=f"{mesh.shape['data']} x {parts}",
    )
    _check_fits(plan, config)
    return plan


def _place(
    name: str, leaves: list[Any], config: MeshConfig, parts: int, catalogue: bool
) -> Placement:
    small = sum(map(_bytes, leaves)) <= config.replicate_below * 2**20
    if config.tables == "host":
        _check_host(name, config, catalogue)
        return "replicated" if small else "host"
    if parts == 1:
        return "replicated"
    rows, width = max((leaf.shape for leaf in leaves), key=math.prod)
    by_column = width % parts == 0 and all(leaf.shape == (rows, width) for leaf in leaves)
    if config.tables == "column":
        if catalogue:
            raise UserError(
                f"config.mesh.tables='column' cannot be: the loss reads all of table {name!r}, "
                "which can only be split by rows. Use 'row' or 'auto'."
            )
        if not by_column:
            raise UserError(
                f"config.mesh.tables='column' cannot be: table {name!r} of width {width}, with its "
                f"optimiser slots, does not divide into {parts} parts. Use 'row' or 'auto', or a "
                "width that divides."
            )
    if config.tables != "auto":
        return config.tables
    if small:
        return "replicated"
    return "column" if rows < _FEW_ROWS * parts and by_column and not catalogue else "row"


def _check_host(name: str, config: MeshConfig, catalogue: bool) -> None:
    if config.data != 1 or config.model != 1:
        raise UserError(
            "config.mesh.tables='host' is for one device; with several, split the tables among "
            "them: 'auto' or 'row'."
        )
    if catalogue:
        raise UserError(
            f"config.mesh.tables='host' cannot be: the loss reads all of table {name!r} at every "
            "step. Choose an objective that samples, such as SampledSoftmax."
        )


def _limit(config: MeshConfig, mesh: Mesh) -> int:
    if config.memory_gb:
        return int(config.memory_gb * 2**30)
    device = next(d for d in mesh.devices.flat if d.process_index == jax.process_index())
    statistics = device.memory_stats() or {}
    return int(statistics.get("bytes_limit", 0))


def _check_fits(plan: Plan, config: MeshConfig) -> None:
    if not plan.limit or plan.device_bytes <= plan.limit:
        return
    largest = max(plan.tables, key=lambda table: table.device_bytes)
    raise UserError(
        f"the model needs {_mib(plan.device_bytes)} on each device for parameters and optimiser "
        f"state alone, and a device has {_mib(plan.limit)}. The largest table is "
        f"{largest.name!r}, {largest.shape[0]:,} x {largest.shape[1]}, {_mib(largest.num_bytes)} "
        f"with its slots. Split tables over more devices (config.mesh.model={config.model} now), "
        "choose a smaller width or an optimiser with fewer slots (sgd, rowwise_adagrad), set "
        "config.training.table_dtype=bfloat16, or, with one device, keep them in the host's memory "
        "with config.mesh.tables=host."
    )


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _mib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
