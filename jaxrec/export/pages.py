"""The pages of an artefact: how to run it, and what the model is, was measured at and is for."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxrec.data.dataset import Dataset
from jaxrec.evaluation import Evaluation
from jaxrec.evaluation.breakdown import Group
from jaxrec.evaluation.table import cells
from jaxrec.typing import Params

_README = """# {title}

A recommender of {num_items:,} items, exported by jaxrec {jaxrec}. `model_card.md` says what it is
and how good; `manifest.json` lists what the programs take and return, and the SHA-256 of each file.

| file | what it holds |
|---|---|
{files}

"""
_FILES = {
    "weights.safetensors": "all parameters, under the names of modules",
    "item_ids.npy": "row i is the original id of item i; item 0 is none",
    "items.parquet": "what is known of items; the first row is of item 1",
    "known_items.npy": "row i is whether item i was trained or has content; others are noise",
    "popularity.npy": "row i is how many training events item i has",
    "config.json": "the experiment that made it",
}
_OF_PROGRAMS = {
    "*.stablehlo": "programs for CPU, CUDA and TPU, by `jax.export`",
    "golden.json": "requests, and what the programs answered when they were made",
    "snapshot.json": "how training data and scores were spread, to tell drift by",
}
_OF_ONNX = {
    "*.onnx": "programs for ONNX Runtime and others that read ONNX",
    "constants.onnx.data": "what these programs read weights and item vectors from",
}
_OF_ANN = {"items.faiss": "an index of item vectors, for approximate search with faiss"}
_OF_USERS = {"user_ids.npy, users.parquet, known_users.npy": "the same of users"}
_WEIGHTS = """## The weights

`safetensors.numpy.load_file("weights.safetensors")` reads them, and so does `safetensors.torch`. A
dense layer's `kernel` is (inputs, outputs): the transpose of the `weight` of a `torch.nn.Linear`.

| name | shape | dtype | in PyTorch |
|---|---|---|---|
{rows}
"""
_RUN = """## Run it

`pip install jax flatbuffers`: the programs were made with jax {jax}, and jax reads them with
flatbuffers. In this directory:

```python
{script}```

Programs are compiled once for each new number of rows or columns. Index 0 is no item: it fills up
{fills}.{order}
To leave items out for one row, name them in `exclude`. To allow only some, give them a row of
`masks`, of what known_items.npy has as well, which many rows may share, and its number in `mask`.
Lists end with item 0 and score -inf where fewer than {k} items are left. `manifest.json` says what
`score` and `similar` take.

"""
_RUN_ONNX = """## Run it without JAX

`pip install onnxruntime`. In this directory:

```python
{script}```

Weights are in these programs already. Numbers of rows and columns are free, as above, and item ids
must lie between 0 and {num_items:,}. Products are in float32, whatever the model was trained with.

"""
_SCRIPT = """import json

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

kinds = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I32": np.int32}
kinds |= {"I8": np.int8, "U8": np.uint8}
raw = np.fromfile("weights.safetensors", np.uint8)
start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
header = json.loads(raw[8:start].tobytes())
weights = {}
for name in header.keys() - {"__metadata__"}:
    first, last = header[name]["data_offsets"]
    array = raw[start + first : start + last].view(kinds[header[name]["dtype"]])
    weights[name] = jnp.asarray(array.reshape(header[name]["shape"]))


def program(name):
    data = np.fromfile(f"{name}.stablehlo", np.uint8).tobytes()
    return jax.jit(export.deserialize(bytearray(data)).call)


vectors = program("items")(weights)
"""
_ASK = """{ask}
exclude = np.zeros((1, 1), np.int32)
masks = np.load("known_items.npy")[None]
mask = np.zeros(1, np.int32){seen_made}
recommend = program("recommend")
items, scores = recommend(weights, vectors, {shown}, exclude, masks, mask{seen_given})
ids = np.load("item_ids.npy")
for item, score in zip(np.asarray(items)[0, :10], np.asarray(scores)[0, :10]):
    print(ids[item], score)
"""
_ONNX_SCRIPT = """import numpy as np
import onnxruntime

inputs = {{
{inputs}    "exclude": np.zeros((1, 1), np.int32),
    "masks": np.load("known_items.npy")[None],
    "mask": np.zeros(1, np.int32),
{seen}}}
session = onnxruntime.InferenceSession("recommend.onnx")
items, scores = session.run(["items", "scores"], inputs)
ids = np.load("item_ids.npy")
for item, score in zip(items[0, :10], scores[0, :10]):
    print(ids[item], score)
"""
_CARD = """# Model card: {model}

## What it is

`{model}`, trained with `{objective}`{head} and taken at step {step}: {numbers} numbers in {size}
bytes. It recommends from {reads}, and nothing else about a person goes in. All settings are in
`config.json`.

## Data

{events} events of {users} users with {items} items, split by `{split}`; fingerprint
`{fingerprint}`.{sources}

## Measured

{measured}{ann}

## Intended use

Ordering this catalogue for people whose events look like those of the data: rows of
recommendations, neighbours of an item, scores for a re-ranker. Metrics were computed offline,
against what people did under the recommendations of their time. What a change does to people is for
an online experiment to say.

## Limits

- {never} of {items} items have no training event; what was never trained and has no content is not
  recommended and counts as unknown, and so do users without one. Items that came later are unknown.
  {unknown}
- What was popular in the data is recommended more: see coverage, novelty and the groups above.
- It learned from behaviour alone, with the biases in it, and knows nothing of rules, stock, age or
  consent. Those are for masks around it.
- A score is {means}.{left}
- Scores are not to be compared between models, and between requests only as far as that says.
"""


def readme(manifest: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    """Returns README.md of an artefact with weights of these names."""
    runs, shown = bool(manifest["programs"]), tuple(manifest["shown"])
    with_onnx = "onnx" in manifest
    there = {**_FILES, **(_OF_PROGRAMS if runs else {}), **(_OF_ONNX if with_onnx else {})}
    there |= _OF_ANN if "ann" in manifest else {}
    there |= _OF_USERS if "users" in shown else {}
    rows = [f"| {name} | {what} |" for name, what in there.items()]
    page = _README.format(title=manifest["model"], files="\n".join(rows), **manifest)
    if runs:
        fills = "short histories on the left" if "history" in shown else "short lists in `exclude`"
        order = " Histories are oldest first." if "history" in shown else ""
        page += _RUN.format(script=script(manifest), fills=fills, order=order, **manifest)
    if with_onnx:
        page += _RUN_ONNX.format(script=onnx_script(manifest), **manifest)
    told = (
        f"| `{name}` | {tuple(leaf.shape)} | {leaf.dtype.name} | {_in_pytorch(name, weights)} |"
        for name, leaf in weights.items()
    )
    return page + _WEIGHTS.format(rows="\n".join(told))


def _in_pytorch(name: str, weights: Mapping[str, Any]) -> str:
    """Returns what a weight is in PyTorch; "" for what has no counterpart there."""
    module, _, last = name.rpartition(".")
    if f"{module}.codes" in weights or last in ("codes", "codebooks", "norms"):
        return ""
    kinds = {"table": "Embedding.weight", "kernel": "Linear.weight.T", "bias": "bias"}
    norm = "LayerNorm.weight" if f"{module}.bias" in weights else "RMSNorm.weight"
    return (kinds | {"scale": norm}).get(last, "Parameter")


def _asks(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Returns the code of an example of what the model is shown."""
    newest = list(range(1, 1 + min(3, manifest["max_len"], manifest["num_items"])))
    asks = {"users": "np.array([1], np.int32)", "history": f"np.array([{newest}], np.int32)"}
    return {name: asks[name] for name in manifest["shown"]}


def onnx_script(manifest: Mapping[str, Any]) -> str:
    """Returns a program of Python that recommends with ONNX Runtime."""
    asks = _asks(manifest)
    return _ONNX_SCRIPT.format(
        inputs="".join(f'    "{name}": {ask},\n' for name, ask in asks.items()),
        seen='    "mask_seen": np.ones(1, bool),\n' if "history" in asks else "",
    )


def script(manifest: Mapping[str, Any]) -> str:
    """Returns a program of Python that recommends with an artefact and does not know jaxrec."""
    asks = _asks(manifest)
    with_history = "history" in asks
    return _SCRIPT + _ASK.format(
        ask="\n".join(f"{name} = {ask}" for name, ask in asks.items()),
        shown=", ".join(asks),
        seen_made="\nmask_seen = np.ones(1, bool)" if with_history else "",
        seen_given=", mask_seen" if with_history else "",
    )


def model_card(
    manifest: Mapping[str, Any],
    dataset: Dataset,
    params: Params,
    evaluations: Mapping[str, Evaluation],
    *,
    left: Sequence[str] = (),
) -> str:
    """Returns model_card.md of an artefact.

    Args:
      manifest: what the artefact's manifest says of the model.
      dataset: what it was trained on.
      params: its parameters.
      evaluations: by split.
      left: heads of the model that no program computes.
    """
    leaves, about, score = jax.tree.leaves(params), dataset.manifest, manifest["score"]
    histories = "history" in manifest["shown"]
    return _CARD.format(
        model=manifest["model"],
        step=f"{manifest['step']:,}",
        objective=score["objective"],
        head=f" of the head `{score['head']}`" if score["head"] else "",
        means=score["means"],
        left=(
            f" The heads {', '.join(left)} are among the weights, and no program computes them."
            if left
            else ""
        ),
        numbers=f"{sum(leaf.size for leaf in leaves):,}",
        size=f"{sum(leaf.size * leaf.dtype.itemsize for leaf in leaves):,}",
        reads=f"the newest {manifest['max_len']} items of a history" if histories else "who asks",
        events=f"{about.num_events:,}",
        users=f"{about.num_users:,}",
        items=f"{about.num_items:,}",
        split=about.split.get("name"),
        fingerprint=about.fingerprint[:12],
        sources="".join(f"\n- `{s['name']}`, {s['bytes']:,} bytes" for s in about.sources),
        measured=_measured(evaluations),
        ann=_of_index(manifest),
        never=f"{int((dataset.item_counts[1:] == 0).sum()):,}",
        unknown=(
            "People of whom no event is known get no list of their own."
            if histories
            else "People who came later are unknown as well."
        ),
    )


def _of_index(manifest: Mapping[str, Any]) -> str:
    if "ann" not in manifest:
        return ""
    told, k = manifest["ann"], manifest["k"]
    lines = [
        f"| {x['effort']} | {x['recall']:.4f} | {x['p50_ms']:.3g} | {x['p99_ms']:.3g} |"
        for x in told["measured"]
    ]
    return (
        f"\n\nThe {told['kind']} index against exact search, for {told['users']:,} users, with the "
        "latency of a search for one of them where it was built. The last effort is the one that "
        f"is made.\n\n| effort | recall@{k} | p50 ms | p99 ms |\n|---|---|---|---|\n"
    ) + "\n".join(lines)


def _measured(evaluations: Mapping[str, Evaluation]) -> str:
    if not evaluations:
        return "Not measured when it was exported."
    names = list(dict.fromkeys(name for e in evaluations.values() for name in e.metrics))
    columns = cells(evaluations, names)
    lines = [f"| metric | {' | '.join(evaluations)} |", "|---" * (len(columns) + 1) + "|"]
    for i, name in enumerate(names):
        values = (" ".join(filter(None, cells_of[i])) or "–" for _, cells_of in columns)
        lines.append(f"| {name} | {' | '.join(values)} |")
    counts = " and ".join(f"{e.num_users:,} users ({name})" for name, e in evaluations.items())
    text = f"Against the whole catalogue, for {counts}; in brackets 95% bootstrap intervals.\n\n"
    text += "\n".join(lines)
    last = list(evaluations.values())[-1]
    groups = (
        ("tenths of the items, the least popular first", last.by_popularity),
        ("users by events in their history", last.by_history),
    )
    for title, found in groups:
        text += _groups(f"Recall@{last.k} on the {last.split} split, {title}:", found)
    return text


def _groups(title: str, groups: Sequence[Group]) -> str:
    if not groups:
        return ""
    return f"\n\n{title}\n\n| group | count | recall |\n|---|---|---|\n" + "\n".join(
        f"| {group.name} | {group.count:,} | {group.recall:.4f} |"
        for group in groups
        if group.count
    )


def name_of(config: Any) -> str:
    """Names a config and the models inside: "Quantized(sasrec)"."""
    kind, inner = type(config), getattr(config, "model", None)
    name = (
        kind.__module__.rpartition(".")[2] if kind.__qualname__ == "Config" else kind.__qualname__
    )
    return name + (f"({name_of(inner)})" if inner is not None else "")
