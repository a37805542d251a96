"""Optimisers: a typed config of Optax transforms, and updates of touched rows only."""

from jaxrec.optim.config import OptimizerConfig
from jaxrec.optim.rowwise import scale_by_rowwise_rss
from jaxrec.optim.touched import Touched, put_touched, take_touched

__all__ = ["OptimizerConfig", "Touched", "put_touched", "scale_by_rowwise_rss", "take_touched"]
