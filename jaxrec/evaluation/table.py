"""A plain-text table of metrics: models and baselines as rows."""

from collections.abc import Mapping, Sequence

from jaxrec.columns import aligned
from jaxrec.evaluation.ranking import Evaluation
from jaxrec.evaluation.ratings import RATING_ERRORS
from jaxrec.typing import UserError


def main_metrics(evaluation: Evaluation) -> list[str]:
    """The metrics of a first look: accuracy and breadth at the smallest k, and rating errors."""
    cut = "@" + str(min(int(name.split("@")[1]) for name in evaluation.metrics if "@" in name))
    names = ("ndcg", "recall", "mrr", "coverage", "novelty")
    errors = [name for name in RATING_ERRORS if name in evaluation.metrics]
    return [name + cut for name in names] + errors


def cells(
    evaluations: Mapping[str, Evaluation], names: Sequence[str]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns (row name, [(value, interval)]); the text is empty for what was not measured.

    Raises:
      UserError: for a metric that none of the evaluations has.
    """
    for name in names:
        if not any(name in evaluation.metrics for evaluation in evaluations.values()):
            known = sorted({key for e in evaluations.values() for key in e.metrics})
            raise UserError(f"no metric {name!r} was measured. There are: {', '.join(known)}.")
    return [
        (row, [_cell(evaluation, name) for name in names])
        for row, evaluation in evaluations.items()
    ]


def metrics_table(evaluations: Mapping[str, Evaluation], names: Sequence[str] | None = None) -> str:
    """Lays out metrics in aligned columns, with 95% intervals in brackets.

    Args:
      evaluations: row name to what was measured.
      names: the columns, such as ["ndcg@10", "recall@20"]; `main_metrics` by default.

    Returns:
      Lines joined by newlines, without one at the end.

    Raises:
      UserError: without evaluations, or for a metric that none of them has.
    """
    if not evaluations:
        raise UserError("a table of metrics needs at least one evaluation.")
    names = main_metrics(next(iter(evaluations.values()))) if names is None else names
    rows = [["", *names]]
    for row, values in cells(evaluations, names):
        rows.append([row, *(" ".join(filter(None, pair)) or "–" for pair in values)])
    lines = aligned(rows)
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _cell(evaluation: Evaluation, name: str) -> tuple[str, str]:
    if name not in evaluation.metrics:
        return "", ""
    value = _number(evaluation.metrics[name])
    if name not in evaluation.intervals:
        return value, ""
    low, high = evaluation.intervals[name]
    return value, f"[{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 2 else f"{value:,.2f}"
