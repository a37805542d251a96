"""Which users and items a run has learned, or knows by other ways than their rows.

A row that no event ever trained is what it was born with: what it says of its user or item is
noise. A run remembers which rows it trained, those of the run that it started from included.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxrec.config import whole_file
from jaxrec.data.dataset import Dataset
from jaxrec.paths import flatten
from jaxrec.training.vocabularies import load_vocabulary
from jaxrec.typing import Params

if TYPE_CHECKING:
    from jaxrec.training.experiment import Experiment

ROLES = ("user", "item")


def known_rows(experiment: "Experiment", params: Params) -> dict[str, np.ndarray]:
    """Returns which users (num_users + 1,) and items (num_items + 1,) a model knows, bool.

    Those that were trained, and items of which the model was given content, such as a vector. Row
    0, padding, is neither.
    """
    dataset = experiment.dataset
    found = {role: np.array(dataset.trained[role], bool) for role in ROLES}
    leaves = flatten(params)
    for path in experiment.model.given:
        content = np.asarray(leaves[path])
        if content.ndim > 1 and len(content) >= len(found["item"]):
            found["item"] |= content[: len(found["item"])].any(axis=tuple(range(1, content.ndim)))
    for rows in found.values():
        rows[0] = False
    return found


def carry_known(source: str | Path, dataset: Dataset, workdir: str | Path) -> None:
    """Notes in a workdir which rows the run that it starts from had trained, by original id.

    Without the note of a source that is older than such notes, all of its rows count as trained.
    """
    carried = {}
    there = read_rows(source)
    for role in ROLES:
        old = load_vocabulary(source, role, "")["id"]
        trained = np.ones(len(old), bool) if there is None else there[role][1:]
        ids = set(old[trained])
        vocabulary = getattr(dataset, f"{role}_vocabulary")["id"]
        carried[role] = np.array([False, *(id in ids for id in vocabulary)])
    _write(Path(workdir) / "vocabularies" / "carried.npz", carried)


def with_carried(dataset: Dataset, workdir: str | Path) -> Dataset:
    """Returns the dataset that knows which rows were trained before, as `carry_known` noted."""
    carried = _read(Path(workdir) / "vocabularies" / "carried.npz")
    if carried is None:
        return dataset
    rows = {role: dataset.trained[role] | carried[role] for role in ROLES}
    return dataclasses.replace(dataset, trained_rows=rows)


def save_rows(dataset: Dataset, workdir: str | Path) -> None:
    """Notes in a workdir which rows its run trains, or others did before (`with_carried`)."""
    _write(Path(workdir) / "vocabularies" / "trained.npz", dataset.trained)


def read_rows(workdir: str | Path) -> Mapping[str, np.ndarray] | None:
    """Returns what `save_rows` noted; None for a workdir from before there were such notes."""
    return _read(Path(workdir) / "vocabularies" / "trained.npz")


def _write(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, user=rows["user"], item=rows["item"])


def _read(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    with np.load(path) as file:
        return {role: file[role] for role in ROLES}
