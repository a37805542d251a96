"""The programs of `jaxrec.export.programs` for ONNX Runtime, with weights and item vectors in them.

    users(SHOWN)                                        vectors
    recommend(SHOWN, exclude, masks, mask, mask_seen)   items, scores
    score(SHOWN, items)                                 scores
    similar(item)                                       items, scores

Names, shapes and meanings are as there. Item ids must lie inside the catalogue. All graphs
read their large constants from one file beside them.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrec.export import programs
from jaxrec.export.onnx_graph import Constants, Graph
from jaxrec.export.onnx_operations import LOWERINGS
from jaxrec.export.programs import Spec, by_name
from jaxrec.typing import Params

CONSTANTS = "constants.onnx.data"


def write_onnx(spec: Spec, params: Params, output: Path) -> dict[str, dict[str, Any]]:
    """Writes the programs of a model into a directory; the same model gives the same bytes.

    Args:
      spec: the model, which computes in float32.
      params: its parameters.
      output: the directory.

    Returns:
      By name of a program, its file, inputs and outputs.

    Raises:
      UserError: for a model with an operation that is not known in ONNX.
    """
    weights = {name: np.asarray(leaf) for name, leaf in by_name(params).items()}
    seen = ("mask_seen",) if "history" in spec.shown else ()
    limits = ("exclude", "masks", "mask", *seen)
    described = {}
    with (output / CONSTANTS).open("wb") as data, programs.portable():
        constants = Constants(data, CONSTANTS)
        for name, function, inputs, outputs in (
            ("users", programs.user_vectors, spec.shown, ("vectors",)),
            ("recommend", _recommend, (*spec.shown, *limits), ("items", "scores")),
            ("score", _score, (*spec.shown, "items"), ("scores",)),
            ("similar", _similar, ("item",), ("items", "scores")),
        ):
            shapes = programs.shapes_of(spec, weights, ("weights", *inputs))
            traced = _traced(functools.partial(function, spec), shapes)
            graph = Graph(name, constants, LOWERINGS)
            given = [graph.of(leaf) for leaf in jax.tree.leaves(weights)]
            given += [graph.input(key, shapes[key].shape, shapes[key].dtype) for key in inputs]
            found = dict(zip(outputs, graph.results(traced, given), strict=True))
            file = output / f"{name}.onnx"
            file.write_bytes(graph.model(found).SerializeToString(deterministic=True))
            described[name] = {
                "file": file.name,
                "inputs": [programs.told(key, shapes[key]) for key in inputs],
                "outputs": [programs.told(key, value) for key, value in found.items()],
            }
    return described


def _traced(function: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    """Returns the jaxpr of a function of named inputs."""

    def program(*arguments: Any) -> Any:
        return function(**dict(zip(inputs, arguments, strict=True)))

    return jax.make_jaxpr(program)(*inputs.values())


def _recommend(
    spec: Spec,
    weights: dict[str, jax.Array],
    exclude: jax.Array,
    masks: jax.Array,
    mask: jax.Array,
    mask_seen: jax.Array | None = None,
    **shown: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    exclude = programs.left_out(exclude, mask_seen, shown)
    users = programs.user_vectors(spec, weights, **shown)
    scores = _scores(users, programs.item_vectors(spec, weights))
    allowed = masks.at[mask].get(mode="promise_in_bounds", wrap_negative_indices=False)
    return _best(jnp.where(allowed, scores, -jnp.inf), exclude, spec.k)


def _score(
    spec: Spec, weights: dict[str, jax.Array], items: jax.Array, **shown: jax.Array
) -> jax.Array:
    vectors = programs.item_vectors(spec, weights)
    return programs.score(spec, weights, vectors, items, **shown)


def _similar(
    spec: Spec, weights: dict[str, jax.Array], item: jax.Array
) -> tuple[jax.Array, jax.Array]:
    units = programs.units(programs.item_vectors(spec, weights))
    rows = jnp.take(units, item, axis=0, mode="clip")
    return _best(_scores(rows, units), item[:, None], spec.k)


def _scores(users: jax.Array, vectors: jax.Array) -> jax.Array:
    return jnp.einsum("bd,nd->bn", users, vectors, preferred_element_type=jnp.float32)


def _best(scores: jax.Array, exclude: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns the k best items of (b, V) scores, all scores at once, and their scores."""
    rows = jnp.arange(scores.shape[0], dtype=jnp.int32)[:, None]
    # Padding is excluded like any other item.
    exclude = jnp.concatenate([exclude, jnp.zeros_like(exclude[:, :1])], axis=1)
    scores = scores.at[rows, exclude].set(
        -jnp.inf, mode="promise_in_bounds", wrap_negative_indices=False
    )
    values, items = lax.top_k(scores, k)
    return jnp.where(values == -jnp.inf, 0, items), values
