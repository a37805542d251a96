"""A teacher's labels for every training event, written to disk before the student is trained."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrec import config as configs
from jaxrec.data.batches import fields_read
from jaxrec.data.dataset import Dataset, fingerprint
from jaxrec.data.taught import files_of, read_about
from jaxrec.data.training_events import TrainingEvents, training_events
from jaxrec.evaluation import Requests, RetrieverRecommender
from jaxrec.training import load_trained
from jaxrec.typing import UserError

FORMAT = 1
_NAMES = ("items", "scores")
_LOWEST = float(np.finfo(np.float16).min)


def write_labels(
    workdir: str | Path,
    dataset: Dataset,
    output: str | Path,
    *,
    k: int = 50,
    step: int | None = None,
    shard_events: int = 1 << 16,
    quiet: bool = False,
) -> None:
    """Writes what a trained run recommends before each training event; see `jaxrec.data.taught`.

    The teacher is asked as it is in evaluation: for the items after the training events before the
    event at hand, or, when it knows users, for the user's items. Items seen before are not masked.
    An event with nothing before it gets no labels from a teacher that reads histories. A label
    takes 6 bytes, 6 * k for an event.

    What was cut off goes on where it stopped when it is called again.

    Args:
      workdir: the teacher's run.
      dataset: the student's dataset, of the teacher's vocabularies.
      output: directory of the labels, beside the workdir for example; made when absent.
      k: items for an event.
      step: a checkpoint's step; None takes the best one.
      shard_events: events of a file.
      quiet: no progress on stderr.

    Raises:
      UserError: without such a run, or when the directory holds other labels than these.
    """
    output = Path(output)
    if k < 2 or shard_events < 1:
        raise UserError(f"labels want k of at least 2 and files with events; got k={k}.")
    experiment, params, step = load_trained(workdir, dataset, step=step)
    events = training_events(dataset)
    about: dict[str, Any] = {
        "format": FORMAT,
        "dataset": dataset.manifest.fingerprint,
        "items": dataset.manifest.item_fingerprint,
        "teacher": fingerprint(*(np.asarray(leaf) for leaf in jax.tree.leaves(params))),
        "workdir": str(Path(workdir).absolute()),
        "step": step,
        "num_labels": min(k, dataset.num_items),
        "num_events": len(events.items),
        "shard_events": shard_events,
    }
    _begin(output, about)
    recommender = experiment.recommender(params)
    kind: dict[str, Any] = {
        "num_items": dataset.num_items,
        "max_len": experiment.config.data.max_len,
        "reads_history": "history" in fields_read(experiment.config.data),
    }
    files = [files_of(output, name, len(events.items), shard_events) for name in _NAMES]
    for number, pair in enumerate(zip(*files, strict=True)):
        if not all(file.exists() for file in pair):
            first = number * shard_events
            shard = np.arange(first, min(first + shard_events, len(events.items)))
            found = _label(shard, events, recommender, about["num_labels"], **kind)
            for file, array in zip(pair, found, strict=True):
                configs.write_array(file, array)
        if not quiet:
            print(f"labels: {number + 1:,} of {len(files[0]):,} files", file=sys.stderr, flush=True)


def _begin(output: Path, about: dict[str, object]) -> None:
    """Makes the directory, or sees that what is there is part of the same labels."""
    there = read_about(output)
    if there is None:
        output.mkdir(parents=True, exist_ok=True)
        configs.write_whole(output / "labels.json", json.dumps(about, indent=2) + "\n")
        return
    for key, value in about.items():
        if key != "workdir" and there.get(key) != value:
            raise UserError(
                f"{output} holds labels with {key}={there.get(key)!r} and these would have "
                f"{key}={value!r}. Choose another --output, or remove that directory."
            )


def _label(
    shard: np.ndarray,
    events: TrainingEvents,
    recommender: RetrieverRecommender,
    k: int,
    *,
    num_items: int,
    max_len: int,
    reads_history: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n, k) items and scores of the events of one file."""
    items, scores = np.zeros((len(shard), k), np.int32), np.zeros((len(shard), k), np.float16)
    users = np.searchsorted(events.starts, shard, side="right") - 1
    before = shard - events.starts[users]
    rows = np.flatnonzero((before >= int(reads_history)) & (before < events.counts[users]))
    if not len(rows):
        return items, scores
    lengths = np.minimum(before[rows], max_len)
    ends = np.cumsum(lengths)
    # The events before each one, side by side.
    order = np.repeat(shard[rows] - ends, lengths) + np.arange(ends[-1])
    history = events.items_at(order) if len(order) else np.zeros(1, np.int32)
    requests = Requests(
        users=users[rows].astype(np.int32),
        history_items=history,
        history_offsets=np.concatenate([[0], ends]).astype(np.int64),
        target_items=np.zeros(0, np.int32),
        target_offsets=np.zeros(len(rows) + 1, np.int64),
        num_items=num_items,
    )
    values, ids = recommender.rank(requests, k, mask_seen=False)
    items[rows] = ids
    # Less the best, so that float16 has its digits where they matter.
    scores[rows] = np.where(ids > 0, (values - values[:, :1]).clip(_LOWEST), 0)
    return items, scores
