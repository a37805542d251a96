"""Distillation: training a model on what another one recommends, at once or from files."""

from jaxrec.distillation.labels import write_labels
from jaxrec.distillation.objective import Distillation

__all__ = ["Distillation", "write_labels"]
