"""Meshes: which devices share the work of a step."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.typing import Batch, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How devices are laid out.

    Attributes:
      data: devices among which the rows of a batch are split; 0 takes all there are.
    """

    data: int = 1

    def build(self) -> Mesh:
        """Returns the mesh. Raises UserError when there are fewer devices than asked for."""
        devices = jax.devices()
        count = self.data or len(devices)
        if count > len(devices):
            raise UserError(
                f"config.mesh.data={count} wants {count} devices and {len(devices)} "
                f"({devices[0].platform}) are there. Set it to {len(devices)} or to 0 for all."
            )
        return Mesh(np.array(devices[:count]), ("data",))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with a whole copy of each array on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Returns the batch on the devices, its leading axes split over the mesh.

    Raises:
      UserError: when the devices cannot have equal shares.
    """
    rows = {len(leaf) for leaf in jax.tree.leaves(batch)}
    if any(count % mesh.size for count in rows):
        raise UserError(
            f"a batch of {max(rows)} rows cannot be split evenly over {mesh.size} devices. Set "
            f"config.training.batch_size to a multiple of {mesh.size}, or config.mesh.data to 1."
        )
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
