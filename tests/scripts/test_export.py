"""scripts/export.py as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrec.data import open_dataset
from jaxrec.export import load_artefact


def test_an_artefact_recommends_what_the_run_does(
    scripts: Any, trained: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "artefact"
    flags = (f"--workdir={trained}", f"--output={output}")
    out = scripts.works("export", *flags, "--k=5", "--format=stablehlo,onnx", "--ann=hnsw")
    assert "weights.safetensors" in out and "recommend.stablehlo" in out
    assert "recommend.onnx" in out and "items.faiss" in out
    assert "hnsw with effort 64: recall@5 1.0000, p50 " in out
    artefact, dataset = load_artefact(output), open_dataset(data)
    assert artefact.fingerprint[:12] in out.splitlines()[-1]
    listed = scripts.works("recommend", f"--workdir={trained}", "--user=7", "-k", "5", "--shown=0")
    user = dataset.user_index("7")
    history = np.asarray(dataset.items[dataset.users == user])
    items, _ = artefact.recommend(history=history[None, -8:], exclude=history[None])
    titles = artefact.items()["title"]
    shown = " · ".join(titles[item - 1] for item in np.asarray(items)[0])
    assert listed.splitlines()[-1].removeprefix("  recommended: ") == shown
    card = (output / "model_card.md").read_text()
    result = json.loads((trained / "result.json").read_text())
    for split in ("valid", "test"):
        assert f"{result[split]['ndcg@10']:.4f} [" in card
    assert f"{output} exists already" in scripts.fails("export", *flags)


def test_mistakes_end_in_one_sentence(scripts: Any, trained: Path, tmp_path: Path) -> None:
    output = f"--output={tmp_path / 'artefact'}"
    assert "say what to export" in scripts.fails("export", output)
    said = scripts.fails("export", f"--workdir={tmp_path}", output)
    assert "holds no run" in said
    flags = (f"--workdir={trained}", output)
    assert "k must be at least 1; got 0" in scripts.fails("export", *flags, "--k=0")
    assert "no format 'torch'" in scripts.fails("export", *flags, "--format=torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_script_of_the_readme_runs_in_an_environment_of_its_own(
    scripts: Any, trained: Path, tmp_path: Path
) -> None:
    output, python = tmp_path / "artefact", tmp_path / "fresh" / "bin" / "python"
    scripts.works("export", f"--workdir={trained}", f"--output={output}", "--nomeasure")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True)
    wanted = ["jax", "flatbuffers"]
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *wanted], capture_output=True, check=False
    )
    if installed.returncode:
        pytest.skip("packages cannot be had here")
    text = (output / "README.md").read_text()
    script = text.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [python, "-I", "-c", script], cwd=output, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    artefact = load_artefact(output)
    items, scores = artefact.recommend(history=np.array([[1, 2, 3]]))
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, _ in lines] == artefact.item_ids[np.asarray(items)[0, :10]].tolist()
    found = [float(score) for _, score in lines]
    np.testing.assert_allclose(found, np.asarray(scores)[0, :10], rtol=1e-5)
