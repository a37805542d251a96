"""Time of a whole evaluation: 22,363 users ranked against 12,101 items, all metrics and intervals.

Prints one JSON object. The peer, in the same run, is the usual NumPy way: the whole matrix of
scores, seen items set to -inf, `argpartition`, a sort of the winners; then the same metrics.

  python benchmarks/evaluation.py --repeats=5
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from _report import emit
from absl import app, flags

from jaxrec.data.dataset import Dataset, Manifest
from jaxrec.evaluation import (
    EvaluationConfig,
    Requests,
    RetrieverRecommender,
    evaluate,
    requests_of,
)
from jaxrec.typing import Batch

_USERS = flags.DEFINE_integer("users", 22_363, "Number of users.", lower_bound=1)
_ITEMS = flags.DEFINE_integer("items", 12_101, "Number of items.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 64, "Width of the vectors.", lower_bound=1)
_HISTORY = flags.DEFINE_integer("history", 9, "Mean length of a history.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs after the first.", lower_bound=1)
_PEER = flags.DEFINE_boolean("peer", True, "Whether the NumPy way is timed as well.")


class _FullMatrix:
    """Scores every user against every item at once in NumPy."""

    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        self._users, self._items = users, items

    def recommend(self, requests: Requests, k: int, *, mask_seen: bool) -> np.ndarray:
        scores = self._users[requests.users] @ self._items.T
        scores[:, 0] = -np.inf
        if mask_seen:
            rows = np.repeat(np.arange(len(requests)), requests.history_lengths)
            scores[rows, requests.history_items] = -np.inf
        best = np.argpartition(-scores, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        return np.take_along_axis(best, order, axis=1).astype(np.int32)


def _dataset(random: np.random.Generator, num_users: int, num_items: int, mean: int) -> Dataset:
    """Random histories, each followed by one validation and one test event."""
    lengths = 3 + random.geometric(1 / max(mean - 1, 1), num_users) - 1
    users = np.repeat(np.arange(1, num_users + 1, dtype=np.int32), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(users))
    manifest = Manifest(
        num_users=num_users,
        num_items=num_items,
        num_events=len(users),
        split={"name": "leave_last_out"},
        columns={},
        fingerprint="",
        user_fingerprint="",
        item_fingerprint="",
        sources=[],
        report=[],
    )
    return Dataset(
        manifest=manifest,
        users=users,
        items=random.integers(1, num_items + 1, len(users), dtype=np.int32),
        times=np.arange(len(users)),
        split=np.where(left == 1, 2, np.where(left == 2, 1, 0)).astype(np.uint8),
        labels=None,
        user_vocabulary=pd.DataFrame({"id": []}),
        item_vocabulary=pd.DataFrame({"id": []}),
    )


def main(_: list[str]) -> None:
    random = np.random.default_rng(0)
    dataset = _dataset(random, _USERS.value, _ITEMS.value, _HISTORY.value)
    users = random.normal(size=(_USERS.value + 1, _WIDTH.value)).astype(np.float32)
    items = random.normal(size=(_ITEMS.value + 1, _WIDTH.value)).astype(np.float32)
    config = EvaluationConfig()
    user_table, item_table = jnp.asarray(users), jnp.asarray(items)
    retriever = RetrieverRecommender(
        jax.jit(lambda batch: user_table[batch.users]),
        lambda: [item_table],
        lambda requests, rows: Batch(users=requests.users[rows]),
        config,
    )

    def run() -> float:
        start = time.perf_counter()
        evaluate(retriever, dataset, "test", config)
        return time.perf_counter() - start

    first = run()
    seconds = statistics.median(run() for _ in range(_REPEATS.value))
    requests = requests_of(dataset, "test")
    result = {
        "users": len(requests),
        "items": _ITEMS.value,
        "width": _WIDTH.value,
        "mean_history": round(float(requests.history_lengths.mean()), 2),
        "seconds": round(seconds, 3),
        "compile_s": round(first - seconds, 3),
        "users_per_s": round(len(requests) / seconds),
    }
    if _PEER.value:
        peer = evaluate(_FullMatrix(users, items), dataset, "test", config)
        ours = evaluate(retriever, dataset, "test", config)
        result["numpy_full_matrix_s"] = round(peer.seconds, 3)
        result["times_faster"] = round(peer.seconds / seconds, 1)
        result["same_metrics"] = bool(
            np.allclose(list(ours.metrics.values()), list(peer.metrics.values()), rtol=1e-3)
        )
    emit("evaluation", result)


if __name__ == "__main__":
    app.run(main)
