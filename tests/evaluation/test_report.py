"""The table and the HTML page: every number is there, nothing is loaded, text is escaped."""

import dataclasses
import json
import xml.etree.ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxrec.evaluation import (
    EvaluationConfig,
    Popularity,
    RecentPopularity,
    evaluate,
    metrics_table,
    write_report,
)
from jaxrec.evaluation.charts import bar_chart, line_chart
from jaxrec.typing import UserError

VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Collects tags, attributes and the text of table cells; refuses tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def evaluations(random_dataset):
    dataset = random_dataset(0, num_users=80, num_items=30, mean_length=9)
    return {
        "model": evaluate(RecentPopularity(dataset), dataset, "test"),
        "popularity": evaluate(Popularity(dataset), dataset, "test"),
    }


LOG = [
    {"step": 100, "train/loss": 5.1},
    {"step": 200, "train/loss": 4.2, "valid/ndcg@10": 0.031, "valid/gini@10": 0.9},
    {"step": 300, "train/loss": 3.7, "valid/ndcg@10": 0.047},
]


def write_log(path, tail=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in LOG) + tail)
    return path


def test_table_holds_values_and_intervals_in_aligned_columns(evaluations):
    text = metrics_table(evaluations, ["ndcg@10", "coverage@20"])
    lines = text.splitlines()
    low, high = evaluations["model"].intervals["ndcg@10"]
    assert f"{evaluations['model'].metrics['ndcg@10']:.4f} [{low:.4f}, {high:.4f}]" in lines[2]
    assert lines[2].startswith("model")
    assert lines[3].startswith("popularity")
    assert lines[0].split() == ["ndcg@10", "coverage@20"]
    assert len({len(line) for line in lines}) == 1


def test_table_shows_the_main_metrics_at_the_smallest_k_by_default(evaluations):
    head = metrics_table(evaluations).splitlines()[0].split()
    assert head == ["ndcg@10", "recall@10", "mrr@10", "coverage@10", "novelty@10"]


def test_table_marks_what_was_not_measured(evaluations):
    model = evaluations["model"]
    rated = dataclasses.replace(model, metrics=model.metrics | {"rmse": 0.9})
    text = metrics_table({"rated": rated, "other": model}, ["rmse"])
    assert text.splitlines()[2].split() == ["rated", "0.9000"]
    assert text.splitlines()[3].split() == ["other", "–"]


def test_table_explains_an_unknown_metric(evaluations):
    with pytest.raises(UserError, match="'ndcg@7'.*ndcg@10"):
        metrics_table(evaluations, ["ndcg@7"])
    with pytest.raises(UserError, match="at least one"):
        metrics_table({})


def test_report_holds_every_number(tmp_path, evaluations):
    log = write_log(tmp_path / "metrics.jsonl")
    write_report(tmp_path / "report.html", EvaluationConfig(), evaluations, log)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    cells = set(page.cells)
    for evaluation in evaluations.values():
        for name, value in evaluation.metrics.items():
            text = f"{value:.4f}" if value < 2 else f"{value:,.2f}"
            interval = evaluation.intervals.get(name)
            if interval:
                text += f"[{interval[0]:.4f}, {interval[1]:.4f}]"
            assert name in cells
            assert text in cells, name
        for group in (*evaluation.by_popularity, *evaluation.by_history):
            if group.count:
                assert {f"{group.count:,}", f"{group.recall:.4f}"} <= cells
    assert "train/loss: 3.7 at 300" in page.text
    assert "valid/ndcg@10: 0.047 at 300" in page.text
    assert '"bootstrap_samples": 1000' in page.text


def test_report_is_self_contained(tmp_path, evaluations):
    path = tmp_path / "report.html"
    write_report(path, {}, evaluations, write_log(tmp_path / "metrics.jsonl"))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert "http" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert [p.name for p in tmp_path.glob("*.partial")] == []


def test_report_escapes_text(tmp_path, evaluations):
    evil = "<script>alert('&')</script>"
    named = {evil: evaluations["model"]}
    path = tmp_path / "report.html"
    write_report(path, {"note": evil}, named, title=evil)
    page = Page(path.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert evil in page.cells
    assert "Training" not in page.text


def test_report_gives_each_split_its_section(tmp_path, evaluations):
    model = evaluations["model"]
    both = {"model": model, "model (valid)": dataclasses.replace(model, split="valid")}
    write_report(tmp_path / "report.html", {}, both)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Metrics on the test split" in page.text
    assert "Metrics on the valid split" in page.text


def test_half_a_last_line_of_a_killed_run_is_left_out(tmp_path, evaluations):
    log = write_log(tmp_path / "metrics.jsonl", tail='{"step": 400, "train/lo')
    write_report(tmp_path / "report.html", {}, evaluations, log)
    assert "at 300" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_steps_logged_again_after_a_restart_count_once(tmp_path, evaluations):
    log = write_log(tmp_path / "metrics.jsonl", tail='{"step": 200, "valid/ndcg@10": 0.5}\n')
    write_report(tmp_path / "report.html", {}, evaluations, log)
    assert "valid/ndcg@10: 0.047 at 300" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_damaged_log_is_explained_and_leaves_no_page(tmp_path, evaluations):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2, is damaged"):
        write_report(tmp_path / "report.html", {}, evaluations, log)
    with pytest.raises(UserError, match="does not exist"):
        write_report(tmp_path / "report.html", {}, evaluations, tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="at least one"):
        write_report(tmp_path / "report.html", {}, {})
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "y", [[1.0], [2.0, 2.0], [0.0, 0.0], [-3.0, 1e9], [1e-9, 3e-9], [np.nan, 1.0, np.inf]]
)
def test_line_charts_stay_inside_their_frame(y):
    text = line_chart("t", {"a": (list(range(len(y))), y)}, "step")
    line = next(xml.etree.ElementTree.fromstring(text).iterfind("svg/g/polyline"))
    for point in line.attrib["points"].split():
        x, height = map(float, point.split(","))
        assert 0 <= x <= 460
        assert 0 <= height <= 240


def test_charts_of_nothing_are_left_out():
    assert line_chart("t", {"a": ([1], [np.nan])}, "step") == ""
    assert bar_chart("t", [], {}, "x") == ""


def test_bars_are_as_high_as_their_values():
    text = bar_chart("t", ["a", "b", "c"], {"s": [0.0, 0.2, 0.4]}, "x")
    bars = xml.etree.ElementTree.fromstring(text).findall("svg/rect")
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[0] == 0
    assert heights[2] == pytest.approx(2 * heights[1])
