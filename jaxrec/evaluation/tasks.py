"""How well heads do their tasks on the events of a split."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrec.data.dataset import SPLITS, Dataset, split_alone
from jaxrec.evaluation.requests import Requests, requests_of
from jaxrec.typing import Array

type Outputs = Callable[[Requests, np.ndarray, np.ndarray], Mapping[str, Array]]


def task_metrics(
    tasks: Sequence[Any], outputs: Outputs, dataset: Dataset, split: str, batch_size: int
) -> dict[str, float]:
    """Returns the metric of each task, such as {"rating/rmse": 0.9}.

    Every event of the split, positive or not, counts whose user has a history before the split,
    which is what the model is shown, as when it ranks.

    Args:
      tasks: those of a `jaxrec.objectives.MultiTask`.
      outputs: maps requests, (B,) rows of them and (B,) int32 items to (B, outputs) by head; B is
        always `batch_size`, and the last batch is filled up by repeating an event.
      dataset: a prepared dataset, with labels if a task wants them.
      split: "valid" or "test".
      batch_size: events at a time.
    """
    requests = requests_of(dataset, split, labelled=True)
    events = np.flatnonzero(split_alone(dataset.split) == SPLITS[split])
    users = np.asarray(dataset.users)[events]
    events = events[np.isin(users, requests.users)]
    # Events of users with histories of like length share a batch, as they make short rows.
    rows = np.searchsorted(requests.users, np.asarray(dataset.users)[events])
    order = np.argsort(requests.history_lengths[rows], kind="stable")
    events, rows = events[order], rows[order]
    items = np.asarray(dataset.items)[events]
    found: dict[str, list[np.ndarray]] = {task.head: [] for task in tasks}
    for start in range(0, len(events), batch_size):
        places = np.arange(start, start + batch_size).clip(max=len(events) - 1)
        for head, values in outputs(requests, rows[places], items[places]).items():
            found[head].append(np.asarray(values))
    measured = {}
    for task in tasks:
        by_item = task.targets(dataset)
        targets = np.asarray(dataset.labels)[events] if by_item is None else by_item[items]
        values = np.concatenate(found[task.head])[: len(events)]
        measured[f"{task.head}/{task.metric}"] = task.measure(values, targets)
    return measured
