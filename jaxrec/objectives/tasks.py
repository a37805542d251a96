"""Objectives of heads: the category of the next item, its rating, whether it is liked, or all."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import metrics
from jaxrec.data.dataset import Dataset
from jaxrec.objectives.base import ALONE, Replica, Statistics, features_of, weights_of
from jaxrec.ops.keys import Key
from jaxrec.typing import Batch, UserError


class Task(Protocol):
    """What a head learns; implementations are frozen dataclasses in configs."""

    @property
    def head(self) -> str: ...

    @property
    def weight(self) -> float: ...

    @property
    def sees_item(self) -> bool: ...

    def targets(self, dataset: Dataset) -> np.ndarray | None:
        """Returns (num_items + 1,) what is to be said of each item; None for labels of events."""
        ...

    def losses(self, outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the loss of each (..., outputs) with its target (...), and where there is one."""
        ...

    @property
    def metric(self) -> str:
        """Name of what `measure` returns."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Whether larger values of the metric are better."""
        ...

    def measure(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """Returns the metric of (N, outputs) with (N,) targets."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Category:
    """Which class the next item is of: softmax cross entropy, measured by accuracy.

    Attributes:
      head: name of the head; it wants as many outputs as there are classes and sees no items.
      column: of the item metadata. Of several values in a cell, as in "Comedy|Drama", the first
        counts; items without a value take no part.
      weight: of the loss beside others, above 0.
    """

    head: str = "category"
    column: str = "genres"
    weight: float = 1.0

    @property
    def sees_item(self) -> bool:
        return False

    def classes(self, dataset: Dataset) -> tuple[np.ndarray, list[str]]:
        """Returns (num_items + 1,) int32 classes from 0, -1 where there is none, and their names.

        Raises:
          UserError: when the dataset has no such column.
        """
        there = [str(name) for name in dataset.item_vocabulary if name != "id"]
        if self.column not in there:
            raise UserError(
                f"there is no item metadata {self.column!r}; there is: {', '.join(there) or 'none'}"
                ". Prepare the dataset with --items=FILE, or choose another column."
            )
        values = dataset.item_vocabulary[self.column]
        first = values.astype("str").str.partition("|")[0].where(values.notna())
        names = sorted(set(first.dropna()) - {""})
        number = {name: index for index, name in enumerate(names)}
        classes = first.map(number).fillna(-1).to_numpy(np.int32)
        return np.concatenate([np.full(1, -1, np.int32), classes]), names

    def targets(self, dataset: Dataset) -> np.ndarray | None:
        return self.classes(dataset)[0]

    def losses(self, outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = optax.softmax_cross_entropy_with_integer_labels(outputs, targets.clip(0))
        return values, targets >= 0

    @property
    def metric(self) -> str:
        return "accuracy"

    @property
    def higher_is_better(self) -> bool:
        return True

    def measure(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        known = targets >= 0
        right = outputs.argmax(axis=-1) == targets
        return float(metrics.mean(right, where=known))


class _OfLabels:
    """A task about the label of an event, which a user and an item decide together."""

    @property
    def sees_item(self) -> bool:
        return True

    def targets(self, dataset: Dataset) -> np.ndarray | None:
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rating(_OfLabels):
    """The label of the next event, such as a rating: squared error, measured by RMSE.

    Attributes:
      head: name of the head; it wants 1 output and sees items.
      weight: of the loss beside others, above 0.
    """

    head: str = "rating"
    weight: float = 1.0

    def losses(self, outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.square(outputs[..., 0] - targets), jnp.ones(targets.shape, bool)

    @property
    def metric(self) -> str:
        return "rmse"

    @property
    def higher_is_better(self) -> bool:
        return False

    def measure(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        return float(metrics.rmse(outputs[..., 0], targets))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Click(_OfLabels):
    """Whether the next event's label reaches a threshold: logistic loss, measured by AUC.

    Attributes:
      head: name of the head; it wants 1 output and sees items.
      threshold: labels from it on are clicks.
      weight: of the loss beside others, above 0.
    """

    head: str = "click"
    threshold: float = 1.0
    weight: float = 1.0

    def losses(self, outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        clicks = (targets >= self.threshold).astype(jnp.float32)
        values = optax.sigmoid_binary_cross_entropy(outputs[..., 0], clicks)
        return values, jnp.ones(targets.shape, bool)

    @property
    def metric(self) -> str:
        return "auc"

    @property
    def higher_is_better(self) -> bool:
        return True

    def measure(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        return float(metrics.auc(outputs[..., 0], targets >= self.threshold))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiTask:
    """Tasks of a model's heads, alone or beside an objective over items.

    The loss of an example is that of the objective plus the weighted losses of the tasks that have
    a target there.

    Attributes:
      tasks: at least one; each trains the head of its name (`jaxrec.models.heads.WithHeads`).
      objective: such as `FullSoftmax()`; None trains the tasks alone.
    """

    tasks: tuple[Any, ...]
    objective: Any = None

    def __post_init__(self) -> None:
        names = [task.head for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise UserError(f"objective.tasks want at least one, of different heads; got {names}.")
        if getattr(self.objective, "tasks", ()):
            raise UserError(
                f"MultiTask of a {type(self.objective).__name__} with tasks of its own: name all "
                "tasks in one MultiTask, and put a Distillation around that."
            )
        if min(task.weight for task in self.tasks) <= 0:
            raise UserError("the weight of a task must be above 0; leave it out instead.")

    @property
    def whole_catalogue(self) -> bool:
        return self.objective is not None and bool(self.objective.whole_catalogue)

    def statistics(self, dataset: Dataset) -> dict[str, Any]:
        targets = {task.head: task.targets(dataset) for task in self.tasks}
        labels = [task.head for task in self.tasks if targets[task.head] is None]
        if labels and dataset.labels is None:
            raise UserError(
                f"the tasks {', '.join(labels)} want labels and the dataset has none. Prepare it "
                "with --label_column=NAME."
            )
        inner: Statistics = self.objective.statistics(dataset) if self.objective else {}
        kept = {head: array for head, array in targets.items() if array is not None}
        return {"objective": inner, "targets": kept}

    def draw(self, batch: Batch, statistics: Any, key: Key) -> Batch:
        drawn: Batch = batch
        if self.objective is not None:
            drawn = self.objective.draw(batch, statistics["objective"], key)
        told = {
            _feature(head): targets[batch.positives]
            for head, targets in statistics["targets"].items()
        }
        if len(told) < len(self.tasks) and batch.labels is None:
            raise UserError(
                "some task wants labels and the batches carry none. Set config.data.labels=true."
            )
        return drawn.replace(features=features_of(drawn) | told)

    def loss(
        self, model: Any, batch: Batch, key: Key | None, replica: Replica = ALONE
    ) -> tuple[jax.Array, jax.Array]:
        weights, told = weights_of(batch, labelled=True), features_of(batch)
        total = jnp.float32(0)
        if self.objective is not None:
            # The user vectors of both are one computation once compiled.
            total, _ = self.objective.loss(model, batch, key, replica)
        users = model.user_vectors(batch, key=key)
        for task in self.tasks:
            items = model.item_vectors(batch.positives) if task.sees_item else None
            outputs = head_outputs(model, task.head, users, items)
            values, where = task.losses(outputs, told.get(_feature(task.head), batch.labels))
            counted = where & (weights > 0)
            total += task.weight * jnp.sum(jnp.where(counted, values, 0) * weights)
        return total, jnp.sum(weights)


def head_outputs(
    model: Any, name: str, users: jax.Array, items: jax.Array | None = None
) -> jax.Array:
    """Returns (..., outputs) float32 of a head for user vectors (..., D).

    A head that sees items gets both vectors and their product by element.

    Args:
      model: a module with `heads`, such as that of `jaxrec.models.heads.WithHeads`.
      name: the head's.
      users: (..., D).
      items: (..., D) for a head that sees items, None for others.

    Raises:
      UserError: when the model has no such head.
    """
    there = dict(getattr(model, "heads", {}))
    if name not in there:
        raise UserError(
            f"the objective trains a head {name!r} and the model has {', '.join(there) or 'none'}. "
            "Wrap the model's config: WithHeads(model=..., heads=(Head(name=...),))."
        )
    inputs = users if items is None else jnp.concatenate([users, items, users * items], axis=-1)
    outputs: jax.Array = there[name](inputs.astype(jnp.float32))
    return outputs


def _feature(head: str) -> str:
    return f"targets_of_{head}"
