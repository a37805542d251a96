"""Exact top-k of a large catalogue: `ops.topk.top_k_dot` against faiss, and what an index misses.

Each batch size prints one JSON object: median milliseconds of our exact search, of a plain product
with `lax.top_k`, and of faiss IndexFlatIP, timed in turns; then the two ratios to ours. An index
for approximate search over fewer vectors prints one more: recall against exact search and its
latency by effort, beside exact search for one user.

Vectors are random. Exact search does not care, while recall says little of what a model's would be:
scripts/export.py --ann measures that.

  python benchmarks/retrieval.py
  python benchmarks/retrieval.py --items=12101 --batches=16 --ann=hnsw --ann_items=50000
"""

import importlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from _report import emit
from absl import app, flags
from jax import lax

from jaxrec.export.ann import Kind, build_index, measure_index
from jaxrec.ops.topk import top_k_dot

_ITEMS = flags.DEFINE_integer("items", 1_000_000, "Items in the catalogue.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 64, "Width of the vectors.", lower_bound=1)
_K = flags.DEFINE_integer("k", 100, "Length of a list.", lower_bound=1)
_BATCHES = flags.DEFINE_list("batches", ["1", "32", "256"], "Users that are searched for at once.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "How long a batch size is timed.", lower_bound=0.1)
_ANN = flags.DEFINE_enum("ann", "hnsw", ["hnsw", "ivf", ""], "Kind of index; empty for none.")
_ANN_ITEMS = flags.DEFINE_integer("ann_items", 50_000, "Items in the index.", lower_bound=200)


def in_turns(works: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Returns the median milliseconds of each work, all run one after the other, 3 times or more.

    In turns, so that what else the machine does falls on all of them.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in times.items()}


def exact(users: np.ndarray, items: np.ndarray, k: int, seconds: float) -> dict[str, Any]:
    """Returns medians of exact searches of items (N, dim), whose row 0 is padding."""
    on_device, asked = jnp.asarray(items), jnp.asarray(users)
    search = jax.jit(lambda users, items: top_k_dot(users, items, k))
    plain = jax.jit(lambda users, items: lax.top_k(users @ items.T, k))
    works: dict[str, Callable[[], Any]] = {
        "jaxrec_ms": lambda: jax.block_until_ready(search(asked, on_device)),
        "plain_jax_ms": lambda: jax.block_until_ready(plain(asked, on_device)),
    }
    same = {}
    if importlib.util.find_spec("faiss") is not None:
        faiss: Any = importlib.import_module("faiss")
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        flat = faiss.IndexFlatIP(items.shape[1])
        flat.add(items[1:])
        works["faiss_flat_ms"] = lambda: flat.search(users, k)
        found = np.asarray(search(asked, on_device)[1])
        same = {"same_as_faiss": float(np.mean(found == flat.search(users, k)[1] + 1))}
    medians = in_turns(works, seconds)
    ours = medians["jaxrec_ms"]
    ratios = {
        name.replace("_ms", "_over_jaxrec"): value / ours
        for name, value in medians.items()
        if name != "jaxrec_ms"
    }
    return medians | ratios | same


def main(_: list[str]) -> None:
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        # faiss brings an OpenBLAS of its own, which settings for another one make slow.
        os.environ.pop(name, None)
    random = np.random.default_rng(0)
    sizes = {"width": _WIDTH.value, "k": _K.value}
    items = random.standard_normal((_ITEMS.value + 1, _WIDTH.value), dtype=np.float32)
    for batch in map(int, _BATCHES.value):
        users = random.standard_normal((batch, _WIDTH.value), dtype=np.float32)
        figures = exact(users, items, _K.value, _SECONDS.value)
        emit("retrieval", {"items": _ITEMS.value, **sizes, "batch": batch, **figures})
    if _ANN.value:
        approximate(random, cast(Kind, _ANN.value))


def approximate(random: np.random.Generator, kind: Kind) -> None:
    """Builds an index, measures it and prints that."""
    # Vectors around a few hundred directions, as recall of pure noise is no use to anyone.
    centres = random.standard_normal((300, _WIDTH.value), dtype=np.float32)

    def around(count: int) -> np.ndarray:
        noise = random.standard_normal((count, _WIDTH.value), dtype=np.float32)
        return centres[random.integers(0, len(centres), count)] + noise

    items, users = around(_ANN_ITEMS.value + 1), around(256)
    wanted = np.asarray(top_k_dot(jnp.asarray(users), jnp.asarray(items), _K.value)[1])
    start = time.perf_counter()
    index = build_index(items, kind)
    built = time.perf_counter() - start
    _, measured = measure_index(index, users, wanted)
    sizes = {"items": _ANN_ITEMS.value, "width": _WIDTH.value, "k": _K.value}
    figures = exact(users[:1], items, _K.value, 1.0)
    emit(
        "retrieval_ann", {"kind": kind, **sizes, "build_s": built, "measured": measured, **figures}
    )


if __name__ == "__main__":
    app.run(main)
