"""Memory and time of the full softmax, forward and backward: a plain loss against jaxrec's.

Each case runs in processes of its own, taken in turns, and prints one JSON object: median seconds,
the temporary memory of the compiled program, and by how much the process grew while it ran. The
line of jaxrec also has its shares of the plain one. The plain loss is what one writes first: a
matrix of logits, logsumexp, autodiff.

  python benchmarks/full_softmax.py --tokens=4096 --items=200000 --dim=64
  python benchmarks/full_softmax.py --cases=jaxrec --chunk=64 --dtype=bfloat16
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from _report import emit, peak_mib
from absl import app, flags

from jaxrec.memory import keep_freed_memory
from jaxrec.ops.cross_entropy import catalogue_cross_entropy

_CASES = flags.DEFINE_list("cases", ["plain", "jaxrec"], "What to measure: plain, jaxrec.")
_TOKENS = flags.DEFINE_integer("tokens", 4096, "Rows of vectors.")
_ITEMS = flags.DEFINE_integer("items", 200_000, "Rows of the table.")
_DIM = flags.DEFINE_integer("dim", 64, "Width of a vector.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of vectors and table.")
_CHUNK = flags.DEFINE_integer("chunk", None, "Tokens at a time; by default jaxrec's choice.")
_TURNS = flags.DEFINE_integer("turns", 3, "Processes for each case.")
_REPEATS = flags.DEFINE_integer("repeats", 2, "Timed calls in each process, after one more.")
_ALONE = flags.DEFINE_string("alone", None, "Run this case here.")


def _plain(vectors: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
    logits = jnp.dot(vectors, table.T, preferred_element_type=jnp.float32)
    logits = logits.at[:, 0].set(-1e30)
    picked = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jnp.sum(jax.nn.logsumexp(logits, axis=1) - picked)


def _jaxrec(vectors: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
    weights = jnp.ones(targets.shape)
    return catalogue_cross_entropy(vectors, table, targets, weights, chunk=_CHUNK.value)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def _measure(case: str) -> dict[str, Any]:
    keep_freed_memory()
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = (
        jax.random.normal(keys[0], (_TOKENS.value, _DIM.value), _DTYPE.value),
        0.1 * jax.random.normal(keys[1], (_ITEMS.value, _DIM.value), _DTYPE.value),
        jax.random.randint(keys[2], (_TOKENS.value,), 1, _ITEMS.value),
    )
    loss = {"plain": _plain, "jaxrec": _jaxrec}[case]
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*inputs).compile()
    memory = program.memory_analysis()
    assert memory is not None, "the compiler of this backend tells no sizes"
    before, times = _resident_mib(), []
    value, gradients = jax.block_until_ready(program(*inputs))
    for _ in range(_REPEATS.value):
        start = time.perf_counter()
        jax.block_until_ready(program(*inputs))
        times.append(time.perf_counter() - start)
    # Two pairs of gradients are alive at once, and they are no temporaries.
    kept = 2 * sum(gradient.nbytes for gradient in gradients) / 2**20
    return {
        "seconds": statistics.median(times),
        "temp_mib": memory.temp_size_in_bytes / 2**20,
        "growth_mib": peak_mib() - before - kept,
        "loss": float(value),
        "gradient_norm": float(jnp.linalg.norm(gradients[1].astype(jnp.float32))),
    }


def _spawn(case: str) -> dict[str, Any]:
    command = [sys.executable, *sys.argv, f"--alone={case}"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{case} failed:\n{run.stderr[-2000:]}")
    return dict(json.loads(run.stdout.strip().splitlines()[-1]))


def main(argv: list[str]) -> None:
    if _ALONE.value:
        print(json.dumps(_measure(_ALONE.value)))
        return
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in _CASES.value}
    for _ in range(_TURNS.value):
        for case in _CASES.value:
            found[case].append(_spawn(case))
    sizes = {flag.name: flag.value for flag in (_TOKENS, _ITEMS, _DIM, _DTYPE)}
    medians = {
        case: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for case, runs in found.items()
    }
    for case, figures in medians.items():
        shares = {}
        if case == "jaxrec" and "plain" in medians:
            for key in ("seconds", "temp_mib", "growth_mib"):
                shares[f"{key}_of_plain"] = figures[key] / medians["plain"][key]
        emit("full_softmax", {"case": case, **sizes, **figures, **shares})


if __name__ == "__main__":
    app.run(main)
