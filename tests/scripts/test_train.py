"""scripts/train.py as a user meets it: flags, configs, what it shows, and devices."""

import importlib.util
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxrec.typing import UserError

ROOT = Path(__file__).parents[2]


def _load_config() -> Callable[[str, list[tuple[str, str]]], Any]:
    spec = importlib.util.spec_from_file_location("_config", ROOT / "scripts" / "_config.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load_config


load_config = _load_config()


def refused(path: Path | str, *overrides: str) -> str:
    pairs = [(text.partition("=")[0], text.partition("=")[2]) for text in overrides]
    with pytest.raises(UserError) as caught:
        load_config(str(path), pairs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_prints_its_metrics_and_its_pace(
    scripts: Any, config_files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "deep" / "run"
    code, out, err = scripts.run(
        *("train", f"--config={config_files['full']}", f"--data={data}", f"--workdir={workdir}"),
        *("--config.training.steps", "12", "--quiet"),
    )
    assert (code, err) == (0, "")
    valid, test, pace = out.splitlines()
    result = json.loads((workdir / "result.json").read_text())
    assert f"ndcg@10 {result['valid']['ndcg@10']:.4f}" in valid
    assert f"recall@5 {result['test']['recall@5']:.4f}" in test
    assert pace.startswith("12 steps in ")
    assert json.loads((workdir / "run.json").read_text()) == {"data": str(data)}


def test_mistakes_end_in_one_sentence(
    scripts: Any, config_files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    chosen = (f"--config={config_files['full']}", f"--data={data}", f"--workdir={tmp_path / 'run'}")
    said = scripts.fails("train", *chosen, "--config.optimizer.learning_rte=1e-3")
    assert "config.optimizer.learning_rte" in said and "'learning_rate'" in said
    assert "is not a prepared dataset" in scripts.fails("train", *chosen, f"--data={tmp_path}")
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_is_not_one_says_so(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    assert f"--config={file} does not exist" in refused(file)
    file.write_text("x = 1\n")
    assert "defines no get_config()" in refused(file)
    file.write_text("def get_config():\n    return {'dim': 8}\n")
    assert "must return an ExperimentConfig; it returned dict" in refused(file)
    file.write_text("def get_config():\n    print('on')\n    return 1 / 0\n")
    assert "fails in line 3: ZeroDivisionError: division by zero" in refused(file)
    file.write_text("def get_config(:\n")
    assert "fails in line 1: SyntaxError" in refused(file)
    file.write_text("import nowhere_to_be_found\n")
    assert "fails in line 1: ModuleNotFoundError" in refused(file)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("optimizer.learning_rte=1", "Did you mean 'learning_rate'?"),
        ("trainin.steps=1", "Did you mean 'training'?"),
        ("training.steps=many", "config.training.steps wants int; got 'many'"),
        ("training.steps=1.5", "config.training.steps wants int; got '1.5'"),
        ("model.block=postnorm", "one of 'post_norm', 'pre_norm', 'ligr'"),
        ("training=5", "config.training is a group; set one of its fields: steps, epochs"),
        ("training.steps.more=5", "nothing lies below 'training.steps'"),
        ("training.accumulate=3", "must divide training.batch_size=8"),
        ("optimizer.learning_rate=-1", "learning_rate must be above 0; got -1.0"),
        ("data.max_len=30", "data.max_len=30 is longer than model.max_len=8"),
        ("evaluation.ks=3", "evaluation.monitor='ndcg@10' is not measured"),
        ("evaluation.monitor=ndcg@7", "Use one of ndcg@5"),
    ],
)
def test_an_override_that_does_not_fit_says_what_would(
    config_files: dict[str, Path], override: str, wanted: str
) -> None:
    assert wanted in refused(config_files["full"], override)


def test_overrides_count_together_whatever_their_order(config_files: dict[str, Path]) -> None:
    pairs = [("data.max_len", "30"), ("model.max_len", "30")]
    pairs += [("evaluation.ks", "3"), ("evaluation.monitor", "recall@3")]
    pairs += [("training.accumulate", "3"), ("training.batch_size", "9")]
    one = load_config(str(config_files["full"]), pairs)
    assert one == load_config(str(config_files["full"]), pairs[::-1])
    assert (one.data.max_len, one.model.max_len, one.evaluation.ks) == (30, 30, (3,))


def test_the_default_config_loads() -> None:
    for file in sorted((ROOT / "configs").glob("*.py")):
        assert load_config(str(file), [("training.seed", "3")]).training.seed == 3


def test_a_terminal_shows_a_live_bar(
    scripts: Any, config_files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    flags = (f"--config={config_files['full']}", f"--data={data}", f"--workdir={tmp_path / 'run'}")
    process = subprocess.Popen(
        [sys.executable, "scripts/train.py", *flags],
        cwd=ROOT,
        env=scripts.environment,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # the other end has been closed
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "\r" in text.replace("\r\n", "\n")
    assert "20/20" in text and "loss " in text and "examples/s" in text
    assert "valid ndcg@10" in text
    assert "step 4/20" not in text


@pytest.mark.slow
def test_eight_devices_train_as_one_does(
    scripts: Any, config_files: dict[str, Path], data: Path, trained: Path, tmp_path: Path
) -> None:
    flags = (f"--config={config_files['full']}", f"--data={data}", f"--workdir={tmp_path / 'run'}")
    scripts.works(
        *("train", *flags, "--config.mesh.data=8"),
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )

    def losses(workdir: Path) -> list[float]:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return [v["train/loss"] for v in map(json.loads, lines) if "train/loss" in v]

    assert losses(tmp_path / "run") == pytest.approx(losses(trained), abs=1e-5)
    one, eight = (
        json.loads((w / "result.json").read_text())["test"] for w in (trained, tmp_path / "run")
    )
    assert eight == pytest.approx(one, abs=1e-5)
    # What eight devices wrote is read by one.
    scripts.works("evaluate", f"--workdir={tmp_path / 'run'}", "--nobaselines")


ML_100K = ROOT.parent / "shared" / "data" / "ml-100k"


@pytest.mark.slow
def test_biased_factorisation_reaches_its_error_on_movielens(scripts: Any, tmp_path: Path) -> None:
    config = ROOT / "configs" / "mf_ml100k.py"
    if not config.exists() or not ML_100K.exists():
        pytest.skip("configs/mf_ml100k.py or ../shared/data/ml-100k is not there")
    log = ML_100K / "ratings.csv"
    columns = ("--user_column=user_id", "--item_column=item_id", "--time_column=timestamp")
    scripts.works(
        *("prepare", f"--input={log}", f"--output={tmp_path / 'data'}", *columns),
        *("--label_column=rating", "--split=random", "--valid_fraction=0", "--test_fraction=0.2"),
    )
    flags = (f"--config={config}", f"--data={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}")
    scripts.works("train", *flags)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test"]["rmse"] <= 0.92
