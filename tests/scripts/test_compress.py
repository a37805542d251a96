"""scripts/compress.py as a user meets it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


PRUNED = {"prune blocks", "prune blocks, int8", "prune all", "prune all, int8"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "names"),
    [
        ("int8", {"int8"}),
        pytest.param("prune", PRUNED, marks=pytest.mark.slow),  # trains twice
        pytest.param("qat", {"int4, trained for it"}, marks=pytest.mark.slow),
        pytest.param("distil", {"student", "student, int8"}, marks=pytest.mark.slow),
    ],
)
def test_the_smallest_that_loses_little_is_a_run_as_any_other(
    scripts: Any, trained: Path, tmp_path: Path, methods: str, names: set[str]
) -> None:
    before, output = contents(trained), tmp_path / "small"
    flags = (f"--workdir={trained}", f"--output={output}", "--max_metric_drop=0.9")
    code, out, err = scripts.run("compress", *flags, f"--methods={methods}", "--training_share=0.5")
    assert code == 0, err
    told = json.loads((output / "compression.json").read_text())
    rows = {row["name"]: row for row in told["valid"]}
    assert set(rows) == {"source", *names}
    for name, row in rows.items():
        assert f"{row['num_bytes']:,}" in out and name in out
        assert f"{name}: {row['num_bytes']:,} bytes" in err  # progress
    good = [row for row in rows.values() if row["change"] >= -0.9]
    least = min(good, key=lambda row: (row["num_bytes"], -row["metric"]))
    assert told["chosen"] == least["name"] and told["metric"] == "ndcg@10"
    assert [row["name"] for row in told["test"]] == ["source", least["name"]]
    assert "<svg" in (output / "compression.html").read_text()
    assert not (output / "compress_work").exists()
    assert contents(trained) == before
    shown = scripts.works("evaluate", f"--workdir={output}", "--nobaselines", "--k=10")
    assert f"{told['test'][1]['metric']:.4f}" in shown.splitlines()[-1]
    listed = scripts.works("recommend", f"--workdir={output}", "--user=7", "-k", "3")
    assert len(listed.splitlines()[-1].split(" · ")) == 3
    said = scripts.fails("compress", *flags)
    assert f"{output} holds a run already" in said


@pytest.mark.slow
def test_a_target_out_of_reach_and_other_mistakes_end_in_one_sentence(
    scripts: Any, trained: Path, tmp_path: Path
) -> None:
    flags = (f"--workdir={trained}", f"--output={tmp_path / 'small'}", "--quiet")
    said = scripts.fails("compress", *flags, "--target_bytes=100", "--methods=int8")
    assert "no candidate has 100 bytes or less: the smallest is int8 with" in said
    assert not (tmp_path / "small" / "checkpoints").exists()
    assert "either --target_bytes=N or --max_metric_drop" in scripts.fails("compress", *flags)
    said = scripts.fails("compress", *flags, "--target_bytes=100", "--methods=int2")
    assert "no method 'int2'. There are: int8, int4, pq, qat, prune, distil" in said
    said = scripts.fails("compress", *flags, "--target_bytes=100", "--training_share=0")
    assert "--training_share must be above 0" in said
    assert "at least one method" in scripts.fails(
        "compress", *flags, "--target_bytes=100", "--methods="
    )
    (tmp_path / "mine" / "compress_work").mkdir(parents=True)
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    said = scripts.fails(
        "compress", flags[0], f"--output={tmp_path / 'mine'}", "--target_bytes=100"
    )
    assert f"{tmp_path / 'mine'} exists and is not empty" in said
    assert (tmp_path / "mine" / "thesis.txt").exists()
    said = scripts.fails("compress", f"--workdir={tmp_path}", *flags[1:], "--target_bytes=100")
    assert "holds no run" in said
