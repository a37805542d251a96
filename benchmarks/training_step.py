"""Time of one SASRec training step: jaxrec, the same model in naive JAX, and peers by command.

Each case runs in a process of its own and prints one JSON object: examples (loss terms) and real
(non-padding) tokens a second, step and compile time, peak memory, and how many times faster
than the naive step of the same shapes and loss, measured just before it. The naive step is what one
writes first: drawn dropout masks, a matrix of logits, autodiff, dense Adam.

  python benchmarks/training_step.py --cases=bce-256,bce-64,softmax-256,softmax-64
  python benchmarks/training_step.py --data=DIR --peer="PyTorch bce-256=python torch_sasrec.py ..."

A peer's command prints JSON whose last line has `ms_step`; its line compares it with the case that
its name ends with. --data is a directory of scripts/prepare.py; without it, invented histories of
MovieLens-100k's size.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _report import emit, peak_mib, seconds_of
from absl import app, flags

from jaxrec.data import Dataset, SequenceData, build, open_dataset, synthetic
from jaxrec.functional import functional
from jaxrec.memory import keep_freed_memory
from jaxrec.models import sasrec
from jaxrec.objectives import BCE, FullSoftmax, Objective
from jaxrec.optim import OptimizerConfig
from jaxrec.training import init_state, make_step
from jaxrec.typing import Batch

CASES = ("bce-256", "bce-64", "softmax-256", "softmax-64")

_CASES = flags.DEFINE_list("cases", list(CASES), "Loss and feed-forward width: bce-N, softmax-N.")
_DATA = flags.DEFINE_string("data", None, "Dataset directory; invented data without it.")
_BATCH = flags.DEFINE_integer("batch", 128, "Rows of a batch.")
_MAX_LEN = flags.DEFINE_integer("max_len", 50, "Positions of a row.")
_DIM = flags.DEFINE_integer("dim", 64, "Width of the model; 2 blocks of 2 heads.")
_DROPOUT = flags.DEFINE_float("dropout", 0.2, "Dropout rate, on branches and attention weights.")
_REPEATS = flags.DEFINE_integer("repeats", 40, "Timed steps.")
_PEERS = flags.DEFINE_multi_string("peer", [], "NAME CASE=COMMAND, repeatable.")
_KEEP = flags.DEFINE_bool("keep_memory", True, "Let jaxrec keep freed memory, as its scripts do.")
_ALONE = flags.DEFINE_string("alone", None, "Run this one here: jaxrec:CASE, naive:CASE.")


def _dataset() -> Dataset:
    if _DATA.value:
        return open_dataset(_DATA.value)
    events, _ = synthetic(seed=0, num_users=943, num_items=1682, min_events=20, max_events=192)
    return build(events, user_column="user_id", item_column="item_id", time_column="timestamp")


def _model(num_items: int, hidden: int) -> sasrec.Config:
    return sasrec.Config(
        num_items=num_items,
        max_len=_MAX_LEN.value,
        dim=_DIM.value,
        hidden=hidden,
        dropout=_DROPOUT.value,
        attention_dropout=_DROPOUT.value,
    )


def _jaxrec_step(dataset: Dataset, loss: str, hidden: int) -> tuple[Callable[..., Any], list[Any]]:
    objective: Objective = BCE() if loss == "bce" else FullSoftmax()
    model = functional(lambda rngs: _model(dataset.num_items, hidden).build(rngs))
    optimizer = OptimizerConfig().build(10_000)
    step = make_step(model, objective, optimizer, seed=0)
    statistics = jax.device_put(objective.statistics(dataset))
    return lambda state, batch: step(state, batch, statistics)[0], [init_state(model, optimizer, 0)]


def _naive_step(dataset: Dataset, loss: str, hidden: int) -> tuple[Callable[..., Any], list[Any]]:
    config = _model(dataset.num_items, hidden)
    params = functional(lambda rngs: config.build(rngs)).init(jax.random.key(0))
    optimizer, heads, dim = optax.adam(1e-3), config.num_heads, config.dim

    def norm(p: Any, x: jax.Array) -> jax.Array:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * p["scale"] + p["bias"]

    def linear(p: Any, x: jax.Array) -> jax.Array:
        return x @ p["kernel"] + p["bias"]

    def drop(key: jax.Array, x: jax.Array) -> jax.Array:
        keep = 1 - _DROPOUT.value
        return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0)

    def forward(p: Any, history: jax.Array, key: jax.Array) -> jax.Array:
        keys = iter(jax.random.split(key, 1 + 3 * config.num_blocks))
        length = history.shape[1]
        positions = jnp.arange(length)[::-1]
        x = drop(next(keys), p["items"]["table"][history] + p["positions"][positions])
        mask = jnp.tril(jnp.ones((length, length), bool)) & (history > 0)[:, None, None, :]
        for block in p["blocks"].values():
            qkv = linear(block["attention"]["project_in"], norm(block["attention_norm"], x))
            q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, heads, dim // heads), 2, 0)
            logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (dim // heads) ** 0.5
            weights = jax.nn.softmax(jnp.where(mask, logits, -1e9), -1)
            mixed = jnp.einsum("bhqk,bkhd->bqhd", drop(next(keys), weights), v).reshape(x.shape)
            x = x + drop(next(keys), linear(block["attention"]["project_out"], mixed))
            hidden_layer = linear(block["feed_forward"]["up"], norm(block["feed_forward_norm"], x))
            branch = linear(block["feed_forward"]["down"], jax.nn.gelu(hidden_layer))
            x = x + drop(next(keys), branch)
        return norm(p["output_norm"], x)

    def total(p: Any, batch: Batch, key: jax.Array) -> jax.Array:
        table, (model_key, key) = p["items"]["table"], jax.random.split(key)
        vectors = forward(p, batch.history, model_key)
        if loss == "bce":
            negatives = jax.random.randint(key, batch.positives.shape, 1, len(table))
            scores = [jnp.sum(vectors * table[ids], -1) for ids in (batch.positives, negatives)]
            values = jax.nn.softplus(-scores[0]) + jax.nn.softplus(scores[1])
        else:
            values = optax.softmax_cross_entropy_with_integer_labels(
                vectors @ table.T, batch.positives
            )
        return jnp.sum(jnp.where(batch.where, values, 0)) / jnp.sum(batch.where)

    def step(state: Any, batch: Batch) -> Any:
        count, p, slots = state
        key = jax.random.fold_in(jax.random.key(0), count)
        updates, slots = optimizer.update(jax.grad(total)(p, batch, key), slots, p)
        return count + 1, optax.apply_updates(p, updates), slots

    return jax.jit(step, donate_argnums=0), [(jnp.int32(0), params, optimizer.init(params))]


def _measure(who: str, case: str) -> dict[str, Any]:
    if who == "jaxrec" and _KEEP.value:
        keep_freed_memory()
    loss, hidden = case.split("-")
    dataset = _dataset()
    batches = SequenceData(max_len=_MAX_LEN.value, targets="all").batches(dataset, _BATCH.value, 0)
    host = [batches.batch(i) for i in range(batches.steps_per_epoch - 1)]
    on_device = [jax.device_put(batch) for batch in host]
    make = _jaxrec_step if who == "jaxrec" else _naive_step
    step, state = make(dataset, loss, int(hidden))
    start = time.perf_counter()
    state[0] = jax.block_until_ready(step(state[0], on_device[0]))
    compile_s, count = time.perf_counter() - start, iter(range(10**9))

    def work() -> Any:
        state[0] = step(state[0], on_device[next(count) % len(on_device)])
        return state[0]

    seconds = seconds_of(work, _REPEATS.value, warmup=3)
    tokens = float(np.mean([np.sum(batch.where) for batch in host]))
    start = time.perf_counter()
    for index in range(20):
        batches.batch(index)
    load = (time.perf_counter() - start) / 20
    return {
        "who": who,
        "case": case,
        "step_ms": 1e3 * seconds,
        "examples_per_s": tokens / seconds,
        "real_tokens_per_s": tokens / seconds,
        "fill": tokens / (_BATCH.value * _MAX_LEN.value),
        "compile_s": compile_s - seconds,
        "peak_mib": peak_mib(),
        "loader_times_step": seconds / load,
    }


def _spawn(command: list[str]) -> dict[str, Any]:
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{run.stderr[-2000:]}")
    return dict(json.loads(run.stdout.strip().splitlines()[-1]))


def main(argv: list[str]) -> None:
    if _ALONE.value:
        who, case = _ALONE.value.split(":")
        emit("training_step", _measure(who, case))
        return
    own: dict[str, float] = {}
    for case in _CASES.value:
        found = {}
        for who in ("naive", "jaxrec"):
            command = [sys.executable, *sys.argv, f"--alone={who}:{case}"]
            found[who] = _spawn(command)
        own[case] = found["jaxrec"]["step_ms"]
        faster = found["naive"]["step_ms"] / own[case]
        print(json.dumps(found["naive"]))
        figures = found["jaxrec"] | {"times_faster_than_naive": round(faster, 2)}
        print(json.dumps(figures), flush=True)
    for peer in _PEERS.value:
        name, _, words = peer.partition("=")
        case, line = name.split()[-1], _spawn(shlex.split(words))
        figures = {"who": name, "case": case, "step_ms": float(line["ms_step"])}
        if case in own:
            figures["jaxrec_times_faster"] = float(line["ms_step"]) / own[case]
        emit("training_step", figures)


if __name__ == "__main__":
    app.run(main)
