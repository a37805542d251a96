"""Whether a fine-tuned model is worse than the one it started from, on the same requests."""

import dataclasses

import numpy as np

from jaxrec.evaluation import Evaluation
from jaxrec.metrics import bootstrap_interval
from jaxrec.training.experiment import Experiment
from jaxrec.typing import Params

METRIC = "ndcg@10"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same users.

    Attributes:
      split: what they were measured on.
      old, new: the mean of `METRIC`.
      interval: 95% bootstrap interval over users of the mean of new - old (paired).
      num_users: users measured.
    """

    split: str
    old: float
    new: float
    interval: tuple[float, float]
    num_users: int

    @property
    def is_worse(self) -> bool:
        """Whether all of the interval lies below 0."""
        return self.interval[1] < 0

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.split} {METRIC} {self.old:.4f} before and {self.new:.4f} after, difference "
            f"{self.new - self.old:+.4f} [{low:+.4f}, {high:+.4f}], {self.num_users:,} users"
        )


def measure(experiment: Experiment, params: Params, split: str) -> np.ndarray:
    """Returns (U,) float64: `METRIC` of each user with a request in the split, by index."""
    config = dataclasses.replace(
        experiment.config.evaluation, ks=(10,), monitor=METRIC, rmse=False, bootstrap_samples=0
    )
    measured: Evaluation = dataclasses.replace(
        experiment, config=dataclasses.replace(experiment.config, evaluation=config)
    ).evaluate(params, split)
    return measured.per_user


def compare(split: str, old: np.ndarray, new: np.ndarray, *, seed: int = 0) -> Comparison:
    """Compares two measurements of the same users, (U,) float64 each, by a paired bootstrap.

    Args:
      seed: of the bootstrap's draws.
    """
    assert old.shape == new.shape, (old.shape, new.shape)
    low, high = bootstrap_interval(new - old, seed)
    return Comparison(
        split=split,
        old=float(old.mean()),
        new=float(new.mean()),
        interval=(float(low), float(high)),
        num_users=len(old),
    )
