"""The run that another one starts from: read, never written to."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import optax
import pandas as pd

from jaxrec.data.dataset import Dataset
from jaxrec.data.vocabulary import ROLES
from jaxrec.functional import functional_of
from jaxrec.paths import flatten
from jaxrec.training.checkpoints import SKIP, Checkpoints, open_checkpoint
from jaxrec.training.config import ExperimentConfig
from jaxrec.training.experiment import Experiment
from jaxrec.training.state import abstract_state
from jaxrec.training.trained import load_config
from jaxrec.training.vocabularies import load_vocabulary

_FINGERPRINTS = ("item_fingerprint", "user_fingerprint", "data_fingerprint")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint of a run, opened for reading.

    Attributes:
      workdir: the directory of the run.
      step: the checkpoint's step.
      config: the run's fitted config.
      fingerprints: of its vocabularies and dataset.
      vocabularies: by role ("user", "item"), the frames that its rows stand for.
      parameters: {path: shape and dtype} of what the run is used with, its average where it has
        one.
      slots: the same of its optimiser's state, by the names of `slot_names`.
    """

    workdir: Path
    step: int
    config: ExperimentConfig
    fingerprints: Mapping[str, str]
    vocabularies: Mapping[str, pd.DataFrame]
    parameters: Mapping[str, Any]
    slots: Mapping[str, Any]
    _structure: Any
    _numbers: Mapping[str, int]
    _checkpoints: Checkpoints

    def read(self, like: Mapping[str, Any]) -> dict[str, Any]:
        """Returns leaves by path or name, in the dtypes and places of `like`; see `Checkpoints`."""
        if not like:
            return {}
        leaves = [SKIP] * self._structure.num_leaves
        for name, leaf in like.items():
            leaves[self._numbers[name]] = leaf
        state = self._checkpoints.restore(self.step, jax.tree.unflatten(self._structure, leaves))
        read = jax.tree.leaves(state)
        return {name: read[self._numbers[name]] for name in like}


@contextlib.contextmanager
def open_source(
    workdir: str | Path, dataset: Dataset, *, step: int | None = None
) -> Iterator[Source]:
    """Opens the run in a workdir.

    Args:
      dataset: any; it stands in where an experiment has one, and is not looked at.
      step: a checkpoint's step; None takes the best one, or the newest without validation.

    Raises:
      UserError: without a checkpoint, or with vocabularies that are absent or damaged.
    """
    with open_checkpoint(workdir, step) as (checkpoints, step):
        config, meta = load_config(workdir), checkpoints.meta(step)
        experiment = Experiment(config, dataset, functional_of(config.model))
        shapes = abstract_state(
            experiment.model, experiment.optimizer(10**9), **experiment.state_options
        )
        if meta.get("model_alone"):
            shapes = dataclasses.replace(shapes, optimizer={})
        leaves, structure = jax.tree.flatten(shapes)
        numbers = jax.tree.unflatten(structure, range(len(leaves)))
        parameters = flatten(numbers.params) | flatten(numbers.average)
        slots = slot_names(numbers.optimizer)
        yield Source(
            workdir=Path(workdir),
            step=step,
            config=config,
            fingerprints={name: meta[name] for name in _FINGERPRINTS},
            vocabularies={
                role: load_vocabulary(workdir, role, meta[f"{role}_fingerprint"]) for role in ROLES
            },
            parameters={path: leaves[number] for path, number in parameters.items()},
            slots={name: leaves[number] for name, number in slots.items()},
            _structure=structure,
            _numbers=parameters | slots,
            _checkpoints=checkpoints,
        )


def slot_names(state: Any) -> dict[str, Any]:
    """Returns the leaves of an Optax state by names that do not depend on what is chained.

    A name is the path without positions in tuples, such as ".mu['items']['table']": with clipping
    in front of it, Adam is the second of a chain and its moments are the same. Counts of schedules
    are left out, since a run has a schedule of its own; so are names that come twice.
    """
    found: dict[str, Any] = {}
    twice = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_schedule):
        name = _slot_name(path)
        twice |= {name} & found.keys()
        if not _is_schedule(leaf):
            found[name] = leaf
    return {name: leaf for name, leaf in found.items() if name not in twice}


def with_slots(state: Any, slots: Mapping[str, Any]) -> Any:
    """Returns an Optax state with some leaves replaced, by the names of `slot_names`."""

    def choose(path: Any, leaf: Any) -> Any:
        return leaf if _is_schedule(leaf) else slots.get(_slot_name(path), leaf)

    return jax.tree_util.tree_map_with_path(choose, state, is_leaf=_is_schedule)


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)


def _slot_name(path: tuple[Any, ...]) -> str:
    kept = [entry for entry in path if not isinstance(entry, jax.tree_util.SequenceKey)]
    return jax.tree_util.keystr(tuple(kept))
