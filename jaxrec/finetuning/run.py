"""Fine-tuning as a run: started from another one, resumable, and refused when it did harm."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec import config as configs
from jaxrec.data import Dataset, Replay, open_dataset, prepare
from jaxrec.data.dataset import SPLITS
from jaxrec.data.files import find_files
from jaxrec.data.vocabulary import path_in_workdir
from jaxrec.finetuning.comparison import compare, measure
from jaxrec.finetuning.growth import Grown, Growth, Report, grow
from jaxrec.finetuning.lora import LoRA, save_adapter
from jaxrec.finetuning.source import open_source
from jaxrec.training.config import ExperimentConfig
from jaxrec.training.experiment import Experiment
from jaxrec.training.known import carry_known
from jaxrec.training.loop import train
from jaxrec.training.processes import is_first, meet
from jaxrec.training.state import TrainState, init_state
from jaxrec.training.trained import fetch, load_config, load_trained, save_trained
from jaxrec.typing import UserError

_COUNTS = ("num_items", "num_users")


def finetune(
    source: str | Path,
    data: Dataset | str | Path,
    workdir: str | Path,
    *,
    config: ExperimentConfig | None = None,
    step: int | None = None,
    growth: Growth | None = None,
    replay: float | None = None,
    accept_worse: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains a run that starts from the checkpoint of another one; see `jaxrec.training.train`.

    Beside what `train` leaves there, the workdir gets source.json (where it came from: source,
    step, fingerprints, options, what was taken) and comparison.json: the model before and after
    training on the same requests of the dataset, of its test split or else of the validation one.
    A `LoRA` model leaves adapter.npz as well, for `load_adapter`.
    A run that was killed goes on from its own checkpoints with the same call.

    Args:
      source: the workdir of a run. It is only read.
      data: a dataset, or the directory of one, with whatever users and items.
      workdir: made when absent; another one than the source's.
      config: the experiment; None takes the source's own, with the counts of the dataset.
      step: a checkpoint of the source; None takes the best one, or the newest without validation.
      growth: what new rows start with; see `Growth`.
      replay: None trains on all events; a number in [0, 1] on those that are new since the source
        and this fraction of the old ones in each epoch. See `jaxrec.data.Replay`.
      accept_worse: whether a model that is significantly worse than the source is no error.

    Returns:
      What `train` returns, and the "comparison", when there is something to compare on.

    Raises:
      UserError: as `train` and `grow`; for a replay when the dataset does not descend from the
        source's; when the trained model is significantly worse than the source. What was trained
        stays in the workdir.
      Stopped: after SIGTERM, once the state is saved.
    """
    source, workdir, growth = Path(source), Path(workdir), growth or Growth()
    if workdir.absolute() == source.absolute():
        raise UserError(f"the run in {source} cannot be its own source. Choose another --workdir.")
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    begun = _begun(workdir)
    with open_source(source, dataset, step=begun.get("step") if step is None else step) as opened:
        origin: dict[str, Any] = {
            "source": str(source.absolute()),
            "step": opened.step,
            "fingerprints": dict(opened.fingerprints),
            "growth": configs.to_dict(growth),
        }
    _check_origin(workdir, begun, origin)
    config = source_config(source) if config is None else config
    if replay is not None:
        config = _replayed(config, replay, source, origin["fingerprints"], dataset)
    split, kept = _split(dataset), workdir / "before.npy"
    experiment = Experiment.of(config, dataset)

    def growing(born: TrainState) -> Grown:
        with open_source(source, dataset, step=origin["step"]) as opened:
            return grow(opened, experiment, born, growth)

    def start(born: TrainState) -> TrainState:
        grown = growing(born)
        if is_first():
            taken = dataclasses.asdict(grown.report)
            text = json.dumps(origin | {"taken": taken}, indent=2) + "\n"
            configs.write_whole(workdir / "source.json", text)
            if not quiet:
                print(f"from {source}, step {origin['step']:,}:\n{grown.report}", flush=True)
        if split is not None:
            _keep(kept, measure(experiment, grown.state.used, split))
        return grown.state

    if is_first():
        carry_known(source, dataset, workdir)
    result = train(config, data, workdir, start=start, quiet=quiet)
    if isinstance(experiment.config.model, LoRA):
        _save_adapter(workdir, dataset)
    if split is None:
        return result
    before = _kept(kept)
    if before is None:  # removed or damaged since; the source is as it was
        before = measure(experiment, growing(_born(experiment)).state.used, split)
        _keep(kept, before)
    experiment, params, _ = load_trained(workdir, dataset)
    compared = compare(split, before, measure(experiment, params, split))
    found = dataclasses.asdict(compared) | {"is_worse": compared.is_worse}
    if is_first():
        configs.write_whole(workdir / "comparison.json", json.dumps(found, indent=2) + "\n")
    if compared.is_worse and not accept_worse:
        raise UserError(
            f"the fine-tuned model is significantly worse than its source: {compared}. It is in "
            f"{workdir}; keep the source in use, train in another --workdir with a lower "
            "config.optimizer.learning_rate or more --replay, or say --accept_worse."
        )
    return result | {"comparison": found}


def grow_run(
    source: str | Path,
    data: Dataset | str | Path,
    workdir: str | Path,
    *,
    step: int | None = None,
    growth: Growth | None = None,
) -> Report:
    """Writes a run with the model of another one in a dataset's catalogue, not trained further.

    For what wants the old model with the new vocabularies: a teacher of the fine-tuned model, or a
    model to serve until that is ready. It lies on one device.

    Args:
      source: the workdir of a run. It is only read.
      data: a dataset, or the directory of one, with whatever users and items.
      workdir: made when absent; `load_trained` opens it. It must hold no run.
      step: a checkpoint of the source; None takes the best one, or the newest without validation.
      growth: what new rows start with; see `Growth`.

    Returns:
      What was taken from the source.

    Raises:
      UserError: as `grow` and `save_trained`.
    """
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    config = source_config(source)
    experiment = Experiment.of(config, dataset)
    options = experiment.state_options
    born = init_state(
        experiment.model, experiment.optimizer(10**9), config.training.seed, **options
    )
    with open_source(source, dataset, step=step) as opened:
        grown = grow(opened, experiment, born, growth)
        step = opened.step
    where = None if isinstance(data, Dataset) else data
    carry_known(source, dataset, workdir)
    save_trained(experiment, grown.state.used, workdir, data=where, step=step)
    return grown.report


def source_config(source: str | Path) -> ExperimentConfig:
    """Returns the config of a run as another dataset wants it: counts unset, without its replay."""
    config = load_config(source)
    data = _without_replay(config.data)
    return dataclasses.replace(config, data=data, model=_without_counts(config.model))


def append_once(files: Sequence[str | Path], data: str | Path) -> list[Path]:
    """Appends the events of files to a dataset, but of those that were appended already.

    So a command that was cut off can be given again. A file is known by its bytes. Of several
    processes that call it, the first one appends and the others wait.

    Args:
      files: files, globs or directories, as `prepare` takes.
      data: directory of the dataset.

    Returns:
      The files that were appended.

    Raises:
      UserError: as `prepare` with `append`.
    """
    lineage = open_dataset(data).manifest.lineage
    there = {given["sha256"] for step in lineage for given in step["sources"]}
    new = [path for path in find_files(list(files)) if _digest(path) not in there]
    meet("before the append")  # all have read the manifest
    if new and is_first():
        prepare(new, data, append=True)
    meet("after the append")
    return new


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_counts(config: Any) -> Any:
    """Returns a model's config, and those inside of it, with counts that the dataset fills in."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    changes = {
        name: 0 if name in _COUNTS else _without_counts(value) for name, value in values.items()
    }
    return dataclasses.replace(config, **changes)


def _without_replay(data: Any) -> Any:
    """Returns a data config without a `Replay`, wherever it is among those around others."""
    if isinstance(data, Replay):
        return data.data
    if hasattr(data, "data"):
        return dataclasses.replace(data, data=_without_replay(data.data))
    return data


def _replayed(
    config: ExperimentConfig,
    fraction: float,
    source: Path,
    fingerprints: Mapping[str, str],
    dataset: Dataset,
) -> ExperimentConfig:
    manifest, past = dataset.manifest, fingerprints["data_fingerprint"]
    if past not in [manifest.fingerprint, *(step["parent"] for step in manifest.lineage)]:
        raise UserError(
            f"--replay wants a dataset that was made by appending to the one that {source} "
            f"was trained on (fingerprint {past[:12]}), to know which events are new; this one was "
            "not. Append with --append or scripts/prepare.py --append, or leave --replay out."
        )
    inner = _without_replay(config.data)
    since = str(path_in_workdir(source, "user").absolute())
    return dataclasses.replace(config, data=Replay(data=inner, since=since, fraction=fraction))


def _split(dataset: Dataset) -> str | None:
    """Returns what to compare on: "test", or else "valid"; None without either."""
    counts = np.bincount(dataset.split, minlength=len(SPLITS))
    return next((name for name in ("test", "valid") if counts[SPLITS[name]]), None)


def _born(experiment: Experiment) -> TrainState:
    """Returns the state that `train` would begin with, but for an optimiser of unknown length."""
    optimizer, mesh = experiment.optimizer(10**9), experiment.config.mesh.build()
    return experiment.born(optimizer, mesh, experiment.plan(optimizer, mesh).layout)


def _save_adapter(workdir: Path, dataset: Dataset) -> None:
    """Writes what was trained of an adapted model beside its checkpoints."""
    experiment, params, _ = load_trained(workdir, dataset)
    whole = fetch(experiment, params)
    if is_first():
        save_adapter(workdir / "adapter.npz", experiment.config.model, whole)


def _keep(path: Path, measured: np.ndarray) -> None:
    if is_first():
        configs.write_array(path, measured)


def _kept(path: Path) -> np.ndarray | None:
    """Returns what `_keep` wrote; None when it is not there, or damaged."""
    try:
        return np.asarray(np.load(path))
    except (FileNotFoundError, EOFError, ValueError):
        return None


def _begun(workdir: Path) -> dict[str, Any]:
    """Returns where the run in a workdir came from; empty when none has begun."""
    path = workdir / "source.json"
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged. Choose another --workdir.") from None


def _check_origin(workdir: Path, begun: dict[str, Any], origin: dict[str, Any]) -> None:
    directory = workdir / "checkpoints"
    if not (directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())):
        return  # cut off before its first checkpoint, or new: it starts from the source
    if not begun:
        raise UserError(
            f"{workdir} holds a run that was not started from another one. Choose another "
            "--workdir."
        )
    for name, value in origin.items():
        if begun.get(name) != value:
            raise UserError(
                f"the run in {workdir} was started with {name}={begun.get(name)!r}, and now "
                f"{name}={value!r} is asked for. Choose another --workdir."
            )
