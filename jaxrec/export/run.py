"""Writing the artefact of a trained run."""

import dataclasses
import functools
import importlib.util
import json
import tempfile
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
    KNOWN_ITEMS,
    KNOWN_USERS,
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
from jaxrec.export.golden import check_onnx, difference
from jaxrec.export.pages import model_card, name_of, readme
from jaxrec.export.programs import Spec, by_name, item_vectors, make_programs, recommend_with
from jaxrec.export.samples import GOLDEN as GOLDEN_REQUESTS
from jaxrec.export.samples import Questions, answers_of, golden_of, questions_of, snapshot_of
from jaxrec.export.scores import Scoring, scoring_of
from jaxrec.export.weights import write_weights
from jaxrec.functional import functional_of
from jaxrec.objectives import FullSoftmax
from jaxrec.ops.topk import top_k_dot
from jaxrec.sharding import MeshConfig
from jaxrec.training import Experiment, load_trained
from jaxrec.training.known import known_rows
from jaxrec.training.trained import fetch
from jaxrec.typing import Params, UserError

_CHUNK = 2**17  # items that a program scores at a time: 8 million scores for a batch of 64
NO_ONNX = (
    "ONNX files are written with the package onnx and asked with onnxruntime, which are not both "
    "here. Install them: pip install 'jaxrec[onnx]'."
)


@dataclasses.dataclass(frozen=True)
class _Source:
    """What all formats are written from."""

    experiment: Experiment
    params: Params  # on one device
    k: int
    head: str | None = None

    @functools.cached_property
    def known(self) -> dict[str, np.ndarray]:
        return known_rows(self.experiment, self.params)

    @property
    def shown(self) -> tuple[str, ...]:
        return tuple(sorted(fields_read(self.experiment.config.data), reverse=True))

    @functools.cached_property
    def scoring(self) -> Scoring:
        return scoring_of(self.experiment.model, self.experiment.config, self.head)

    @functools.cached_property
    def spec(self) -> Spec:
        config = self.experiment.config
        return Spec(
            model=self.scoring.model,
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

    return {"onnx": write_onnx(_in_float32(source), source.params, output)}


def _in_float32(source: _Source) -> Spec:
    """Returns what ONNX programs compute. A model in float32 is the same there as elsewhere."""
    config = source.experiment.config
    plain = _with_products_in_float32(config.model)
    if plain == config.model:
        return source.spec
    scoring = scoring_of(functional_of(plain), config, source.head)
    return dataclasses.replace(source.spec, model=scoring.model)


def _with_products_in_float32(config: Any) -> Any:
    """Returns a model's config with all products in float32: runtimes have no others on a CPU."""
    fields = {field.name for field in dataclasses.fields(config)}
    changes: dict[str, Any] = {"compute_dtype": "float32"} if "compute_dtype" in fields else {}
    changes |= {"model": _with_products_in_float32(config.model)} if "model" in fields else {}
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
    head: str | None = None,
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
      head: the head whose output is the score, of a model that has some; None takes the products
        of vectors that an objective over items trained, or else the only head that scores items.
      measure: whether to measure the model for its card, which takes as long as an evaluation.

    Returns:
      The manifest.

    Raises:
      UserError: for an output that exists, a format that does not, a run that cannot be read or
        trained no score of items, or a format that answers otherwise than the model. Nothing is
        left behind.
    """
    output = Path(output)
    check_request(output, formats, k, ann)
    experiment, params, step = load_trained(workdir, dataset, step=step)
    # As if it had been trained on one device: where it was is no part of what it is.
    config = dataclasses.replace(experiment.config, mesh=MeshConfig())
    experiment = dataclasses.replace(experiment, config=config)
    params = jax.tree.map(jnp.asarray, fetch(experiment, params))
    source = _Source(experiment, params, min(k, dataset.num_items), head)
    scoring = source.scoring  # what is no score is refused before it is measured
    evaluations = _measure(source) if measure else {}
    with appearing(output) as (new, _):
        manifest = _about(source) | {
            "step": step,
            "score": scoring.told,
            "metrics": {split: measured.metrics for split, measured in evaluations.items()},
        }
        manifest |= _write_formats(source, formats, new)
        _write_vocabulary(dataset.item_vocabulary, new, "item")
        if "users" in source.shown:
            _write_vocabulary(dataset.user_vocabulary, new, "user")
        _write_known(source, new)
        np.save(new / POPULARITY, dataset.item_counts, allow_pickle=False)
        manifest |= _write_samples(manifest, source, new, ann)
        write_json(new / "config.json", to_dict(config))
        card = model_card(manifest, dataset, params, evaluations, left=scoring.left)
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


def check_formats(
    experiment: Experiment,
    params: Params,
    *,
    formats: Sequence[str] = ("stablehlo", "onnx"),
    k: int = 10,
) -> None:
    """Writes programs into a temporary folder and asks each format what the model itself answers.

    `export_run` does the same of what it writes. For tests of models.

    Args:
      experiment: a model, on one device, and the dataset whose users are asked for.
      params: its parameters.
      formats: of `FORMATS`.
      k: how many items are compared.

    Raises:
      UserError: when the model cannot be exported, or a format answers otherwise.
    """
    source = _Source(experiment, params, min(k, experiment.dataset.num_items))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        manifest = _about(source) | _write_formats(source, formats, output)
        _write_known(source, output)
        _write_samples(manifest, source, output, None)


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
    if "onnx" in formats and not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
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


def _about(source: _Source) -> dict[str, Any]:
    """Returns what the manifest says of a model before anything is written."""
    config, dataset = source.experiment.config, source.experiment.dataset
    return {
        "kind": "jaxrec artefact",
        "format": FORMAT,
        "jaxrec": jaxrec.__version__,
        "jax": jax.__version__,
        "model": name_of(config.model),
        "shown": source.shown,
        "num_items": dataset.num_items,
        "num_users": dataset.num_users,
        "max_len": max_len_of(config.data),
        "k": source.k,
    }


def _write_formats(source: _Source, formats: Sequence[str], output: Path) -> dict[str, Any]:
    """Writes the files of formats, and weights in any case; returns what the manifest says."""
    told: dict[str, Any] = {"programs": {}}
    for name in FORMATS:  # in an order of ours
        if name in formats or name == "safetensors":
            told |= FORMATS[name](source, output)
    return told


def _write_known(source: _Source, output: Path) -> None:
    np.save(output / KNOWN_ITEMS, source.known["item"], allow_pickle=False)
    if "users" in source.shown:
        np.save(output / KNOWN_USERS, source.known["user"], allow_pickle=False)


def _measure(source: _Source) -> dict[str, Evaluation]:
    """Returns what the scores that are exported are worth, by split."""
    experiment, params, scoring = source.experiment, source.params, source.scoring
    counts = np.bincount(experiment.dataset.split, minlength=len(SPLITS))
    splits = [split for split in ("valid", "test") if counts[SPLITS[split]]]
    found = {split: experiment.evaluate(params, split) for split in splits}
    if scoring.head is not None:
        # Lists by the head's output, beside what was measured of the head itself.
        lists = _ranking(experiment, scoring)
        of_head = {
            split: {
                name: value
                for name, value in measured.metrics.items()
                if name.startswith(f"{scoring.head}/")
            }
            for split, measured in found.items()
        }
        found = {split: lists.evaluate(params, split) for split in splits}
        return {
            split: dataclasses.replace(measured, metrics=measured.metrics | of_head[split])
            for split, measured in found.items()
        }
    return {
        split: dataclasses.replace(
            measured,
            metrics={name: x for name, x in measured.metrics.items() if "/" not in name},
        )
        for split, measured in found.items()
    }


def _ranking(experiment: Experiment, scoring: Scoring) -> Experiment:
    """Returns an experiment that ranks by the output of a head and measures no task."""
    evaluation = experiment.config.evaluation
    if "/" in evaluation.monitor:
        evaluation = dataclasses.replace(evaluation, monitor=f"ndcg@{evaluation.ks[0]}")
    config = dataclasses.replace(
        experiment.config, evaluation=evaluation, objective=FullSoftmax()
    )  # an objective without tasks: it is not asked for a loss
    return dataclasses.replace(experiment, config=config, model=scoring.model)


def _write_samples(
    manifest: dict[str, Any], source: _Source, output: Path, ann: Kind | None
) -> dict[str, Any]:
    """Asks the programs, as the files say them and not as they were traced, and writes it down.

    Raises:
      UserError: when one answers otherwise than the model in this process.
    """
    if not manifest["programs"] and "onnx" not in manifest:
        return {}
    dataset = source.experiment.dataset
    questions = questions_of(dataset, source.shown, max_len_of(source.experiment.config.data))
    if "onnx" in manifest:
        wanted = _wanted(_in_float32(source), source, questions)
        check_onnx(output, wanted, source.known["item"])
    if not manifest["programs"]:
        return {}
    artefact = open_programs(output, manifest)
    answers = answers_of(artefact.recommend, questions)
    golden = golden_of(answers, artefact.vectors.dtype)
    wanted = _wanted(source.spec, source, questions)
    told = difference(
        wanted["items"],
        wanted["scores"],
        answers.items[:GOLDEN_REQUESTS],
        answers.scores[:GOLDEN_REQUESTS],
        wanted["tolerance"],
    )
    if told:
        raise UserError(
            f"the StableHLO program 'recommend' does not answer as the model does: {told}. Leave "
            "--format=stablehlo out for this model, and report it."
        )
    snapshot = snapshot_of(answers, dataset.item_counts)
    (output / GOLDEN).write_text(json.dumps(golden) + "\n", encoding="utf-8")
    (output / SNAPSHOT).write_text(json.dumps(snapshot) + "\n", encoding="utf-8")
    return {} if ann is None else {"ann": _write_index(artefact, answers.shown, ann, output)}


def _wanted(spec: Spec, source: _Source, questions: Questions) -> dict[str, Any]:
    """Returns golden requests with what a model itself answers in this process."""
    recommend = recommend_with(spec, source.params, jnp.asarray(source.known["item"]))
    answers = answers_of(recommend, questions, GOLDEN_REQUESTS)
    dtype = jax.eval_shape(functools.partial(item_vectors, spec), by_name(source.params)).dtype
    return golden_of(answers, dtype)


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
