"""What training leaves: a workdir's config and parameters, written, checked and opened again."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxrec import config as configs
from jaxrec.data.dataset import Dataset
from jaxrec.optim import table_of
from jaxrec.paths import divide, flatten, unite
from jaxrec.sharding import Layout
from jaxrec.training.checkpoints import SKIP, Checkpoints, open_checkpoint
from jaxrec.training.config import ExperimentConfig
from jaxrec.training.experiment import Experiment
from jaxrec.training.known import read_rows, save_rows, with_carried
from jaxrec.training.state import TrainState, abstract_state
from jaxrec.training.vocabularies import save_vocabularies
from jaxrec.typing import Params, UserError


def describe_checkpoint(experiment: Experiment) -> dict[str, Any]:
    """Returns what a checkpoint says about the run that wrote it."""
    manifest = experiment.dataset.manifest
    return {
        "config": configs.to_dict(experiment.config),
        "item_fingerprint": manifest.item_fingerprint,
        "user_fingerprint": manifest.user_fingerprint,
        "data_fingerprint": manifest.fingerprint,
    }


def check_same(saved: dict[str, Any], experiment: Experiment, *, resume: bool) -> None:
    """Refuses a checkpoint of another model or vocabulary, or, to resume, of another run.

    Raises:
      UserError: names what differs.
    """
    here = describe_checkpoint(experiment)
    # Fields that came after the checkpoint was written have their defaults.
    config = configs.to_dict(configs.from_dict(saved["config"]))
    parts = ["model"]
    if resume and saved.get("model_alone"):
        raise UserError(
            "the workdir holds a model without the state of its training, which cannot go on. "
            "Train in another --workdir."
        )
    if resume:
        # What may change between two halves of a run: its length, its rhythm, its measurement.
        parts += ["data", "objective", "optimizer", "training.seed", "training.batch_size"]
        parts += ["training.average", "training.accumulate", "training.table_dtype"]
        parts += ["training.trained"]
    for part in parts:
        old, new = _at(config, part), _at(here["config"], part)
        for path, was, now in _differences(part, old, new):
            raise UserError(
                f"the checkpoint was written with config.{path}={was!r} and the config has {now!r}."
                " Use the config that it was written with, or another --workdir."
            )
    for what in ("item", "user"):
        key = f"{what}_fingerprint"
        if saved[key] != here[key]:
            raise UserError(
                f"the checkpoint was trained with another {what} vocabulary ({saved[key][:12]}) "
                f"than the dataset has ({here[key][:12]}). Use the dataset that it was trained on, "
                "or another --workdir."
            )
    if resume and saved["data_fingerprint"] != here["data_fingerprint"]:
        raise UserError(
            "the dataset has changed since the checkpoint was written (fingerprint "
            f"{saved['data_fingerprint'][:12]}, now {here['data_fingerprint'][:12]}), so the run "
            "cannot go on as it was. Use that dataset, or another --workdir."
        )


def check_kinds(saved: dict[str, Any], experiment: Experiment, kinds: dict[str, str]) -> None:
    """Refuses to go on with another kind of step, by an optimiser for which that is another run.

    Args:
      saved: what the checkpoint says.
      kinds: by table, how a step updates it now.

    Raises:
      UserError: names the table and what may have changed it.
    """
    if not experiment.config.optimizer.rests:
        return
    before = saved.get("steps", {})
    for name, kind in kinds.items():
        was = before.get(name, kind)
        if was != kind:
            now = configs.to_dict(experiment.config)
            paths = ("training.capacity", "mesh.tables")
            options = ", ".join(
                f"config.{path} was {_at(saved['config'], path)!r} and is {_at(now, path)!r}"
                for path in paths
            )
            raise UserError(
                f"the steps of the checkpoint updated table {name!r} by: {was}, and those to come "
                f"would by: {kind} ({options}), where rows that no batch touches rest or do not. "
                "Use the config that it was written with, or another --workdir."
            )


def load_config(workdir: str | Path) -> ExperimentConfig:
    """Returns the fitted config of a run. Raises UserError when it is absent or damaged."""
    path = Path(workdir) / "config.json"
    config = configs.load(path)
    if not isinstance(config, ExperimentConfig):
        raise UserError(f"{path} is damaged: it is no experiment's config.")
    return config


def load_trained(
    workdir: str | Path, dataset: Dataset, *, step: int | None = None
) -> tuple[Experiment, Params, int]:
    """Opens what `train` left in a workdir.

    Args:
      workdir: the run's directory.
      dataset: the dataset it was trained on, or one with the same vocabularies.
      step: a checkpoint's step; None takes the best one, or the newest without validation.

    Returns:
      The experiment, whose dataset knows which rows the run trained, the parameters and their step.
      Parameters lie as the config's mesh says, or
      on one device where there are fewer.

    Raises:
      UserError: without a checkpoint, or with one of another model or vocabulary.
    """
    config = load_config(workdir)
    rows = read_rows(workdir)
    if rows is not None and all(len(rows[r]) == len(dataset.trained[r]) for r in rows):
        dataset = dataclasses.replace(dataset, trained_rows=rows)
    experiment = Experiment.of(config, dataset)
    with open_checkpoint(workdir, step) as (checkpoints, step):
        meta = checkpoints.meta(step)
        check_same(meta, experiment, resume=False)
        wanted = _parameters_alone(experiment)
        if meta.get("model_alone"):
            wanted = dataclasses.replace(wanted, optimizer={})
        state = checkpoints.restore(step, wanted)
    return experiment, state.used, step


def save_trained(
    experiment: Experiment,
    params: Params,
    workdir: str | Path,
    *,
    data: str | Path | None = None,
    step: int = 0,
) -> None:
    """Writes a workdir that `load_trained` opens, of parameters without the state of a training.

    Args:
      experiment: what the parameters belong to.
      params: as `experiment.model` takes them.
      workdir: made when absent; must hold no checkpoint.
      data: where the dataset is, for scripts to find it.
      step: of the checkpoint.

    Raises:
      UserError: when the workdir holds a checkpoint, or cannot be written.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    # Nothing is averaged any more, and each parameter has the dtype that it has.
    training = dataclasses.replace(experiment.config.training, average=0.0, trained=())
    config = dataclasses.replace(experiment.config, training=training)
    saved = dataclasses.replace(experiment, config=config)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        if checkpoints.steps():
            raise UserError(f"{workdir} holds a run already. Choose another directory.")
        configs.save(config, workdir / "config.json")
        save_vocabularies(experiment.dataset, workdir)
        save_rows(with_carried(experiment.dataset, workdir), workdir)
        if data is not None:
            where = {"data": str(Path(data).absolute())}
            configs.write_whole(workdir / "run.json", json.dumps(where) + "\n")
        state = TrainState(step=jax.numpy.int32(step), params=params, optimizer={}, average={})
        meta = describe_checkpoint(saved) | {"model_alone": True, "best_step": step}
        checkpoints.save(step, state, meta, best=step)
        checkpoints.wait()


def fetch(experiment: Experiment, params: Params) -> Params:
    """Returns parameters as NumPy arrays, without the rows that make the parts of a table equal.

    With several processes, each of them calls it and gets all.
    """

    def whole(leaf: Any, shape: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)[: shape.shape[0]] if shape.ndim else np.asarray(leaf)

    return jax.tree.map(whole, params, experiment.model.shapes)


def _parameters_alone(experiment: Experiment) -> TrainState:
    """Returns shapes and places of what a trained model is used with.

    That is, no optimiser slots, and parameters only where there is no average of them; on the mesh
    of the config, or on one device where there is no such mesh.
    """
    config = experiment.config
    optimizer = experiment.optimizer(10**9)
    where: dict[str, Any] = {}
    try:
        mesh = config.mesh.build()
    except UserError:
        layout = Layout()  # trained on more devices than are here
    else:
        layout = experiment.plan(optimizer, mesh).layout
        if mesh.size > 1:
            where = {"mesh": mesh, "layout": layout}
    shapes = abstract_state(experiment.model, optimizer, **experiment.state_options, **where)

    def choose(path: Any, leaf: Any) -> Any:
        return np.empty(leaf.shape, leaf.dtype) if table_of(path) in layout.on_host else leaf

    def skip(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: SKIP, tree)

    shapes = jax.tree_util.tree_map_with_path(choose, shapes)
    averaged, rest = divide(shapes.params, flatten(shapes.average))
    return dataclasses.replace(
        shapes, params=unite(rest, skip(averaged)), optimizer=skip(shapes.optimizer)
    )


def _at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree[key]
    return tree


def _differences(path: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in [*old, *(k for k in new if k not in old)]:
            found += _differences(f"{path}.{key}", old.get(key), new.get(key))
        return found
    return [] if old == new else [(path, old, new)]
