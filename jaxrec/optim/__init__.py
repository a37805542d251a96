"""Optimisers: a typed config of Optax transforms, touched rows, parameters of bfloat16."""

from jaxrec.optim.config import OptimizerConfig
from jaxrec.optim.rounding import apply_updates, stochastic_round, with_float32_slots
from jaxrec.optim.rowwise import scale_by_rowwise_rss
from jaxrec.optim.touched import Touched, put_touched, table_of, take_touched
from jaxrec.optim.transfer import (
    add_l2_to_start,
    scale_by_layer,
    unfreeze_layers,
    with_start,
)

__all__ = [
    "OptimizerConfig",
    "Touched",
    "add_l2_to_start",
    "apply_updates",
    "put_touched",
    "scale_by_layer",
    "scale_by_rowwise_rss",
    "stochastic_round",
    "table_of",
    "take_touched",
    "unfreeze_layers",
    "with_float32_slots",
    "with_start",
]
