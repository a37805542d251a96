"""What an artefact says of what it was made for: golden requests, and a snapshot for drift."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec.data.dataset import TRAIN, Dataset
from jaxrec.typing import Array, UserError

GOLDEN = 16
_SAMPLED = 32 * GOLDEN  # users that a snapshot is made of
_EXCLUDED = 64  # newest items that a model of users, which sees no history, is told to leave out
_BINS, _KEPT, _TOP = 10, 512, 10
_TOLERANCE = {jnp.dtype("float32"): 1e-4}
_COARSE = 2e-2  # vectors of half precision are rounded as the shape of a product decides


type Recommend = Callable[..., tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Questions:
    """Some users, as they are asked for.

    Attributes:
      histories: training events of each user, oldest first.
      shown: what the model is shown, by name, one row a user.
      exclude: (n, e) int32.
    """

    histories: list[np.ndarray]
    shown: dict[str, np.ndarray]
    exclude: np.ndarray


@dataclasses.dataclass(frozen=True)
class Answers(Questions):
    """Some users, and what is recommended to them.

    Attributes:
      items, scores: (n, k), as `recommend` returns them.
    """

    items: np.ndarray
    scores: np.ndarray


def questions_of(dataset: Dataset, shown: tuple[str, ...], max_len: int) -> Questions:
    """Returns users of the training split, as many as fill batches of one shape.

    Args:
      dataset: where they are found.
      shown: what the model is shown.
      max_len: the longest history that it reads.

    Raises:
      UserError: when there is no training event.
    """
    users, histories = _users_of(dataset)
    exclude = _newest(histories, _EXCLUDED)
    asked = {"users": users}
    if "history" in shown:  # which `mask_seen` leaves out
        exclude = np.zeros((len(users), 1), np.int32)
        asked |= {"history": _newest(histories, max_len)}
    return Questions(histories, {name: asked[name] for name in shown}, exclude)


def answers_of(recommend: Recommend, questions: Questions, count: int | None = None) -> Answers:
    """Asks for users in batches of one shape, for the first `count` of them alone if it is said."""
    found = []
    rows = len(questions.exclude) if count is None else count
    for start in range(0, rows, GOLDEN):
        part = slice(start, start + GOLDEN)
        shown = {name: value[part] for name, value in questions.shown.items()}
        found.append(recommend(**shown, exclude=questions.exclude[part]))
    items, scores = (
        np.concatenate([np.asarray(x) for x in parts]) for parts in zip(*found, strict=True)
    )
    return Answers(questions.histories, questions.shown, questions.exclude, items, scores)


def golden_of(answers: Answers, dtype: Any) -> dict[str, Any]:
    """Returns the content of golden.json; see `jaxrec.export.golden`.

    Args:
      answers: whose first are taken.
      dtype: of the vectors that scores are products of.
    """
    items, scores = answers.items[:GOLDEN], answers.scores[:GOLDEN]
    return {
        "shown": {name: value[:GOLDEN].tolist() for name, value in answers.shown.items()},
        "exclude": answers.exclude[:GOLDEN].tolist(),
        "items": [row[row > 0].tolist() for row in items],
        "scores": [_plain(values[row > 0]) for row, values in zip(items, scores, strict=True)],
        "tolerance": _TOLERANCE.get(jnp.dtype(dtype), _COARSE),
    }


def snapshot_of(answers: Answers, popularity: np.ndarray) -> dict[str, Any]:
    """Returns the content of snapshot.json: how requests and answers were spread.

    Each feature has ascending `edges`, the `shares` of values in the bins before, between and after
    them (a value at an edge is in the bin before it), and a sorted `sample`.

    history_length: events of a user. top_score: of the first item. mean_score: of the first 10.
    popularity: mean of log(1 + training events) over the first 10 items. unknown_share: of the ids
    of a request, those that are not in the catalogue.
    """
    items, scores = answers.items[:, :_TOP], answers.scores[:, :_TOP]
    some = items[:, 0] > 0
    items, scores = items[some], scores[some]
    where = items > 0
    return {
        "history_length": _spread([len(history) for history in answers.histories]),
        "top_score": _spread(scores[:, 0]),
        "mean_score": _spread(np.mean(scores, axis=1, where=where)),
        "popularity": _spread(np.mean(np.log1p(popularity[items]), axis=1, where=where)),
        "unknown_share": _spread(np.zeros(1)),
    }


def _users_of(dataset: Dataset) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns users in an order that depends on their number alone, and their training events."""
    users: list[int] = []
    histories: list[np.ndarray] = []
    for user in np.random.default_rng(0).permutation(dataset.num_users) + 1:
        where = slice(dataset.offsets[user], dataset.offsets[user + 1])
        history = np.asarray(dataset.items[where])[np.asarray(dataset.split[where]) == TRAIN]
        if len(history):
            users.append(int(user))
            histories.append(history)
        if len(users) == _SAMPLED:
            break
    if not users:
        raise UserError("the dataset has no training event, so nobody can be asked for.")
    while len(users) % GOLDEN:  # so that batches have one shape
        users.append(users[len(users) % GOLDEN - 1])
        histories.append(histories[len(histories) % GOLDEN - 1])
    return np.array(users, np.int32), histories


def _newest(histories: list[np.ndarray], columns: int) -> np.ndarray:
    """Returns (n, columns) int32, aligned to the right, 0 before what is there."""
    rows = np.zeros((len(histories), columns), np.int32)
    for row, history in zip(rows, histories, strict=True):
        newest = history[-columns:]
        row[columns - len(newest) :] = newest
    return rows


def _spread(values: Sequence[float] | np.ndarray) -> dict[str, list[float]]:
    ordered = np.sort(_plain(values) or [0.0])
    edges = np.unique(np.quantile(ordered, np.arange(1, _BINS) / _BINS))
    bins = np.searchsorted(edges, ordered, side="left")
    shares = np.bincount(bins, minlength=len(edges) + 1) / len(ordered)
    sample = ordered[np.linspace(0, len(ordered) - 1, min(len(ordered), _KEPT)).round().astype(int)]
    return {"edges": edges.tolist(), "shares": _plain(shares), "sample": sample.tolist()}


def _plain(values: Sequence[float] | np.ndarray) -> list[float]:
    """Returns numbers with as many digits as mean something."""
    return [float(f"{value:.7g}") for value in values]
