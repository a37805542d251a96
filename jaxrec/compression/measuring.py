"""What candidates cost and gain beside their source, the choice among them, and its report."""

import dataclasses
import html
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.columns import aligned
from jaxrec.compression.quantized import num_bytes
from jaxrec.compression.search import Candidate
from jaxrec.evaluation import EvaluationConfig, requests_of
from jaxrec.evaluation.charts import line_chart
from jaxrec.metrics import bootstrap_interval
from jaxrec.ops.topk import top_k_dot
from jaxrec.training import Experiment
from jaxrec.typing import UserError

BEST = "best for its size"
BATCH_SIZES = (1, 32)  # whose latency is measured


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
