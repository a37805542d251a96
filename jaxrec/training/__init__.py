"""Training: configs of experiments, the step, the loop and its checkpoints."""

from jaxrec.training.config import ExperimentConfig, TrainingConfig
from jaxrec.training.experiment import Experiment
from jaxrec.training.loop import train
from jaxrec.training.processes import is_first, join, leave
from jaxrec.training.state import StepMetrics, TrainState, init_state
from jaxrec.training.step import make_replica_step, make_step
from jaxrec.training.trained import load_trained, save_trained

__all__ = [
    "Experiment",
    "ExperimentConfig",
    "StepMetrics",
    "TrainState",
    "TrainingConfig",
    "init_state",
    "is_first",
    "join",
    "leave",
    "load_trained",
    "make_replica_step",
    "make_step",
    "save_trained",
    "train",
]
