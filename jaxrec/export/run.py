"""Writing the artefact of a trained run."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import jaxrec
from jaxrec.config import to_dict
from jaxrec.data.batches import fields_read
from jaxrec.data.dataset import SPLITS, Dataset
from jaxrec.data.store import appearing, write_json
from jaxrec.evaluation import Evaluation
from jaxrec.export.ann import (
    INDEX,
    Kind,
    build_index,
    check_faiss,
    measure_index,
    write_index,
)
from jaxrec.export.artefact import (
    FORMAT,
    GOLDEN,
    MANIFEST,
    NO_FLATBUFFERS,
    POPULARITY,
    SNAPSHOT,
    WEIGHTS,
    Artefact,
    describe_file,
    fingerprint_of,
    open_programs,
)
from jaxrec.export.pages import model_card, name_of, readme
from jaxrec.export.programs import Spec, by_name, make_programs
from jaxrec.export.samples import answers_of, golden_of, snapshot_of
from jaxrec.export.weights import write_weights
from jaxrec.functional import functional_of
from jaxrec.ops.topk import top_k_dot
from jaxrec.sharding import MeshConfig
from jaxrec.training import Experiment, load_trained
from jaxrec.training.trained import fetch
from jaxrec.typing import Params, UserError

_CHUNK = 2**17  # items that a program scores at a time: 8 million scores for a batch of 64
NO_ONNX = (
    "ONNX files are written with the package onnx, which is not here. Install it: "
    "pip install 'jaxrec[onnx]'."
)


@dataclasses.dataclass(frozen=True)
class _Source:
    """What all formats are written from."""

    experiment: Experiment
    params: Params  # on one device
    k: int

    @property
    def shown(self) -> tuple[str, ...]:
        return tuple(sorted(fields_read(self.experiment.config.data), reverse=True))

    @property
    def spec(self) -> Spec:
        config = self.experiment.config
        return Spec(
            model=self.experiment.model,
            shown=self.shown,
            num_items=self.experiment.dataset.num_items,
            max_len=max_len_of(config.data),
            k=self.k,
            chunk=_CHUNK,
        )


def _write_weights(source: _Source, output: Path) -> dict[str, Any]:
    write_weights(jax.device_get(by_name(source.params)), output / WEIGHTS)
    return {}


def _write_stablehlo(source: _Source, output: Path) -> dict[str, Any]:
    told = {}
    for name, program in make_programs(source.spec, source.params).items():
        file = f"{name}.stablehlo"
        (output / file).write_bytes(program.data)
        told[name] = {"file": file, "inputs": program.inputs, "outputs": program.outputs}
    return {"programs": told}


def _write_onnx(source: _Source, output: Path) -> dict[str, Any]:
    from jaxrec.export.onnx_programs import write_onnx

    model = functional_of(_in_float32(source.experiment.config.model))
    return {
        "onnx": write_onnx(dataclasses.replace(source.spec, model=model), source.params, output)
    }


def _in_float32(config: Any) -> Any:
    """Returns a model's config with all products in float32: runtimes have no others on a CPU."""
    fields = {field.name for field in dataclasses.fields(config)}
    changes: dict[str, Any] = {"compute_dtype": "float32"} if "compute_dtype" in fields else {}
    changes |= {"model": _in_float32(config.model)} if "model" in fields else {}
    return dataclasses.replace(config, **changes)


FORMATS: dict[str, Callable[[_Source, Path], dict[str, Any]]] = {
    "safetensors": _write_weights,
    "stablehlo": _write_stablehlo,
    "onnx": _write_onnx,
}
"""Writes the files of a format; returns what the manifest says of them."""


def export_run(
    workdir: str | Path,
    dataset: Dataset,
    output: str | Path,
    *,
    formats: Sequence[str] = ("stablehlo", "safetensors"),
    k: int = 100,
    ann: Kind | None = None,
    step: int | None = None,
    measure: bool = True,
) -> dict[str, Any]:
    """Makes the artefact of a run: a directory that appears whole or not at all.

    The same parameters make the same bytes, however they were spread over devices.

    Args:
      workdir: the run's directory.
      dataset: the dataset it was trained on.
      output: the directory to make.
      formats: of `FORMATS`. The weights are written in any case: programs read them.
      k: how many items the programs return; no more than there are.
      ann: the kind of an index for approximate search that is built as well, which may take
        minutes. How long a search took is in the manifest, so bytes differ from time to time.
      step: a checkpoint's step; None takes the best one.
      measure: whether to measure the model for its card, which takes as long as an evaluation.

    Returns:
      The manifest.

    Raises:
      UserError: for an output that exists, a format that does not, or a run that cannot be read.
    """
    output = Path(output)
    check_request(output, formats, k, ann)
    experiment, params, step = load_trained(workdir, dataset, step=step)
    # As if it had been trained on one device: where it was is no part of what it is.
    config = dataclasses.replace(experiment.config, mesh=MeshConfig())
    experiment = dataclasses.replace(experiment, config=config)
    params = jax.tree.map(jnp.asarray, fetch(experiment, params))
    source = _Source(experiment, params, min(k, dataset.num_items))
    evaluations = _measure(experiment, params) if measure else {}
    with appearing(output) as (new, _):
        manifest: dict[str, Any] = {
            "kind": "jaxrec artefact",
            "format": FORMAT,
            "jaxrec": jaxrec.__version__,
            "jax": jax.__version__,
            "model": name_of(config.model),
            "step": step,
            "shown": source.shown,
            "num_items": dataset.num_items,
            "num_users": dataset.num_users,
            "max_len": max_len_of(config.data),
            "k": source.k,
            "metrics": {split: measured.metrics for split, measured in evaluations.items()},
            "programs": {},
        }
        for name in FORMATS:  # in an order of ours
            if name in formats or name == "safetensors":
                manifest |= FORMATS[name](source, new)
        _write_vocabulary(dataset.item_vocabulary, new, "item")
        if "users" in source.shown:
            _write_vocabulary(dataset.user_vocabulary, new, "user")
        np.save(new / POPULARITY, dataset.item_counts, allow_pickle=False)
        if manifest["programs"]:
            manifest |= _write_samples(manifest, dataset, new, ann)
        write_json(new / "config.json", to_dict(config))
        card = model_card(manifest, dataset, config, params, evaluations)
        (new / "model_card.md").write_text(card, encoding="utf-8")
        (new / "README.md").write_text(readme(manifest, by_name(params)), encoding="utf-8")
        files = {file.name: describe_file(file) for file in sorted(new.iterdir())}
        manifest["fingerprints"] = {
            "items": dataset.manifest.item_fingerprint,
            "users": dataset.manifest.user_fingerprint,
            "data": dataset.manifest.fingerprint,
            "weights": files[WEIGHTS]["sha256"],
        }
        manifest["files"] = files
        manifest["fingerprint"] = fingerprint_of(manifest)
        write_json(new / MANIFEST, manifest)
    return manifest


def check_request(output: Path, formats: Sequence[str], k: int, ann: Kind | None = None) -> None:
    """Raises UserError for what needs no look at the run to be refused."""
    if output.is_symlink() or (output.exists() and (output.is_file() or any(output.iterdir()))):
        raise UserError(f"{output} exists already. Choose another output.")
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"no format {name!r}. There are: {', '.join(FORMATS)}.")
    if not formats:
        raise UserError(f"say at least one format, of {', '.join(FORMATS)}.")
    if "stablehlo" in formats and importlib.util.find_spec("flatbuffers") is None:
        raise UserError(NO_FLATBUFFERS)
    if "onnx" in formats and importlib.util.find_spec("onnx") is None:
        raise UserError(NO_ONNX)
    if ann is not None and "stablehlo" not in formats:
        raise UserError("an index is measured with the programs: say --format=stablehlo as well.")
    if ann is not None:
        check_faiss()
    if k < 1:
        raise UserError(f"k must be at least 1; got {k}.")


def max_len_of(data: Any) -> int:
    """Returns the longest history that models of a data config are shown, 0 without histories."""
    return int(data.max_len) if "history" in fields_read(data) else 0


def _measure(experiment: Experiment, params: Params) -> dict[str, Evaluation]:
    counts = np.bincount(experiment.dataset.split, minlength=len(SPLITS))
    splits = (split for split in ("valid", "test") if counts[SPLITS[split]])
    return {split: experiment.evaluate(params, split) for split in splits}


def _write_samples(
    manifest: dict[str, Any], dataset: Dataset, output: Path, ann: Kind | None
) -> dict[str, Any]:
    """Writes what the programs answer, as the files say them and not as they were traced."""
    artefact = open_programs(output, manifest)
    answers = answers_of(artefact, dataset)
    golden, snapshot = golden_of(artefact, answers), snapshot_of(answers, dataset.item_counts)
    (output / GOLDEN).write_text(json.dumps(golden) + "\n", encoding="utf-8")
    (output / SNAPSHOT).write_text(json.dumps(snapshot) + "\n", encoding="utf-8")
    return {} if ann is None else {"ann": _write_index(artefact, answers.shown, ann, output)}


def _write_index(
    artefact: Artefact, shown: dict[str, np.ndarray], kind: Kind, output: Path
) -> dict[str, Any]:
    """Builds an index and measures it against exact search for some users."""
    users = artefact.user_vectors(**shown)
    _, exact = top_k_dot(users, artefact.vectors, int(artefact.manifest["k"]))
    index = build_index(np.asarray(artefact.vectors, np.float32), kind)
    index, measured = measure_index(index, np.asarray(users, np.float32), np.asarray(exact))
    write_index(index, output / INDEX)
    about = {"kind": kind, "file": INDEX, "users": len(users), "measured": measured}
    return about | measured[-1]


def _write_vocabulary(vocabulary: pd.DataFrame, output: Path, what: str) -> None:
    ids = np.array(["", *vocabulary["id"]], dtype=np.str_)
    np.save(output / f"{what}_ids.npy", ids, allow_pickle=False)
    vocabulary.to_parquet(output / f"{what}s.parquet", index=False)
