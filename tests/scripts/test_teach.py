"""scripts/teach.py: one run teaches another, of another kind, through files."""

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_a_run_teaches_another_through_files(
    scripts: Any, trained: Path, config_files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    scripts.works("teach", f"--workdir={trained}", f"--output={labels}", "-k", "7")
    text = config_files["bpr"].read_text()
    wanted = "data=PairData(), model=MF, objective=BPR(num_negatives=2)"
    assert wanted in text
    taught = f"data=Taught(data=PairData(), labels={str(labels)!r}), model=MF, "
    taught += "objective=Distillation(objective=BPR(num_negatives=2), top_k=5)"
    imports = "from jaxrec.data import Taught\nfrom jaxrec.distillation import Distillation\n"
    (tmp_path / "taught.py").write_text(imports + text.replace(wanted, taught))
    flags = (f"--config={tmp_path / 'taught.py'}", f"--workdir={tmp_path / 'run'}")
    scripts.works("train", *flags, f"--data={data}", "--config.objective.weight=0.9")
    assert "60 users" in scripts.works("evaluate", f"--workdir={tmp_path / 'run'}", "--split=valid")
    said = scripts.fails(
        "teach", f"--workdir={trained}", f"--output={labels}", "-k", "9", f"--data={data}"
    )
    assert "holds labels with num_labels=7 and these would have num_labels=9" in said


def test_a_teacher_must_be_named(scripts: Any) -> None:
    assert "--workdir=DIR --output=DIR" in scripts.fails("teach")
