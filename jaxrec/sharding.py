"""Meshes and layouts: which devices share the rows of a batch and the rows of a table."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.ops.exchange import Axes
from jaxrec.optim import table_of
from jaxrec.typing import Batch, UserError

type Placement = Literal["replicated", "row", "column", "host"]

# What each kind of array is split over. Everything that is not named here is whole on each device.
# Batches are split over both axes, so that no two devices compute the same.
AXIS_RULES: dict[str, tuple[str | tuple[str, ...] | None, ...]] = {
    "batch": (("data", "model"),),
    "table, by row": ("model",),
    "table, by column": (None, "model"),
    "table, replicated": (),
    "slot of a row": ("model",),
    "dense": (),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How devices are laid out: data x model of them, and each batch is split over all.

    Attributes:
      data: groups of devices, each with a whole copy of the tables among its devices; 0 makes as
        many as there are devices for.
      model: devices of a group, among which tables are split.
      tables: how tables are split when model is above 1: by "row", by "column", "replicated", or
        "auto", which chooses for each table by its size; see `jaxrec.training.planning`. With one
        device, "host" keeps them in the host's memory, and only rows go to the device.
      replicate_below: "auto" and "host" give each device a whole copy of a table, with its
        optimiser slots, of at most so many MiB.
      memory_gb: memory of a device in GiB that a plan may count on; 0 asks the device, and a CPU
        has no limit.
      slack: how uneven the wanted rows may be among the devices that own them before an exchange
        takes its slow way, in units of an even share; from 1. Small shares get more, for
        chance. The result is the same either way.
    """

    data: int = 1
    model: int = 1
    tables: Literal["auto", "replicated", "row", "column", "host"] = "auto"
    replicate_below: float = 16.0
    memory_gb: float = 0.0
    slack: float = 2.0

    def __post_init__(self) -> None:
        if self.data < 0 or self.model < 1:
            raise ValueError(
                f"mesh.data must be at least 0 and mesh.model at least 1; got {self.data} and "
                f"{self.model}."
            )
        if self.slack < 1 or min(self.memory_gb, self.replicate_below) < 0:
            raise ValueError(
                "mesh.slack must be at least 1, mesh.memory_gb and mesh.replicate_below at least "
                f"0; got {self.slack}, {self.memory_gb} and {self.replicate_below}."
            )

    def build(self) -> Mesh:
        """Returns the mesh, of the devices of all processes.

        Raises:
          UserError: when the devices are too few, or cannot be divided, or when some of a process
            would be idle.
        """
        # Those of a process are neighbours, so that its rows of a batch are.
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        there = f"{len(devices)} ({devices[0].platform}) are there"
        if self.data == 0 and len(devices) % self.model:
            raise UserError(
                f"config.mesh.model={self.model} does not divide the devices: {there}. Choose a "
                "divisor, or set config.mesh.data too."
            )
        data = self.data or len(devices) // self.model
        count = data * self.model
        if count > len(devices):
            raise UserError(
                f"config.mesh.data={data} and config.mesh.model={self.model} want {count} devices "
                f"and {there}. Lower them, or set config.mesh.data=0 for all."
            )
        if jax.process_count() > 1 and count != len(devices):
            raise UserError(
                f"config.mesh.data={data} and config.mesh.model={self.model} use {count} devices "
                f"of {jax.process_count()} processes, and {there}: some process would have no "
                "work. Set config.mesh.data=0 to use all."
            )
        return Mesh(np.array(devices[:count]).reshape(data, self.model), ("data", "model"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What a step must know of the devices it runs on; the default is a single one.

    Attributes:
      axes: names of the axes that split the batch.
      table_axis: the one of them that splits tables.
      placements: of each table by its name; what is absent is replicated.
      slack: as in `MeshConfig`.
    """

    axes: Axes = ()
    table_axis: str | None = None
    placements: Mapping[str, Placement] = dataclasses.field(default_factory=dict)
    slack: float = 2.0

    def placement(self, table: str | None) -> Placement:
        """Returns how a table is placed; None stands for what is no table."""
        if self.table_axis is None or table is None:
            return "replicated"
        return self.placements.get(table, "replicated")

    @property
    def on_host(self) -> tuple[str, ...]:
        """Names of the tables that stay in the host's memory."""
        return tuple(name for name, place in self.placements.items() if place == "host")

    def specs(self, tree: Any) -> Any:
        """Returns how each array of a state is split, for `shard_map` and `NamedSharding`."""

        def spec(path: Any, leaf: Any) -> PartitionSpec:
            placement = self.placement(table_of(path))
            if placement == "row" and leaf.ndim:
                return PartitionSpec(self.table_axis)
            if placement == "column" and leaf.ndim > 1:
                return PartitionSpec(None, self.table_axis)
            return PartitionSpec()

        return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(tree: Any, mesh: Mesh, layout: Layout) -> Any:
    """Returns the sharding of each array of a state."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), layout.specs(tree))


def mesh_of(tree: Any) -> Mesh | None:
    """Returns the mesh that the arrays of a tree lie on; None when it is of one device."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        mesh = getattr(sharding, "mesh", None)
        if isinstance(mesh, Mesh) and mesh.size > 1:
            return mesh
    return None


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with a whole copy of each array on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def own_rows(batch_size: int, mesh: Mesh) -> slice:
    """Returns which rows of a batch the devices of this process compute.

    Raises:
      UserError: when the devices cannot have equal shares.
    """
    check_divides(batch_size, mesh)
    share = batch_size // mesh.size
    mine = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    assert mine == list(range(mine[0], mine[-1] + 1)), "devices of a process are neighbours"
    return slice(mine[0] * share, (mine[-1] + 1) * share)


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Returns a batch on the devices, its leading axes split over the mesh.

    Args:
      batch: the rows of this process; with one process, all rows.

    Raises:
      UserError: when the devices cannot have equal shares.
    """
    for rows in {len(leaf) for leaf in jax.tree.leaves(batch)}:
        check_divides(rows * jax.process_count(), mesh)
    sharding = NamedSharding(mesh, PartitionSpec(*AXIS_RULES["batch"]))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def check_divides(batch_size: int, mesh: Mesh, *, accumulate: int = 1) -> None:
    """Raises UserError when a batch cannot be split evenly over the devices of the mesh.

    Args:
      batch_size: rows of the batch of all devices.
      mesh: the devices.
      accumulate: parts in which each device computes its share.
    """
    share, rest = divmod(batch_size, mesh.size)
    if rest:
        raise UserError(
            f"a batch of {batch_size} rows cannot be split evenly over {mesh.size} devices. Set "
            f"config.training.batch_size to a multiple of {mesh.size}, or use fewer devices in "
            "config.mesh."
        )
    if share % accumulate:
        raise UserError(
            f"a batch of {batch_size} rows is {share} rows on each of {mesh.size} devices, which "
            f"cannot be computed in {accumulate} equal parts. Set config.training.batch_size to a "
            f"multiple of {mesh.size * accumulate}, or lower config.training.accumulate."
        )
