"""Clipping by the norm of all gradients, where a device may hold only a part of them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scales updates down so that their global norm is at most `max_norm`.

    As `optax.clip_by_global_norm`, but it takes the norm as the extra argument `global_norm`, as
    the training step passes it: with tables that are split over devices, or of which a step sees
    the touched rows, the norm of the updates at hand is not the global one on every device.
    """

    def init(params: Any) -> optax.EmptyState:
        return optax.EmptyState()

    def update(
        updates: Any,
        state: optax.EmptyState,
        params: Any = None,
        *,
        global_norm: jax.Array | None = None,
        **unused: Any,
    ) -> tuple[Any, optax.EmptyState]:
        norm = optax.tree.norm(updates) if global_norm is None else global_norm
        scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-30))
        return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(init, update)
