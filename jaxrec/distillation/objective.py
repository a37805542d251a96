"""An objective and a teacher: what is minimised is partly to agree with another model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import losses
from jaxrec.data.dataset import Dataset
from jaxrec.data.taught import ITEMS, SCORES
from jaxrec.distillation.teacher import teacher_model, teacher_params
from jaxrec.objectives import ALONE, Replica
from jaxrec.objectives.base import features_of, weighted_sum, weights_of
from jaxrec.ops.cross_entropy import catalogue_divergence
from jaxrec.ops.keys import Key, RowKey, Stream, row_bits, stream
from jaxrec.ops.topk import DEFAULT_CHUNK, top_k_dot
from jaxrec.sampling import sample_uniform
from jaxrec.typing import Array, Batch, UserError

_SCORES, _LEAST_CHUNK = 2**25, 1024  # of a teacher that exist at a time, and items among them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """(1 - weight) * objective + weight * divergence from a teacher's soft labels.

    The teacher is a trained run of any model with the same items, larger, smaller or the run that
    training starts from (against forgetting, arXiv 1606.09282). It is asked at every target for its
    best items and, perhaps, for its scores of items at random; the student's scores of these
    candidates are compared with the teacher's (`jaxrec.losses.soft_labels`; arXiv 1503.02531, and
    for the best of a ranking alone arXiv 1809.07428, whose loss is another). With neither, scores
    of the whole catalogue are compared (`jaxrec.ops.catalogue_divergence`), which says most of what
    the teacher knows and costs as much as the full softmax.

    With `teacher` it runs in each step without gradients, whole on every device, on the batch that
    the student sees. So it must be of the student's kind of data: what knows a user by a row of a
    table teaches such models. Without `teacher` the labels come with the batches, from files
    (`jaxrec.data.Taught`), and any model may teach any other. Files hold what the teacher says in
    evaluation, and in a step it is shown the windows and positions of training; the two are the
    same with `targets="last"` and the same `max_len`.

    Attributes:
      objective: the objective that is learned beside the teacher, such as `FullSoftmax()`.
      teacher: workdir of the teacher's run; empty takes labels from the batches.
      weight: of the soft labels, in [0, 1].
      temperature: T of both distributions, above 0.
      top_k: how many of the teacher's best items are candidates.
      num_samples: how many items drawn at random for each target are candidates as well. Both 0
        compare the whole catalogue, beside an objective that does so too; the teacher's item
        vectors are then in memory once for each part that a batch is computed in.
      augment: probability that an item of a history is replaced by the one before it, for student
        and teacher alike, in [0, 1). So the student learns the teacher's answers to more questions
        than the log asks (arXiv 2106.05237).
      match_hidden: weight of `jaxrec.losses.relational_distance` (arXiv 1904.05068) among user
        vectors, one for each row of a batch, at its last target. As with the in-batch softmax, the
        pairs of a batch that is computed in parts are those inside a part.
    """

    objective: Any
    teacher: str = ""
    weight: float = 0.5
    temperature: float = 1.0
    top_k: int = 50
    num_samples: int = 0
    augment: float = 0.0
    match_hidden: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.objective, Distillation):
            raise UserError("Distillation of a Distillation: a student has one teacher.")
        if isinstance(getattr(self.objective, "objective", None), Distillation):
            raise UserError(
                f"Distillation of a {type(self.objective).__name__} of a Distillation: a student "
                "has one teacher. Leave the inner Distillation out."
            )
        if not 0 <= self.weight <= 1 or self.match_hidden < 0 or self.temperature <= 0:
            raise UserError(
                "objective.weight must be in [0, 1], objective.match_hidden at least 0 and "
                f"objective.temperature above 0; got {self.weight}, {self.match_hidden} and "
                f"{self.temperature}."
            )
        if min(self.top_k, self.num_samples) < 0 or self.top_k + self.num_samples == 1:
            raise UserError(
                "objective.top_k and objective.num_samples must not be negative and be at least 2 "
                "together, or both 0 for the whole catalogue; got "
                f"{self.top_k} and {self.num_samples}."
            )
        if not 0 <= self.augment < 1:
            raise UserError(f"objective.augment must be in [0, 1); got {self.augment}.")
        asking = self.num_samples or self.match_hidden or self.augment or not self.top_k
        if not self.teacher and asking:
            raise UserError(
                "labels from files hold the teacher's best items alone, for histories as they are, "
                "so objective.num_samples, objective.match_hidden, objective.augment and "
                "objective.top_k=0 want the teacher itself: set objective.teacher=WORKDIR."
            )
        if self._compares_all and not self.whole_catalogue:
            raise UserError(
                "objective.top_k=0 and objective.num_samples=0 compare the whole catalogue, which "
                f"{type(self.objective).__name__} does not look at. Take FullSoftmax, or "
                "candidates: objective.top_k=50."
            )

    @property
    def whole_catalogue(self) -> bool:
        return bool(self.objective.whole_catalogue)

    @property
    def tasks(self) -> tuple[Any, ...]:
        """The tasks of the objective inside, which are measured as they are without a teacher."""
        return tuple(getattr(self.objective, "tasks", ()))

    @property
    def _compares_all(self) -> bool:
        return self.weight > 0 and self.top_k + self.num_samples == 0

    @property
    def _teaches(self) -> bool:
        return self.weight > 0 or self.match_hidden > 0

    def statistics(self, dataset: Dataset) -> dict[str, Any]:
        found = {"objective": self.objective.statistics(dataset)}
        if self._teaches and self.teacher:
            found["teacher"] = teacher_params(self.teacher, dataset)
        return found

    def draw(self, batch: Batch, statistics: Any, key: Key) -> Batch:
        if self._teaches and self.augment:
            batch = self._augmented(batch, RowKey.of(key))
        drawn: Batch = self.objective.draw(batch, statistics["objective"], key)
        if not self._teaches:
            return drawn
        if self.teacher:
            return self._ask(batch, drawn, statistics["teacher"], RowKey.of(key))
        items, scores = self._read(features_of(batch))
        return drawn.replace(
            candidates=items, features=features_of(drawn) | {"teacher_scores": scores}
        )

    def _augmented(self, batch: Batch, key: RowKey) -> Batch:
        if batch.history is None:
            return batch
        history = jnp.asarray(batch.history)
        segments = (history > 0).astype(jnp.int32) if batch.segments is None else batch.segments

        def before(ids: Array) -> jax.Array:
            return jnp.pad(ids[:, :-1], [(0, 0), (1, 0)])

        bits = row_bits(stream(key, Stream.AUGMENTATION), history.shape)
        drawn = bits < jnp.uint32(min(round(self.augment * 2**32), 2**32 - 1))
        # Padding has segment 0, and what lies before a sequence is of another segment.
        drawn &= (before(segments) == segments) & (segments > 0)
        return batch.replace(history=jnp.where(drawn, before(history), history))

    def _ask(self, batch: Batch, drawn: Batch, params: Any, key: RowKey) -> Batch:
        model, fields = teacher_model(self.teacher)
        missing = sorted(name for name in fields if getattr(batch, name) is None)
        if missing:
            raise UserError(
                f"the teacher {self.teacher} recommends from {' and '.join(sorted(fields))}, and "
                f"the student's batches have no {' and '.join(missing)}. Write the teacher's labels"
                " with scripts/teach.py, wrap the data config in jaxrec.data.Taught, and leave "
                "objective.teacher empty."
            )
        teacher = model.bind(params)
        users, shape = teacher.user_vectors(batch), batch.positives.shape
        candidates, scores = [], []
        if self.top_k:
            catalogue = teacher.item_vectors()
            k = min(self.top_k, catalogue.shape[0] - 1)
            every = users.reshape(-1, users.shape[-1])
            chunk = max(_LEAST_CHUNK, min(DEFAULT_CHUNK, _SCORES // len(every)))
            values, ids = top_k_dot(every, catalogue, k, chunk=chunk)
            candidates.append(ids.reshape(*shape, k))
            scores.append(values.reshape(*shape, k))
        if self.num_samples:
            rows = stream(key, Stream.CANDIDATES)
            num_items = jnp.int32(_num_rows(teacher) - 1)
            ids = sample_uniform(rows, (*shape, self.num_samples), num_items)
            candidates.append(ids)
            scores.append(_scores(users, teacher.item_vectors(ids)))
        told: dict[str, Any] = {}
        if candidates:
            drawn = drawn.replace(candidates=jnp.concatenate(candidates, axis=-1))
            told["teacher_scores"] = jnp.concatenate(scores, axis=-1)
        elif self._compares_all:
            told |= {"teacher_vectors": users, "teacher_items": teacher.item_vectors()}
        if self.match_hidden:
            told["teacher_users"] = _last(users, batch)
        return drawn.replace(features=features_of(drawn) | told)

    def _read(self, features: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Returns what the batch says of the teacher."""
        if ITEMS not in features:
            raise UserError(
                "Distillation has no teacher and the batches carry no labels. Set "
                "objective.teacher=WORKDIR, or write labels with scripts/teach.py and wrap the "
                "data config: Taught(data=..., labels=DIR)."
            )
        there = features[ITEMS].shape[-1]
        if there < self.top_k:
            raise UserError(
                f"objective.top_k={self.top_k} and the labels hold {there} items for each event. "
                f"Lower it, or write them again: scripts/teach.py -k {self.top_k}."
            )
        items, scores = (jnp.asarray(features[name])[..., : self.top_k] for name in (ITEMS, SCORES))
        return items, scores

    def loss(
        self, model: Any, batch: Batch, key: Key | None, replica: Replica = ALONE
    ) -> tuple[jax.Array, jax.Array]:
        if not self._teaches:
            plain: tuple[jax.Array, jax.Array] = self.objective.loss(model, batch, key, replica)
            return plain
        users, told = model.user_vectors(batch, key=key), features_of(batch)
        total, weight = self.objective.loss(_Seen(model, users), batch, key, replica)
        total = (1 - self.weight) * total
        if self._compares_all:
            total += self.weight * self._divergence(users, model, batch, replica)
        elif self.weight:
            values = losses.soft_labels(
                _scores(users, model.item_vectors(batch.candidates)),
                told["teacher_scores"],
                temperature=self.temperature,
                where=batch.candidates > 0,
            )
            total += self.weight * weighted_sum(values, batch)[0]
        if self.match_hidden:
            total += self.match_hidden * _relations(users, batch, replica)
        return total, weight

    def _divergence(
        self, users: jax.Array, model: Any, batch: Batch, replica: Replica
    ) -> jax.Array:
        told = features_of(batch)

        def tokens(vectors: jax.Array) -> jax.Array:
            return vectors.reshape(-1, vectors.shape[-1]) / self.temperature

        value = catalogue_divergence(
            tokens(users),
            (replica.catalogue or model).item_vectors(),
            tokens(told["teacher_vectors"]),
            told["teacher_items"],
            weights_of(batch).reshape(-1),
            axis=replica.catalogue_axis,
            num_rows=replica.num_rows,
        )
        return self.temperature**2 * value


class _Seen:
    """A model whose user vectors for the batch at hand are there, so as not to compute them twice.

    Everything else is the model's own.
    """

    def __init__(self, model: Any, users: jax.Array):
        self._model, self._users = model, users

    def user_vectors(self, batch: Batch, *, key: Key | None = None) -> jax.Array:
        return self._users

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _scores(users: jax.Array, items: jax.Array) -> jax.Array:
    """Returns (..., K) float32 scores of (..., K, D) items for (..., D) users."""
    return jnp.einsum("...d,...kd->...k", users, items, preferred_element_type=jnp.float32)


def _num_rows(model: Any) -> int:
    return int(jax.eval_shape(model.item_vectors).shape[0])


def _relations(users: jax.Array, batch: Batch, replica: Replica) -> jax.Array:
    """Returns the sum over the rows at hand of their relations' distances, by their weights."""
    mine = _last(users, batch)
    weights = weights_of(batch).reshape(len(mine), -1).sum(axis=1)
    values = losses.relational_distance(
        replica.gather(mine),
        replica.gather(features_of(batch)["teacher_users"]),
        where=replica.gather(weights > 0),
    )
    own = jax.lax.dynamic_slice_in_dim(values, replica.first(len(mine)), len(mine))
    return jnp.sum(own * weights)


def _last(vectors: jax.Array, batch: Batch) -> jax.Array:
    """Returns (B, D): of vectors for each target, those of the last one of each row that counts."""
    if batch.positives.ndim == 1:
        return vectors
    counts = weights_of(batch) > 0
    place = counts.shape[1] - 1 - jnp.argmax(counts[:, ::-1], axis=1)
    return jnp.take_along_axis(vectors, place[:, None, None], axis=1)[:, 0]
