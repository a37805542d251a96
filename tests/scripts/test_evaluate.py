"""scripts/evaluate.py as a user meets it."""

import html.parser
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jaxrec.typing import UserError

ROOT = Path(__file__).parents[2]


class _Page(html.parser.HTMLParser):
    """Collects text, and checks that tags close in order."""

    VOID = frozenset({"meta", "br", "path", "line", "rect", "circle", "polyline", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_the_table_holds_the_model_and_the_baselines(
    scripts: Any, trained: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    out = scripts.works("evaluate", f"--workdir={trained}", "--split=valid", f"--report={report}")
    result = json.loads((trained / "result.json").read_text())
    title, header, _, *rows, last = out.splitlines()
    assert title == f"valid split, 60 users, checkpoint of step {result['best_step']}"
    assert [row.split()[0] for row in rows] == ["SASRec", "popularity", "item-kNN"]
    expected = f"{result['valid']['ndcg@5']:.4f}"
    assert header.split()[0] == "ndcg@5"
    assert rows[0].split()[1] == expected
    assert last == f"report: {report}"
    page = _Page()
    page.feed(report.read_text())
    assert page.open == []
    assert expected in page.text
    assert "item-kNN" in page.text and "popularity" in page.text
    assert "src=" not in report.read_text() and "http" not in report.read_text().replace(
        "http://www.w3.org/", ""
    )


def test_a_browser_shows_the_report(scripts: Any, trained: Path, tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "firefox")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no browser is installed")
    report, picture = tmp_path / "report.html", tmp_path / "report.png"
    scripts.works("evaluate", f"--workdir={trained}", f"--report={report}", "--nobaselines")
    flags = ["--headless", "--no-sandbox", f"--screenshot={picture}", f"file://{report}"]
    subprocess.run([browser, *flags], check=True, timeout=60, capture_output=True)
    assert picture.stat().st_size > 10_000


def test_cut_offs_steps_and_the_mask_can_be_chosen(scripts: Any, trained: Path) -> None:
    out = scripts.works(
        *("evaluate", f"--workdir={trained}", "--nobaselines", "--k=3", "--k=7"),
        *("--nomask_seen", "--step=20"),
    )
    assert "checkpoint of step 20" in out
    assert "ndcg@7" in out or "ndcg@3" in out
    assert "popularity" not in out.replace("average_popularity", "")


def test_an_unknown_split_ends_in_one_sentence(scripts: Any, trained: Path) -> None:
    said = scripts.fails("evaluate", f"--workdir={trained}", "--split=foo")
    assert "foo" in said and "valid" in said and "test" in said


def test_a_log_cut_short_by_a_kill_does_not_spoil_the_report(
    scripts: Any, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    with (workdir / "metrics.jsonl").open("a") as log:
        log.write('{"step": 21, "train/l')
    report = tmp_path / "report.html"
    scripts.works("evaluate", f"--workdir={workdir}", "--nobaselines", f"--report={report}")
    assert report.exists()


def test_a_workdir_without_a_whole_run_says_so(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("_run", ROOT / "scripts" / "_run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(UserError, match="holds no run. Train one"):
        module.dataset_of(str(tmp_path), None)
    (tmp_path / "run.json").write_text('{"da')
    with pytest.raises(UserError, match=r"run\.json is damaged. Say where the dataset is"):
        module.dataset_of(str(tmp_path), None)
    (tmp_path / "run.json").write_text(json.dumps({"data": str(tmp_path / "moved")}))
    with pytest.raises(UserError, match="moved is not a prepared dataset"):
        module.dataset_of(str(tmp_path), None)
