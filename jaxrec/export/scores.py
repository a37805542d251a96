"""What a score of an exported model is: which training made it, and so what it may be read as.

A run with an objective over items exports the products of user and item vectors, which that
objective trained. A run of heads alone trained no ranking of items: what it exports is a head. One
output of a head that sees items is itself a product, of vectors of one more column (`of_head`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.functional import Functional
from jaxrec.objectives import (
    BCE,
    BPR,
    FullSoftmax,
    InBatchSoftmax,
    MultiTask,
    SampledSoftmax,
    SquaredError,
)
from jaxrec.objectives.tasks import Click, Rating
from jaxrec.typing import Array, Batch, UserError

_SOFTMAX = "a logit of a softmax over the items: only differences mean something, as log odds"
OBJECTIVES: Mapping[type, str] = {
    FullSoftmax: _SOFTMAX,
    SampledSoftmax: _SOFTMAX,
    InBatchSoftmax: _SOFTMAX,
    BCE: "a logit against negatives that were drawn: no probability of a click without calibration",
    BPR: "a preference: the difference of two scores is the log odds that one item goes before "
    "the other",
    SquaredError: "the label that is predicted, such as a rating, in the units of the log",
}
TASKS: Mapping[type, str] = {
    Rating: "the label that is predicted, such as a rating, in the units of the log",
    Click: "the logit of the probability that the label reaches {threshold:g}",
}


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What the programs of a run compute.

    Attributes:
      model: a retriever whose products are the scores.
      objective: name of what trained them, such as "BPR" or "Click".
      head: the head that they are the output of; None for products of the model's own vectors.
      means: what a score is, as part of a sentence.
      left: heads of the run that no program computes.
    """

    model: Functional
    objective: str
    head: str | None
    means: str
    left: tuple[str, ...] = ()

    @property
    def told(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"objective": self.objective, "head": self.head, "means": self.means}


def scoring_of(model: Functional, config: Any, head: str | None = None) -> Scoring:
    """Returns what a run exports.

    Args:
      model: the run's model.
      config: the run's, an `ExperimentConfig`.
      head: the head whose output is wanted as the score; None takes the ranking that an objective
        trained, or else the only head that scores items.

    Raises:
      UserError: when no ranking of items was trained, or the head is none that scores items.
    """
    objective, taught = _inner(config.objective)
    tasks = {task.head: task for task in getattr(objective, "tasks", ())}
    fit = [name for name, task in tasks.items() if task.sees_item and type(task) in TASKS]
    if head is None and isinstance(objective, MultiTask):
        if objective.objective is not None:
            found = _of_items(model, config, objective.objective, taught)
            return dataclasses.replace(found, left=tuple(tasks))
        if len(fit) != 1:
            raise UserError(
                f"this run trained the heads {', '.join(tasks)} and no ranking of items, so its "
                "products of vectors mean nothing. "
                + (
                    f"Say which head is to be the score: --head={fit[0]}."
                    if fit
                    else "Train it with an objective beside the tasks, as in "
                    "MultiTask(objective=FullSoftmax(), ...), to export it."
                )
            )
        head = fit[0]
    if head is None:
        return _of_items(model, config, objective, taught)
    if head not in fit:
        there = f"there are: {', '.join(fit)}" if fit else "this run has none"
        raise UserError(f"no head {head!r} was trained to score items; {there}.")
    task = tasks[head]
    means = TASKS[type(task)].format(**{"threshold": getattr(task, "threshold", 0.0)})
    left = tuple(name for name in tasks if name != head)
    return Scoring(of_head(model, head), type(task).__name__, head, means, left)


def of_head(model: Functional, head: str) -> Functional:
    """Returns a retriever whose products are the output of a linear head that sees items.

    The head gives a.u + b.i + c.(u * i) + d for a user's and an item's vectors u and i, which is
    the product of (b + c * u, a.u + d) with (i, 1).
    """
    return model._replace(bind=lambda params, key=None: _AsScore(model.bind(params, key), head))


class _AsScore:
    """A bound model with the vectors of a head. Everything else is the model's."""

    def __init__(self, module: Any, head: str) -> None:
        self._module, self._head = module, module.heads[head]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def user_vectors(self, batch: Batch, *, key: Any = None) -> jax.Array:
        """Returns (..., dim + 1) float32."""
        users = self._module.user_vectors(batch, key=key).astype(jnp.float32)
        of_user, of_item, of_both = jnp.split(self._head.kernel[...][:, 0], 3)
        of_user, of_item, of_both = (_like(x, users) for x in (of_user, of_item, of_both))
        own = jnp.sum(users * of_user, axis=-1, keepdims=True) + self._head.bias[...][0]
        return jnp.concatenate([of_item + users * of_both, own], axis=-1)

    def item_vectors(self, ids: Array | None = None) -> jax.Array:
        """Returns ids.shape + (dim + 1,) float32."""
        items = self._module.item_vectors(ids).astype(jnp.float32)
        return jnp.concatenate([items, jnp.ones_like(items[..., :1])], axis=-1)


def _like(row: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.broadcast_to(row.reshape((1,) * (rows.ndim - 1) + (-1,)), rows.shape)


def _inner(objective: Any) -> tuple[Any, str]:
    """Returns the objective inside of what teaches it, and what that is called."""
    if isinstance(objective, MultiTask) or not hasattr(objective, "objective"):
        return objective, ""
    return objective.objective, type(objective).__name__


def _of_items(model: Functional, config: Any, objective: Any, taught: str) -> Scoring:
    name = type(objective).__name__
    means = OBJECTIVES.get(type(objective), f"what {name} trains: higher is better")
    temperature = _temperature(config.model)
    if temperature:
        means = f"the cosine of user and item, divided by {temperature:g}; {means}"
    if taught:
        means += f", as far as {taught} leaves it"
    return Scoring(model, name, None, means)


def _temperature(config: Any) -> float:
    """Returns what cosines are divided by in a model or the one inside of it, 0 without."""
    found = getattr(config, "temperature", None)
    if found is None and hasattr(config, "model"):
        return _temperature(config.model)
    return float(found or 0.0)
