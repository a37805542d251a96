"""One self-contained HTML page about a run: metrics beside baselines, curves, for whom it works."""

import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrec.config import to_dict
from jaxrec.evaluation.breakdown import Group
from jaxrec.evaluation.charts import bar_chart, line_chart
from jaxrec.evaluation.ranking import ACCURACY, Evaluation
from jaxrec.evaluation.table import cells
from jaxrec.typing import UserError

_STYLE = """
:root { color-scheme: light dark; --text: #1c2127; --dim: #667079; --rule: #d9dee3;
  --page: #fff; --c0: #0b62c4; --c1: #c2410c; --c2: #15803d; --c3: #7e22ce; --c4: #a16207;
  --c5: #0e7490; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ea; --dim: #9aa4ad; --rule: #3a4148;
  --page: #15181b; --c0: #6cb0ff; --c1: #ff9a66; --c2: #6fd08c; --c3: #cf9bff; --c4: #e0b84c;
  --c5: #5cc8de; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p, figcaption, .legend, .interval { color: var(--dim); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--rule); }
th:first-child { text-align: left; }
.interval { display: block; font-size: .8em; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 1rem; }
figure { margin: 0; } svg { width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--dim); }
.grid { stroke: var(--rule); fill: none; } .line { fill: none; stroke: currentColor;
  stroke-width: 2; } .fill { fill: currentColor; }
.s0 { color: var(--c0); } .s1 { color: var(--c1); } .s2 { color: var(--c2); }
.s3 { color: var(--c3); } .s4 { color: var(--c4); } .s5 { color: var(--c5); }
.key { margin-right: 1rem; font-size: .85em; } .key::before { content: "\\25A0\\00A0"; }
pre { overflow-x: auto; }
"""


def write_report(
    path: str | Path,
    config: Any,
    evaluations: Mapping[str, Evaluation],
    metrics_jsonl: str | Path | None = None,
    *,
    title: str = "Recommender report",
) -> None:
    """Writes an HTML page that needs no network and no scripts.

    Args:
      path: where to write; an existing file is replaced once the page is whole.
      config: the run's config, a dataclass or a dict.
      evaluations: row name to what was measured; the model first, then baselines. Splits may be
        mixed: each gets its own section.
      metrics_jsonl: the training log, one JSON object a line with "step" and values such as
        "train/loss" and "valid/ndcg@10". Without it there are no curves.
      title: heading of the page.

    Raises:
      UserError: without evaluations, or when the log is absent or damaged.
    """
    if not evaluations:
        raise UserError("a report needs at least one evaluation.")
    splits = list(dict.fromkeys(evaluation.split for evaluation in evaluations.values()))
    sections = [
        _split_section(split, {n: e for n, e in evaluations.items() if e.split == split})
        for split in splits
    ]
    curves = _curves(_read_log(Path(metrics_jsonl))) if metrics_jsonl is not None else ""
    settings = html.escape(json.dumps(to_dict(config), indent=2, default=str))
    heading = html.escape(title)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{heading}</title><style>{_STYLE}</style></head><body><h1>{heading}</h1>"
        f"{''.join(sections)}{curves}"
        f"<h2>Config</h2><details><summary>All settings</summary><pre>{settings}</pre></details>"
        "</body></html>\n"
    )
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)


def _split_section(split: str, evaluations: Mapping[str, Evaluation]) -> str:
    first = next(iter(evaluations.values()))
    about = f"{first.num_users:,} users ranked against the whole catalogue"
    if any(evaluation.intervals for evaluation in evaluations.values()):
        about += "; 95% bootstrap intervals over users"
    notes = "".join(f"<li>{html.escape(text)}.</li>" for text in first.blind_spots.sentences())
    return (
        f"<h2>Metrics on the {html.escape(split)} split</h2><p>{about}.</p><ul>{notes}</ul>"
        f"{_metrics_table(evaluations)}"
        f"<h2>Where it works ({html.escape(split)})</h2>{_breakdowns(evaluations)}"
    )


def _metrics_table(evaluations: Mapping[str, Evaluation]) -> str:
    names = list(dict.fromkeys(name for e in evaluations.values() for name in e.metrics))
    rows = cells(evaluations, names)
    body = [[name, *(_value(*values[i]) for _, values in rows)] for i, name in enumerate(names)]
    return _table(["metric", *(html.escape(row) for row, _ in rows)], body)


def _value(value: str, interval: str) -> str:
    return value + (f'<span class="interval">{interval}</span>' if interval else "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; the first cell of a row is its heading."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _breakdowns(evaluations: Mapping[str, Evaluation]) -> str:
    popularity = {name: e.by_popularity for name, e in evaluations.items()}
    history = {name: e.by_history for name, e in evaluations.items()}
    k = next(iter(evaluations.values())).k
    return (
        '<div class="charts">'
        + _breakdown(
            f"Recall@{k} by popularity of the target",
            "tenth of the catalogue, least popular first",
            "targets",
            popularity,
        )
        + _breakdown(f"Recall@{k} by length of history", "events in the history", "users", history)
        + "</div>"
    )


def _breakdown(title: str, x_label: str, unit: str, groups: Mapping[str, tuple[Group, ...]]) -> str:
    shown = [i for i, group in enumerate(next(iter(groups.values()))) if group.count]
    first = next(iter(groups.values()))
    names = [first[i].name for i in shown]
    series = {row: [values[i].recall for i in shown] for row, values in groups.items()}
    rows = [
        [html.escape(first[i].name), f"{first[i].count:,}"]
        + [f"{values[i].recall:.4f}" for values in groups.values()]
        for i in shown
    ]
    numbers = _table([html.escape(x_label), unit, *(html.escape(row) for row in groups)], rows)
    return (
        f"<div>{bar_chart(title, names, series, x_label)}"
        f"<details><summary>Numbers</summary>{numbers}</details></div>"
    )


def _read_log(path: Path) -> dict[str, dict[int, float]]:
    """Returns name to step to value; a step that was logged again after a restart counts once."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; it is written by training.") from None
    series: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            if number == len(lines):
                break  # a run that was killed leaves half a line
            raise UserError(f"{path}, line {number}, is damaged ({error!r}).") from None
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float):
                series.setdefault(name, {})[step] = float(value)
    return series


def _curves(log: Mapping[str, dict[int, float]]) -> str:
    losses = {name: points for name, points in log.items() if name.endswith("loss")}
    charts = [_curve("Loss", losses)]
    for metric in (*ACCURACY, "coverage", "rmse"):
        family = {
            name: points
            for name, points in log.items()
            if name.startswith("valid/") and name[len("valid/") :].split("@")[0] == metric
        }
        charts.append(_curve(f"Validation {metric}", family))
    drawn = "".join(charts)
    return f'<h2>Training</h2><div class="charts">{drawn}</div>' if drawn else ""


def _curve(title: str, series: Mapping[str, dict[int, float]]) -> str:
    ordered = {name: sorted(points.items()) for name, points in series.items()}
    return line_chart(
        title,
        {name: ([x for x, _ in p], [y for _, y in p]) for name, p in ordered.items()},
        "step",
    )
