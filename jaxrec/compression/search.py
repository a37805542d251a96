"""Searches for the smallest model that is good enough, or the best that is small enough."""

import dataclasses
import html
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.columns import aligned
from jaxrec.compression.pruning import prune_and_train, start_from, widths_of
from jaxrec.compression.quantized import QuantizationAware, Quantized, num_bytes, quantize
from jaxrec.data import Taught
from jaxrec.distillation import Distillation
from jaxrec.evaluation import EvaluationConfig, requests_of
from jaxrec.evaluation.charts import line_chart
from jaxrec.metrics import bootstrap_interval
from jaxrec.objectives import BCE, BPR, FullSoftmax, InBatchSoftmax, SampledSoftmax
from jaxrec.ops.topk import top_k_dot
from jaxrec.optim import OptimizerConfig
from jaxrec.paths import flatten
from jaxrec.training import Experiment, ExperimentConfig, load_trained, train
from jaxrec.typing import Params, UserError

BEST = "best for its size"
BATCH_SIZES = (1, 32)  # whose latency is measured

# How smaller models are taught; what was measured for it is in docs/compression.md.
_TAUGHT, _AUGMENT, _LESS_DROPOUT = 0.5, 0.2, 0.2
_OF_FINE_TUNING = ("l2_to_start", "layer_decay", "unfreeze_every")
_RANKING = (FullSoftmax, SampledSoftmax, InBatchSoftmax, BCE, BPR)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model that may take the source's place.

    Attributes:
      name: what was done, such as "int4 group 32".
      experiment: its config is that of a model as any other.
      params: as `experiment.model` takes them.
    """

    name: str
    experiment: Experiment
    params: Params


@dataclasses.dataclass(frozen=True)
class Source:
    """What is to be compressed, and what methods may use.

    Attributes:
      experiment, params: the trained model.
      workdir: its run, which teaches smaller models.
      work: directory for runs of methods that train; a search that was cut off and is called again
        goes on from what is there.
      training_share: how long such a run is, in lengths of the source's own.
      quiet: no progress of such runs on stderr.
    """

    experiment: Experiment
    params: Params
    workdir: Path
    work: Path
    training_share: float = 0.5
    quiet: bool = True

    def of(self, name: str, model: Any, params: Params) -> Candidate:
        """Returns a candidate with another model config."""
        config = dataclasses.replace(self.experiment.config, model=model)
        return Candidate(name, Experiment.of(config, self.experiment.dataset), params)

    def quantised(self, name: str, **options: Any) -> Candidate:
        """Returns the source with its parameters quantised; options as `Quantized`."""
        config = Quantized(model=_plain(self.experiment.config.model), **options)
        return self.of(name, config, quantize(self.params, config))

    @property
    def table_width(self) -> int:
        """The greatest number that divides the width of every table."""
        flat, tables = flatten(self.params), self.experiment.tables
        return math.gcd(*(flat[f"{name}/table"].shape[1] for name in tables))

    def smaller(self, name: str, counts: Mapping[str, int]) -> Iterator[Candidate]:
        """Gives the source with smaller counts, trained; and the same as int8."""
        experiment, params = prune_and_train(
            self.taught,
            self.params,
            counts,
            self.work / name.replace(" ", "_"),
            quiet=self.quiet,
        )
        yield Candidate(name, experiment, params)
        trained = dataclasses.replace(self, experiment=experiment, params=params)
        yield trained.quantised(f"{name}, int8", tables="int8")

    @property
    def shorter(self) -> ExperimentConfig:
        """The config with a training of `training_share` of its length, and of all parameters.

        What a fine-tuned source did to stay near its own source has no part in it.
        """
        config = self.experiment.config
        plain = OptimizerConfig()
        optimizer = dataclasses.replace(
            config.optimizer,
            **{name: getattr(plain, name) for name in _OF_FINE_TUNING},
        )
        config = dataclasses.replace(config, optimizer=optimizer)
        length = "steps" if config.training.steps else "epochs"
        value = max(1, round(getattr(config.training, length) * self.training_share))
        training = dataclasses.replace(config.training, trained=(), **{length: value})
        return dataclasses.replace(config, training=training)

    @property
    def taught(self) -> Experiment:
        """The experiment as smaller models are trained: for a shorter time, by the source.

        A model whose objective does not rank items has no teacher. One that has gets less dropout,
        as it is smaller and the teacher's labels are soft.
        """
        config = self.shorter
        objective, data = config.objective, config.data
        if isinstance(objective, Distillation):
            objective = objective.objective
        if isinstance(data, Taught):
            data = data.data
        if isinstance(objective, _RANKING):
            taught = Distillation(
                objective=objective,
                teacher=str(self.workdir.absolute()),
                weight=_TAUGHT,
                augment=_AUGMENT,
                top_k=0 if objective.whole_catalogue else 50,
            )
            config = dataclasses.replace(
                config, objective=taught, data=data, model=_with_less_dropout(config.model)
            )
        return dataclasses.replace(self.experiment, config=config)


def _with_less_dropout(model: Any) -> Any:
    rates = {
        field.name: _LESS_DROPOUT * getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name.endswith("dropout")
    }
    return dataclasses.replace(model, **rates)


def _int8(source: Source) -> Iterator[Candidate]:
    yield source.quantised("int8", tables="int8")


def _int4(source: Source) -> Iterator[Candidate]:
    yield source.quantised("int4", tables="int4")
    width = source.table_width
    for group in (width // 2, width // 4):
        if group > 1 and width % group == 0:
            yield source.quantised(f"int4 group {group}", tables="int4", group=group)


def _qat(source: Source) -> Iterator[Candidate]:
    """int4, after training that knows of it."""
    model = source.experiment.config.model
    aware = QuantizationAware(model=_plain(model), bits=4)
    config = dataclasses.replace(source.shorter, model=aware)
    workdir, dataset = source.work / "qat", source.experiment.dataset
    train(config, dataset, workdir, start=start_from(source.params), quiet=source.quiet)
    _, params, _ = load_trained(workdir, dataset)
    stored = aware.quantized()
    yield source.of("int4, trained for it", stored, quantize(params, stored))


def _plain(model: Any) -> Any:
    """Returns the config whose parameters are floats: the same ones."""
    return model.model if isinstance(model, QuantizationAware) else model


def _pq(source: Source) -> Iterator[Candidate]:
    width = source.table_width
    for parts in (width // 2, width // 4, width // 8):
        if parts >= 1 and width % parts == 0:
            yield source.quantised(f"pq {parts} parts", tables="pq", pq_parts=parts)


def _prune(source: Source) -> Iterator[Candidate]:
    """Half of the heads and hidden units; half of the width as well; and both as int8."""
    model = source.experiment.config.model
    half = _halved(model, keep=("num_blocks",))
    inside = {field: count for field, count in half.items() if field != "dim"}
    if inside:
        yield from source.smaller("prune blocks", inside)
    yield from source.smaller("prune all", half)


def _distil(source: Source) -> Iterator[Candidate]:
    """A student with half of everything, blocks included; and as int8."""
    yield from source.smaller("student", _halved(source.experiment.config.model))


def _halved(model: Any, keep: tuple[str, ...] = ()) -> dict[str, int]:
    fields = [field for field in widths_of(model) if field not in keep]
    return {field: max(1, getattr(model, field) // 2) for field in fields}


METHODS: dict[str, Callable[[Source], Iterator[Candidate]]] = {
    "int8": _int8,
    "int4": _int4,
    "pq": _pq,
    "qat": _qat,
    "prune": _prune,
    "distil": _distil,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of a candidate, beside the source, on the same users.

    Attributes:
      name: the candidate's.
      num_bytes: of all its parameters.
      share: of the source's bytes.
      latency_ms: by batch size, the median time from a batch of histories to its best 10 items; the
        vectors of items are decoded beforehand.
      metric: such as ndcg@10, a mean over users.
      interval: its 95% bootstrap interval.
      change: of the metric, relative to the source; negative is a loss.
      difference: 95% bootstrap interval of the mean difference to the source over users.
      significant_loss: whether that interval lies below 0.
    """

    name: str
    num_bytes: int
    share: float
    latency_ms: dict[int, float]
    metric: float
    interval: tuple[float, float]
    change: float
    difference: tuple[float, float]
    significant_loss: bool


def measure(
    candidate: Candidate, source: Candidate, split: str, *, per_user: np.ndarray | None = None
) -> tuple[Measured, np.ndarray]:
    """Measures a candidate beside the source on a split.

    Args:
      candidate, source: may be the same.
      split: "valid" or "test".
      per_user: what this function returned of the source on this split, to measure it once.

    Returns:
      What was measured, and the metric of each user.
    """
    values = _values(candidate, split)
    base = values if candidate is source else per_user
    base = _values(source, split) if base is None else base
    config = _ranking(source.experiment)
    ends = bootstrap_interval(
        np.stack([values, values - base], axis=1), config.seed, config.bootstrap_samples or 1000
    )
    size, whole = num_bytes(candidate.params), num_bytes(source.params)
    metric, of_source = float(values.mean()), float(base.mean())
    measured = Measured(
        name=candidate.name,
        num_bytes=size,
        share=size / whole,
        latency_ms={n: serving_ms(candidate, n) for n in BATCH_SIZES},
        metric=metric,
        interval=(float(ends[0, 0]), float(ends[1, 0])),
        change=metric / of_source - 1 if of_source else 0.0,
        difference=(float(ends[0, 1]), float(ends[1, 1])),
        significant_loss=bool(ends[1, 1] < 0),
    )
    return measured, values


def metric_of(experiment: Experiment) -> str:
    """Returns the metric that candidates are chosen by: the experiment's own if it is a ranking."""
    return _ranking(experiment).monitor


def _ranking(experiment: Experiment) -> EvaluationConfig:
    return experiment.config.evaluation.without_ratings()


def _values(candidate: Candidate, split: str) -> np.ndarray:
    experiment = candidate.experiment
    config = dataclasses.replace(experiment.config, evaluation=_ranking(experiment))
    ranking = dataclasses.replace(experiment, config=config)
    return ranking.evaluate(candidate.params, split, intervals=False).per_user


def serving_ms(candidate: Candidate, batch_size: int, *, k: int = 10, repeats: int = 40) -> float:
    """Returns the median milliseconds from a batch of histories to the best k items."""
    experiment = candidate.experiment
    recommender = experiment.recommender(candidate.params)
    requests = requests_of(experiment.dataset, "valid")
    items = [jnp.asarray(block) for block in recommender.item_blocks()]
    random = np.random.default_rng(0)
    batches = [
        recommender.make_batch(requests, random.integers(0, len(requests), batch_size))
        for _ in range(repeats)
    ]

    def serve(batch: Any) -> float:
        begun = time.perf_counter()
        users = jnp.asarray(recommender.user_vectors(batch))
        found = [top_k_dot(users, block, k, chunk=recommender.config.item_chunk) for block in items]
        jax.block_until_ready(found)
        return 1e3 * (time.perf_counter() - begun)

    for batch in batches:  # compiles, once for each length of history
        serve(batch)
    return float(np.median([serve(batch) for batch in batches]))


def check_methods(model: Any, methods: Sequence[str]) -> None:
    """Refuses what `candidates` would refuse, before anything is measured or trained.

    Raises:
      UserError: for no method or one that is not among `METHODS`, a model that is quantised
        already, or one that cannot be made smaller.
    """
    if not methods:
        raise UserError(f"say at least one method. There are: {', '.join(METHODS)}.")
    for name in methods:
        if name not in METHODS:
            raise UserError(f"no method {name!r}. There are: {', '.join(METHODS)}.")
    if isinstance(model, Quantized):
        raise UserError("the model is quantised already. Compress the run that it was made from.")
    if {"prune", "distil"} & set(methods):
        widths_of(model)


def candidates(source: Source, methods: Sequence[str]) -> Iterator[Candidate]:
    """Gives the candidates of some methods, made one after the other.

    Raises:
      UserError: as `check_methods`.
    """
    check_methods(source.experiment.config.model, methods)
    for name in methods:
        yield from METHODS[name](source)


def pareto(rows: Sequence[Measured]) -> list[Measured]:
    """Returns those that no other beats in bytes and metric both, smallest first."""
    front: list[Measured] = []
    for row in sorted(rows, key=lambda row: (row.num_bytes, -row.metric)):
        if not front or row.metric > front[-1].metric:
            front.append(row)
    return front


def choose(
    rows: Sequence[Measured],
    *,
    target_bytes: int | None = None,
    max_metric_drop: float | None = None,
) -> Measured:
    """Returns the best row of at most so many bytes, or the smallest that loses at most so much.

    Args:
      rows: what was measured.
      target_bytes: the most bytes; the best metric among those counts.
      max_metric_drop: the greatest relative loss, such as 0.01; the fewest bytes count.

    Raises:
      UserError: when none is so small or so good, naming what was reached; or unless exactly one of
        the two is given.
    """
    if (target_bytes is None) == (max_metric_drop is None):
        raise UserError("give either a number of bytes or a metric drop to aim for, not both.")
    if target_bytes is not None:
        fitting = [row for row in rows if row.num_bytes <= target_bytes]
        if not fitting:
            least = min(rows, key=lambda row: row.num_bytes)
            raise UserError(
                f"no candidate has {target_bytes:,} bytes or less: the smallest is {least.name} "
                f"with {least.num_bytes:,} ({least.change:+.1%}). Allow more, or try more methods."
            )
        return max(fitting, key=lambda row: (row.metric, -row.num_bytes))
    assert max_metric_drop is not None
    good = [row for row in rows if row.change >= -max_metric_drop]
    if not good:
        best = max(rows, key=lambda row: row.change)
        raise UserError(
            f"every candidate loses more than {max_metric_drop:.1%}: {best.name} loses least, "
            f"{-best.change:.1%}, with {best.num_bytes:,} bytes. Allow more, or try more methods."
        )
    return min(good, key=lambda row: (row.num_bytes, -row.metric))


def format_table(rows: Sequence[Measured], metric: str) -> str:
    """Lays out what was measured, smallest first; a star marks those that no other beats."""
    front = {row.name for row in pareto(rows)}
    head = ["", "bytes", "share", *(f"p50 ms, batch {n}" for n in BATCH_SIZES)]
    lines = [[*head, metric, "95% interval", "change", "difference", "loss"]]
    for row in sorted(rows, key=lambda row: (row.num_bytes, -row.metric)):
        lines.append(
            [
                ("* " if row.name in front else "  ") + row.name,
                f"{row.num_bytes:,}",
                f"{row.share:.3f}",
                *(f"{row.latency_ms[n]:.2f}" for n in BATCH_SIZES),
                f"{row.metric:.4f}",
                "[{:.4f}, {:.4f}]".format(*row.interval),
                f"{row.change:+.2%}",
                "[{:+.5f}, {:+.5f}]".format(*row.difference),
                "significant" if row.significant_loss else "",
            ]
        )
    return "\n".join(aligned(lines))


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1160px;margin:2rem auto;padding:0 1rem}"
    "svg{width:100%;max-width:760px}svg text{font-size:11px}.grid{stroke:#d9dee3;fill:none}"
    ".line{fill:none;stroke:currentColor;stroke-width:2}.fill{fill:currentColor}"
    ".s0{color:#0b62c4}.s1{color:#c2410c}.s2{color:#15803d}.s3{color:#7e22ce}"
    ".s4{color:#a16207}.s5{color:#0e7490}.key{margin-right:1rem}"
    ".key::before{content:'\\25A0\\00A0'}pre{overflow-x:auto}"
)


def format_page(rows: Sequence[Measured], metric: str, title: str) -> str:
    """Returns an HTML page with the metric over the bytes, and the table below."""
    front = pareto(rows)
    line = {BEST: ([row.num_bytes / 1e6 for row in front], [row.metric for row in front])}
    points: dict[str, dict[str, tuple[float, float]]] = {BEST: {}, "others": {}}
    for row in rows:
        of = points[BEST if row in front else "others"]
        of[row.name] = (row.num_bytes / 1e6, row.metric)
    chart = line_chart(f"{metric} by size", line, "MB of parameters", points=points)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{chart}"
        f"<pre>{html.escape(format_table(rows, metric))}</pre></body></html>\n"
    )


def to_json(rows: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """Returns what JSON holds of rows by split."""
    return {split: [dataclasses.asdict(row) for row in of] for split, of in rows.items()}
