"""Artefacts as files: the same bytes for the same model, and refused with a sentence otherwise."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrec import config as configs
from jaxrec.data.dataset import Dataset
from jaxrec.evaluation import requests_for
from jaxrec.export import load_artefact
from jaxrec.export import run as export_module
from jaxrec.export.artefact import describe_file, fingerprint_of
from jaxrec.export.golden import difference_of_lists
from jaxrec.export.run import FORMATS, export_run
from jaxrec.sharding import MeshConfig
from jaxrec.training import load_trained
from jaxrec.typing import UserError

# A process in which some packages cannot be imported.
ALONE = """
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2].split(","):
            raise ImportError(f"{name} is not for this process")


sys.meta_path.insert(0, Refuse())
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"))
"""


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def copy(exported: Callable[[str], Any], tmp_path: Path) -> Path:
    """An artefact to spoil."""
    return Path(shutil.copytree(exported("sasrec").artefact.path, tmp_path / "copy"))


def rewrite_manifest(path: Path, **changes: Any) -> None:
    """Changes a manifest, whose fingerprint is right all the same."""
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    manifest["fingerprint"] = fingerprint_of(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.grid(quick=2)
@pytest.mark.parametrize("runtime", ["jax", "onnx"])
@pytest.mark.parametrize("name", ["sasrec", "mf", "pq"])
def test_the_scripts_of_the_readme_need_no_jaxrec_or_even_no_jax(
    name: str, runtime: str, exported: Callable[[str], Any], dataset: Dataset, tmp_path: Path
) -> None:
    model = exported(name)
    text = (model.artefact.path / "README.md").read_text()
    scripts = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    script = scripts[["jax", "onnx"].index(runtime)]
    (tmp_path / "script.py").write_text(script)
    refused = "jaxrec,flax,optax,orbax,pandas,safetensors" + ",jax,onnx" * (runtime == "onnx")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "script.py"), refused],
        cwd=model.artefact.path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    knows_users = model.artefact.shown == ("users",)
    request = requests_for([np.array([1, 2, 3])], np.array([1]), dataset.num_items)
    scores, items = model.experiment.recommender(model.params).rank(
        request, 7, mask_seen=not knows_users
    )
    shown = [line.split() for line in done.stdout.splitlines()]
    found = np.array([[int(name.removeprefix("i")) for name, _ in shown]])
    values = np.array([[float(score) for _, score in shown]])
    assert not difference_of_lists((found, values), (items, scores), 1e-5)


@pytest.mark.grid
@pytest.mark.parametrize("name", ["sasrec", "mf"])
def test_the_same_parameters_make_the_same_bytes_on_any_mesh(
    name: str, exported: Callable[[str], Any], dataset: Dataset, tmp_path: Path
) -> None:
    workdir = shutil.copytree(exported(name).workdir, tmp_path / "run")
    export_run(workdir, dataset, tmp_path / "one", formats=tuple(FORMATS))
    saved = json.loads((workdir / "config.json").read_text())
    saved["mesh"] = configs.to_dict(MeshConfig(data=2, model=4, tables="row"))
    (workdir / "config.json").write_text(json.dumps(saved))
    _, params, _ = load_trained(workdir, dataset)
    table = params["items"]["table"]
    assert table.shape[0] == 32 and len(table.sharding.device_set) == 8  # 31 rows, filled up
    export_run(workdir, dataset, tmp_path / "eight", formats=tuple(FORMATS))
    one, eight = contents(tmp_path / "one"), contents(tmp_path / "eight")
    assert one.keys() == eight.keys() and all(one[name] == eight[name] for name in one)
    assert "| ndcg@10 | 0." in one["model_card.md"].decode()
    assert not any(str(tmp_path).encode() in data for data in one.values())


def test_an_artefact_tells_ids_and_metadata(exported: Callable[[str], Any]) -> None:
    artefact = exported("mf").artefact
    assert artefact.item_ids.tolist() == ["", *(f"i{i}" for i in range(1, 31))]
    assert artefact.user_ids.tolist() == ["", *(f"u{i}" for i in range(1, 41))]
    assert artefact.items()["id"].tolist() == artefact.item_ids[1:].tolist()
    assert exported("sasrec").artefact.user_ids is None
    config = json.loads((artefact.path / "config.json").read_text())
    assert config["model"]["dim"] == 5
    assert {"items.stablehlo", "model_card.md", "config.json"} < artefact.manifest["files"].keys()


def test_every_byte_of_every_file_counts(copy: Path) -> None:
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(UserError, match=f"{path.name} is missing or damaged"):
            load_artefact(copy)
        path.write_bytes(whole[:-2])
        with pytest.raises(UserError, match=f"{path.name} is missing or damaged"):
            load_artefact(copy)
        path.unlink()
        with pytest.raises(UserError, match=f"{path.name} is missing or damaged|has no manifest"):
            load_artefact(copy)
        path.write_bytes(whole)
    load_artefact(copy)


def test_what_is_not_an_artefact_of_this_version_is_refused(copy: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path, copy / "README.md"):
        with pytest.raises(UserError, match="is no artefact.*Make one with scripts/export.py"):
            load_artefact(path)
    rewrite_manifest(copy, format=9, jaxrec="9.0")
    with pytest.raises(UserError, match=r"format 9, by jaxrec 9.0; this version reads format 3"):
        load_artefact(copy)
    rewrite_manifest(copy, format=2, kind="dataset")
    with pytest.raises(UserError, match="manifest.json is of something else"):
        load_artefact(copy)


def test_programs_that_this_jax_does_not_read_are_refused(copy: Path) -> None:
    (copy / "score.stablehlo").write_bytes(b"\0" * 100)
    manifest = json.loads((copy / "manifest.json").read_text())
    told = describe_file(copy / "score.stablehlo")
    rewrite_manifest(copy, jax="0.99", files=manifest["files"] | {"score.stablehlo": told})
    with pytest.raises(UserError, match="was made with jax 0.99, and jax .* does not read it"):
        load_artefact(copy)


def test_files_lie_in_the_artefact(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    outside = {"../secret": {"bytes": 0, "sha256": ""}}
    rewrite_manifest(copy, files=manifest["files"] | outside)
    with pytest.raises(UserError, match=r"names a file elsewhere, '../secret'"):
        load_artefact(copy)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"users": np.array([1])}, "recommends from history; got users"),
        ({}, "recommends from history; got neither"),
        ({"history": np.zeros((1, 9), int)}, "9 columns and this model reads 8"),
        ({"history": np.zeros((1, 0), int)}, r"\(1, 1\), no size 0; got int64 of shape \(1, 0\)"),
        ({"history": np.zeros(3, int)}, r"must be int32 of shape \(b, l\)"),
        ({"history": np.array(3)}, r"got int64 of shape \(\)"),
        ({"history": np.array([[0.5]])}, "got float64"),
        ({"history": np.array([[31]])}, "history must lie between 0 and 30; got 31"),
        ({"history": np.array([[-1]])}, "got -1"),
        (
            {"history": np.array([[1]]), "exclude": np.array([[1], [2]])},
            r"exclude must be int32 of shape \(1, 1\)",
        ),
        ({"history": np.array([[1]]), "masks": np.ones((1, 30), bool)}, r"of shape \(1, 31\)"),
        ({"history": np.array([[1]]), "mask": np.array([1])}, "between 0 and 0; got 1"),
        (
            {"history": np.array([[1]]), "mask_seen": np.ones(2, bool)},
            r"mask_seen must be bool of shape \(1\)",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    given: dict[str, Any], match: str, exported: Callable[[str], Any]
) -> None:
    with pytest.raises(UserError, match=match):
        exported("sasrec").artefact.recommend(**given)


def test_users_and_items_beyond_the_model_are_refused(exported: Callable[[str], Any]) -> None:
    artefact = exported("mf").artefact
    with pytest.raises(UserError, match="users must lie between 0 and 40; got 41"):
        artefact.recommend(users=np.array([41]))
    with pytest.raises(UserError, match="items must lie between 0 and 30; got 31"):
        artefact.score(np.array([[31]]), users=np.array([1]))
    with pytest.raises(UserError, match="item must lie between 0 and 30; got 31"):
        artefact.similar(np.array([31]))


def test_an_artefact_appears_whole_or_not_at_all(
    exported: Callable[[str], Any],
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workdir, output = exported("mf").workdir, tmp_path / "out"
    monkeypatch.setattr(export_module, "readme", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_run(workdir, dataset, output, measure=False)
    assert not list(tmp_path.iterdir())


def test_weights_alone_are_no_program(
    exported: Callable[[str], Any], dataset: Dataset, tmp_path: Path
) -> None:
    workdir, output = exported("mf").workdir, tmp_path / "out"
    manifest = export_run(workdir, dataset, output, formats=["safetensors"], measure=False)
    assert manifest["k"] == 30  # of 100: there are no more items
    assert not list(output.glob("*.stablehlo"))
    assert "stablehlo" not in (output / "README.md").read_text()
    with pytest.raises(UserError, match="weights and no programs. Export it with --format"):
        load_artefact(output)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"k": 0}, "k must be at least 1; got 0"),
        ({"formats": ["torch"]}, "no format 'torch'. There are: safetensors, stablehlo, onnx"),
        ({"formats": []}, "at least one format"),
        ({"formats": ["onnx"], "ann": "ivf"}, "say --format=stablehlo as well"),
    ],
)
def test_bad_requests_are_refused_before_the_run_is_read(
    options: dict[str, Any], match: str, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=match):
        export_run(tmp_path / "no run", dataset, tmp_path / "out", **options)


def test_without_flatbuffers_the_package_to_install_is_named(
    copy: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[export\]'"):
        load_artefact(copy)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[export\]'"):
        export_run(tmp_path / "no run", dataset, tmp_path / "out")


def test_without_onnx_the_package_to_install_is_named(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[onnx\]'"):
        export_run(tmp_path / "no run", dataset, tmp_path / "out", formats=["onnx"])


def test_an_output_that_exists_is_left_alone(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for output in (tmp_path, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(UserError, match="exists already"):
            export_run(tmp_path / "no run", dataset, output)
    assert (tmp_path / "file").read_text() == "mine"
