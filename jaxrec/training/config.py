"""The config of an experiment: everything that decides what a run does."""

import dataclasses
from typing import Any, Literal, Protocol

from jaxrec.data.batches import fields_read
from jaxrec.data.dataset import Dataset
from jaxrec.evaluation import RATING_ERRORS, EvaluationConfig
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import MeshConfig
from jaxrec.typing import Batch, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, rhythm and randomness of a run.

    Attributes:
      steps: optimiser steps; 0 means `epochs` passes over the data.
      epochs: passes over the data, when steps is 0.
      batch_size: rows of a batch; what a row is, the data config says.
      accumulate: parts that a batch is computed in to save memory; must divide the rows of a
        device, which are batch_size over the devices of the mesh.
      seed: of parameters, order of the data, negatives and dropout.
      log_every: steps between lines of metrics.jsonl; the device is only asked then.
      evaluate_every: steps between validations; 0 means every `evaluate_epochs` epochs.
      evaluate_epochs: epochs between validations, when evaluate_every is 0.
      checkpoint_every: steps between checkpoints; there is one at each validation in any case.
      keep_last: newest checkpoints that are kept, beside the best one.
      patience: validations without a new best after which training stops; 0 never stops early.
      capacity: distinct rows of one table that a device's rows of a batch may touch, when the
        objective samples; 0 allows for all of their ids. Smaller saves memory, and too small stops
        the run.
      average: decay of a running average of the parameters, which is what is evaluated and used
        when above 0; in [0, 1). Wants the dense step.
      table_dtype: of embedding tables. With "bfloat16" they take half the memory, and updates are
        added in float32 and rounded up or down at random, so that small ones are not lost.
      trained: which parameters are trained: paths ("items/table"), beginnings of paths ("blocks/1")
        or globs ("*/bias"); "head" is the table that items are scored with. Empty means all.
    """

    steps: int = 0
    epochs: int = 20
    batch_size: int = 128
    accumulate: int = 1
    seed: int = 0
    log_every: int = 100
    evaluate_every: int = 0
    evaluate_epochs: int = 1
    checkpoint_every: int = 1000
    keep_last: int = 2
    patience: int = 0
    capacity: int = 0
    average: float = 0.0
    table_dtype: Literal["float32", "bfloat16"] = "float32"
    trained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "log_every", "evaluate_epochs", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("steps", "epochs", "evaluate_every", "patience", "seed", "capacity"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"training.{name} must not be negative; got {getattr(self, name)}."
                )
        if self.checkpoint_every < 1:
            raise ValueError(
                f"training.checkpoint_every must be at least 1; got {self.checkpoint_every}."
            )
        if not self.steps and not self.epochs:
            raise ValueError("set training.steps or training.epochs above 0.")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"training.accumulate={self.accumulate} must divide training.batch_size="
                f"{self.batch_size}."
            )
        if not 0 <= self.average < 1:
            raise ValueError(f"training.average must be in [0, 1); got {self.average}.")


class Batches(Protocol):
    """Training batches, addressable by step."""

    @property
    def steps_per_epoch(self) -> int: ...

    def batch(self, step: int, rows: slice | None = None) -> Batch: ...


class DataConfig(Protocol):
    """What a data config offers; `SequenceData` and `PairData` are two."""

    @property
    def max_len(self) -> int: ...

    def batches(self, dataset: Dataset, batch_size: int, seed: int) -> Batches: ...

    def requests(self, users: Any, histories: Any) -> Batch: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One experiment. The types of data, model and objective are the experiment's own.

    Attributes:
      data: how events become batches (`SequenceData`, `PairData`).
      model: the model's `Config`, such as `jaxrec.models.sasrec.Config`.
      objective: what is minimised, such as `jaxrec.objectives.FullSoftmax`.
      optimizer: the optimiser and its schedule.
      training: length, rhythm and randomness.
      evaluation: how validation and test are measured.
      mesh: the devices.
    """

    data: Any
    model: Any
    objective: Any
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        longest = getattr(self.model, "max_len", None)
        if longest is not None and longest < self.data.max_len:
            raise UserError(
                f"data.max_len={self.data.max_len} is longer than model.max_len={longest}. "
                "Set both."
            )
        tasks = getattr(self.objective, "tasks", ())
        measured = [f"{task.head}/{task.metric}" for task in tasks]
        if "/" in self.evaluation.monitor and self.evaluation.monitor not in measured:
            raise UserError(
                f"evaluation.monitor={self.evaluation.monitor!r} is the metric of no task; the "
                f"objective's are: {', '.join(measured) or 'none'}."
            )
        if self.evaluation.rmse and "history" in fields_read(self.data):
            raise UserError(
                "evaluation.rmse compares labels with scores of pairs of a user and an item, and "
                f"{type(self.data).__name__} shows a model histories in place of users, so that it "
                "would predict one label for everybody. Give the model a head that learns ratings "
                "(WithHeads, MultiTask with Rating) and look at rating/rmse, or set "
                "evaluation.rmse=false."
            )
        if self.training.average and not self.objective.whole_catalogue:
            raise UserError(
                "training.average wants an objective over the whole catalogue, whose step is "
                "dense: an average of every row at every step is what touched rows do without."
            )

    @property
    def higher_is_better(self) -> bool:
        """Whether larger values of `evaluation.monitor` are better, as its metric says."""
        for task in getattr(self.objective, "tasks", ()):
            if self.evaluation.monitor == f"{task.head}/{task.metric}":
                return bool(task.higher_is_better)
        return self.evaluation.monitor not in RATING_ERRORS
