"""The training loop: owns time, checkpoints and telling; knows nothing of models."""

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrec import config as configs
from jaxrec.data.dataset import SPLITS, Dataset, open_dataset
from jaxrec.data.vocabulary import ROLES, path_in_workdir
from jaxrec.evaluation import Evaluation
from jaxrec.optim import with_start
from jaxrec.paths import divide, flatten
from jaxrec.sharding import check_divides, own_rows, replicate, shard_batch
from jaxrec.training.checkpoints import Checkpoints
from jaxrec.training.config import ExperimentConfig
from jaxrec.training.experiment import Experiment
from jaxrec.training.host import HostStep
from jaxrec.training.known import save_rows, with_carried
from jaxrec.training.logs import MetricsLog, Progress
from jaxrec.training.prefetch import prefetch
from jaxrec.training.processes import Stop, is_first, stop_on_sigterm, together
from jaxrec.training.record import Record, begin_record, read_record, write_record
from jaxrec.training.segments import check_segments
from jaxrec.training.state import Step, StepMetrics, TrainState, all_finite
from jaxrec.training.step import make_step
from jaxrec.training.trained import check_kinds, check_same, describe_checkpoint
from jaxrec.training.vocabularies import save_vocabularies
from jaxrec.typing import Batch, Stopped, UserError


def train(
    config: ExperimentConfig,
    data: Dataset | str | Path,
    workdir: str | Path,
    *,
    start: Callable[[TrainState], TrainState] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains, validates and tests one experiment; goes on where an earlier call was cut off.

    The workdir gets config.json, vocabularies/ (the ids that rows of tables stand for),
    checkpoints/, metrics.jsonl, tensorboard/, run.json (where the dataset is, when `data` is a
    directory) and, at the end, result.json. On a CPU a run that was
    killed and called again ends with the same parameters, bit for bit, as one that never was.

    With several processes (see `jaxrec.training.processes`) each calls this function with the same
    arguments, and the workdir and the dataset are on disks that all can read. The first one writes
    logs and results.

    Args:
      config: the experiment.
      data: a dataset, or the directory of one.
      workdir: made when absent. One that holds another experiment is refused.
      start: what to begin with instead of the state that `init_state` gives, which it is given: a
        function that returns one of the same shapes, dtypes and places. A run that goes on from
        its own checkpoint does not call it.
      quiet: no progress on stderr.

    Returns:
      What result.json holds: metrics of the best parameters on "valid" and "test", "throughput"
      (examples are loss terms), "steps", "epochs", "wall_s", and "notes": what the metrics of
      each split do not tell by themselves.

    Raises:
      UserError: for a config that does not fit the data, a loss that is not a number, a checkpoint
        that cannot be read or written.
      Stopped: after SIGTERM, once the state is saved.
    """
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    experiment = Experiment.of(config, with_carried(dataset, workdir))
    with together(), _Run(experiment, Path(workdir), start, quiet=quiet) as run:
        if is_first() and not isinstance(data, Dataset):
            where = {"data": str(Path(data).absolute())}
            configs.write_whole(run.workdir / "run.json", json.dumps(where) + "\n")
        return run.finish()


_DIVERGED = (
    "The checkpoints before it are kept. Lower config.optimizer.learning_rate, set "
    "config.optimizer.clip_norm, or look for bad values in the data."
)


class _Run:
    """One call of `train`: the state on the device and everything around it."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        start: Callable[[TrainState], TrainState] | None,
        *,
        quiet: bool,
    ):
        self.experiment, self.workdir, self.start = experiment, workdir, start
        self.quiet = quiet or not is_first()
        config = experiment.config
        self.config, self.begun = config.training, time.monotonic()
        self.mesh = config.mesh.build()
        check_divides(self.config.batch_size, self.mesh, accumulate=self.config.accumulate)
        self.batches = config.data.batches(
            experiment.dataset, self.config.batch_size, self.config.seed
        )
        self.total = self.config.steps or self.config.epochs * self.batches.steps_per_epoch
        per_epoch = self.config.evaluate_epochs * self.batches.steps_per_epoch
        self.evaluate_every = self.config.evaluate_every or per_epoch
        statistics = config.objective.statistics(experiment.dataset)
        self.statistics = replicate(statistics, self.mesh)
        self.state, self.step = self._born()
        evaluation = config.evaluation
        self.monitor = evaluation.monitor
        self.measure = {"monitor": self.monitor, "mask_seen": evaluation.mask_seen}
        self.record, self.rate, self.slow = Record(self.measure), 0.0, 0.0
        self.log: MetricsLog | None = None
        counts = np.bincount(experiment.dataset.split, minlength=len(SPLITS))
        self.measured = [name for name in ("valid", "test") if counts[SPLITS[name]]]

    def _born(self) -> tuple[TrainState, Step]:
        """Plans where everything goes, says so, and makes it."""
        config, model = self.experiment.config, self.experiment.model
        _check_trainable(self.experiment)
        rows = own_rows(self.config.batch_size, self.mesh)
        if self.batches.batch(0, slice(rows.start, rows.start + 1)).segments is not None:
            check_segments(model)
        optimizer, average = self.experiment.optimizer(self.total), self.config.average
        kinds = self.experiment.step_kinds(self.batches, self.statistics)
        plan = self.experiment.plan(optimizer, self.mesh, kinds)
        self.kinds = {table.name: table.step for table in plan.tables}
        if not self.quiet:
            print(plan, file=sys.stderr)
        step: dict[str, Any] = {"seed": self.config.seed, "accumulate": self.config.accumulate}
        step |= {"capacity": self.config.capacity, "trained": self.experiment.trained}
        if plan.layout.on_host:
            if average:
                raise UserError("training.average does not go with config.mesh.tables='host'.")
            tables = plan.layout.on_host
            made: Step = HostStep(model, config.objective, optimizer, tables=tables, **step)
        else:
            step |= {"average": average, "mesh": self.mesh, "layout": plan.layout}
            made = make_step(model, config.objective, optimizer, **step)
        return self.experiment.born(optimizer, self.mesh, plan.layout), made

    def __enter__(self) -> "_Run":
        with contextlib.ExitStack() as stack:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self.checkpoints = stack.enter_context(
                Checkpoints(self.workdir / "checkpoints", keep_last=self.config.keep_last)
            )
            self.at = self._resume()
            if is_first():
                configs.save(self.experiment.config, self.workdir / "config.json")
                begin_record(self.workdir, self.at, self.record)
                there = all(path_in_workdir(self.workdir, role).exists() for role in ROLES)
                if not (self.at and there):
                    save_vocabularies(self.experiment.dataset, self.workdir)
                    save_rows(self.experiment.dataset, self.workdir)
                log = MetricsLog(self.workdir, step=self.at, validated=not self._is_due())
                self.log = stack.enter_context(log)
            self.progress = stack.enter_context(Progress(self.total, self.at, quiet=self.quiet))
            self.opened = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.opened.__exit__(*raised)

    def _resume(self) -> int:
        steps = self.checkpoints.steps()
        if not steps:
            if self.start:
                state = self.start(self.state)
                moving, _ = divide(state.params, self.experiment.trained)
                optimizer = with_start(state.optimizer, moving)
                self.state = dataclasses.replace(state, optimizer=optimizer)
            return 0
        meta = self.checkpoints.meta(steps[-1])
        check_same(meta, self.experiment, resume=True)
        self.record = read_record(self.workdir, steps[-1], meta)
        check_kinds(meta, self.experiment, self.kinds)
        if not self.quiet:
            print(f"going on from step {steps[-1]:,} of {self.total:,}", flush=True)
        if self.record.measure != self.measure:
            self._measure_again(steps)
        self.state = self.checkpoints.restore(steps[-1], self.state)
        return steps[-1]

    def _measure_again(self, steps: list[int]) -> None:
        """Finds the best of the checkpoints that are left, by another measure than before."""
        record, validated = self.record, self.record.validated
        if not self.quiet:
            print(
                f"validation measured {record.measure} before and measures {self.measure} now, so "
                f"the checkpoints that are left are measured again: {steps}",
                flush=True,
            )
        record.forget_best(self.measure)
        for step in steps:
            if step <= validated and "valid" in self.measured:
                self.state = self.checkpoints.restore(step, self.state)
                self._note(step, self._evaluated("valid"))
        record.validated = validated

    def finish(self) -> dict[str, Any]:
        """Trains what is left, then measures the best parameters."""
        if self._is_due():
            self._validate()  # the process before was killed in it
        if not self._patience_is_over():
            self._train()
        self.checkpoints.wait()
        best = self.record.best_step
        if best not in self.checkpoints.steps():
            best = None  # removed by hand, because it was damaged: the last parameters are left
        if best is not None and best != self.at:
            self.state = self.checkpoints.restore(best, self.state)
        splits = {split: self._evaluated(split) for split in self.measured}
        record = self.record
        result = {
            **{split: evaluation.metrics for split, evaluation in splits.items()},
            "throughput": {
                "examples_per_s": record.examples / max(record.seconds, 1e-9),
                "step_ms": 1e3 * record.seconds / max(record.steps, 1),
            },
            "steps": self.at,
            "best_step": self.at if best is None else best,
            "epochs": self.at / self.batches.steps_per_epoch,
            "wall_s": self._wall_s(),
            "notes": {name: e.blind_spots.sentences() for name, e in splits.items()},
        }
        if is_first():
            text = json.dumps(result, indent=2) + "\n"
            configs.write_whole(self.workdir / "result.json", text)
        return result

    def _train(self) -> None:
        # What is there is the result of a shorter run.
        if is_first():
            (self.workdir / "result.json").unlink(missing_ok=True)
        if "valid" not in self.measured:
            self.progress.say("no validation split: no early stopping, the last parameters count")
        with stop_on_sigterm() as stop, contextlib.closing(self._batches()) as batches:
            self._steps(batches, stop)
        if stop:
            raise self._stopped()

    def _batches(self) -> Generator[Batch]:
        rows = own_rows(self.config.batch_size, self.mesh)

        def make(step: int) -> Batch:
            batch = self.batches.batch(step, rows)
            # With tables on the host, the host looks at the ids first.
            return batch if isinstance(self.step, HostStep) else shard_batch(batch, self.mesh)

        return prefetch(make, self.at, self.total)

    def _steps(self, batches: Iterable[Batch], stop: Stop) -> None:
        window: list[StepMetrics] = []
        since, fresh = time.monotonic(), True
        for batch in batches:
            self.state, metrics = self.step(self.state, batch, self.statistics)
            self.at += 1
            window.append(metrics)
            save = self._is_milestone() or self.at % self.config.checkpoint_every == 0
            tell = save or self.at % self.config.log_every == 0
            stopping = stop.at(self.at)
            if not (tell or fresh or stopping):
                continue
            self._account(window, since, count=not fresh)
            if tell:
                self._tell()
            if save or stopping:
                if isinstance(self.step, HostStep):
                    self.state = self.step.settle(self.state)
                self._check_parameters()
                self._save()
            if stopping:
                raise self._stopped()
            if self._is_due():
                self._validate()
                if self._patience_is_over():
                    tries = self.record.misses
                    self.progress.say(f"no better validation in {tries} tries: stopping")
                    break
            window, since, fresh = [], time.monotonic(), False

    def _stopped(self) -> Stopped:
        self.checkpoints.wait()
        return Stopped(
            f"stopped at step {self.at:,} of {self.total:,}, which is saved; the same command goes "
            "on from there."
        )

    def _account(self, window: list[StepMetrics], since: float, *, count: bool) -> None:
        """Fetches the metrics of the steps since a moment in one go and checks them."""
        fetched = jax.device_get(window)
        # Only now are the steps done: before, they were no more than dispatched.
        seconds = time.monotonic() - since
        first = self.at - len(fetched) + 1
        for offset, metrics in enumerate(fetched):
            if metrics.overflow:
                raise UserError(
                    f"step {first + offset} touched {metrics.overflow} rows of a table more than "
                    f"config.training.capacity={self.config.capacity} allows. Raise it by at least "
                    "that, or set it to 0."
                )
            if not math.isfinite(metrics.loss):
                raise UserError(f"the loss of step {first + offset} is {metrics.loss}. {_DIVERGED}")
        record = self.record
        for metrics in fetched:
            record.loss_sum += float(metrics.loss) * float(metrics.examples)
            record.loss_examples += float(metrics.examples)
        self.slow = sum(bool(m.slow) for m in fetched) / len(fetched)
        examples = float(sum(m.examples for m in fetched))
        if count:
            # The first step of a process compiles, so it says nothing about speed.
            record.examples += examples
            record.seconds += seconds
            record.steps += len(fetched)
        self.rate = examples / max(seconds, 1e-9)
        self.progress.update(self.at, float(fetched[-1].loss), self.rate)

    def _tell(self) -> None:
        # Steps whose metrics were fetched by another process count as well, so that a run that was
        # cut off tells the same losses as one that was not.
        loss = self.record.loss_sum / max(self.record.loss_examples, 1e-9)
        self.record.loss_sum = self.record.loss_examples = 0.0
        told = {"train/loss": loss, "train/examples_per_s": self.rate}
        if self.mesh.shape["model"] > 1:
            told["train/slow_exchanges"] = self.slow
        self._write(told)

    def _write(self, values: dict[str, float]) -> None:
        if self.log is not None:
            self.log.write(self.at, values)

    def _check_parameters(self) -> None:
        # The loss of a step is measured before its update, which may be what went wrong.
        if not all_finite(self.state.params):
            raise UserError(f"the parameters after step {self.at} are not finite. {_DIVERGED}")

    def _is_milestone(self) -> bool:
        """Whether the parameters at hand are of those that are measured, where there is a split."""
        return self.at == self.total or self.at % self.evaluate_every == 0

    def _is_due(self) -> bool:
        """Whether the parameters at hand are to be validated, and were not yet."""
        validated = "valid" not in self.measured or self.at <= self.record.validated
        return self._is_milestone() and not validated

    def _evaluated(self, split: str) -> Evaluation:
        return self.experiment.evaluate(self.state.used, split, intervals=False)

    def _validate(self) -> None:
        """Measures the parameters, which are saved already, and marks the best."""
        evaluation = self._evaluated("valid")
        self._note(self.at, evaluation)
        self._write({f"valid/{k}": v for k, v in evaluation.metrics.items()})
        if is_first():
            write_record(self.workdir, self.record)
        record = self.record
        text = f"step {self.at:,}  valid {self.monitor} {evaluation.metrics[self.monitor]:.4f}"
        if record.best_value is not None:
            text += f"  best {record.best_value:.4f} at step {record.best_step:,}"
        self.progress.say(text)

    def _note(self, step: int, evaluation: Evaluation) -> None:
        if evaluation.must_be_zero(self.monitor):
            self.record.validated = step  # and nothing is chosen by a number that says nothing
            return
        higher = self.experiment.config.higher_is_better
        self.record.note(step, evaluation.metrics[self.monitor], higher_is_better=higher)

    def _save(self) -> None:
        if self.at in self.checkpoints.steps():
            return
        self.record.wall_s, self.begun = self._wall_s(), time.monotonic()
        meta = {
            **describe_checkpoint(self.experiment),
            "steps": self.kinds,
            "position": {"step": self.at, "epoch": self.at // self.batches.steps_per_epoch},
            "record": dataclasses.asdict(self.record),
            "best_step": self.record.best_step,
        }
        self.checkpoints.save(self.at, self.state, meta, best=self.record.best_step)

    def _wall_s(self) -> float:
        return self.record.wall_s + time.monotonic() - self.begun

    def _patience_is_over(self) -> bool:
        return 0 < self.config.patience <= self.record.misses


def _check_trainable(experiment: Experiment) -> None:
    moving, _ = divide(experiment.model.shapes, experiment.trained)
    for path, leaf in flatten(moving).items():
        if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
            raise UserError(
                f"the parameter {path} is {leaf.dtype}, which has no gradient. Train the model "
                "that it was made from, or name others in config.training.trained."
            )
