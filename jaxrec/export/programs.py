"""A retriever as programs: pure functions of weights and ids, lowered for every kind of device.

This is what they take, in this order, and return. `weights` is a dict of arrays by name. V is the
catalogue with its padding row, num_items + 1; k is fixed; b, l, c, e and g are free, from 1 on.

    items(weights)                              vectors (V, dim), which the others want
    users(weights, SHOWN)                       vectors (b, dim), to search with elsewhere
    recommend(weights, vectors, SHOWN, exclude, masks, mask, mask_seen)
                                                items (b, k) int32, scores (b, k) float32
    score(weights, vectors, SHOWN, items)       scores (b, c) float32
    similar(vectors, item)                      items (b, k) int32, scores (b, k) float32

SHOWN is what the model is shown, `users` (b,) int32 or `history` (b, l) int32: oldest first,
aligned to the right, 0 before it, and l at most the longest history that the model knows.

    exclude (b, e) int32    items to leave out; 0 does nothing
    masks (g, V) bool       lists of items that may be recommended; column 0 does not matter
    mask (b,) int32         the row of `masks` that holds for each row: many share few lists
    mask_seen (b,) bool     leave out what is in the history; only where there is one
    items (b, c) int32      items to score; 0 gives -inf
    item (b,) int32         what to find neighbours of

Lists are sorted by score, ties by item, and end with item 0 and score -inf where nothing is left.
Similarity is the cosine of item vectors, without the columns that are the same for all items.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from jaxrec.functional import Functional
from jaxrec.ops.topk import top_k_dot
from jaxrec.paths import flatten, nest
from jaxrec.typing import Batch, Params, UserError

PLATFORMS = ("cpu", "cuda", "tpu")
_SHOWN = {"users": ("b",), "history": ("b", "l")}


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the programs of a model are made of.

    Attributes:
      model: the model as pure functions.
      shown: batch fields that it recommends from, of "users" and "history".
      num_items: size of the catalogue.
      max_len: the longest history it is shown.
      k: how many items `recommend` and `similar` return.
      chunk: how many items are scored at a time.
    """

    model: Functional
    shown: tuple[str, ...]
    num_items: int
    max_len: int
    k: int
    chunk: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A lowered program.

    Attributes:
      data: what `jax.export.deserialize` reads.
      inputs, outputs: name, shape and dtype of what it takes and returns, in order; a free
        dimension is a letter. The weights have a name alone.
    """

    data: bytes
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]


def by_name(params: Params) -> dict[str, Any]:
    """Returns parameters by the names that they have in an artefact: "blocks.0.norm.scale"."""
    return {path.replace("/", "."): leaf for path, leaf in flatten(params).items()}


def make_programs(spec: Spec, params: Params) -> dict[str, Program]:
    """Lowers the programs of a model; the same model gives the same bytes.

    Args:
      spec: the model.
      params: its parameters, or their shapes: no value of theirs goes into a program.

    Raises:
      UserError: for a model that is shown neither users nor histories.
    """
    if not spec.shown or not set(spec.shown) <= _SHOWN.keys():
        raise UserError(
            f"programs are made for models that are shown {' or '.join(_SHOWN)}; this one is shown "
            f"{', '.join(spec.shown) or 'nothing'}."
        )
    weights = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in by_name(params).items()
    }
    seen = ("mask_seen",) if "history" in spec.shown else ()
    limits = ("exclude", "masks", "mask", *seen)
    given = ("weights", "vectors", *spec.shown)
    made = {}
    with portable():
        for name, function, inputs, outputs in (
            ("items", item_vectors, ("weights",), ("vectors",)),
            ("users", user_vectors, ("weights", *spec.shown), ("vectors",)),
            ("recommend", _recommend, (*given, *limits), ("items", "scores")),
            ("score", score, (*given, "items"), ("scores",)),
            ("similar", _similar, ("vectors", "item"), ("items", "scores")),
        ):
            shapes = shapes_of(spec, weights, inputs)
            made[name] = _lower(functools.partial(function, spec), name, shapes, outputs)
    return made


def shapes_of(spec: Spec, weights: dict[str, Any], inputs: tuple[str, ...]) -> dict[str, Any]:
    """Returns what a program takes, by name."""
    longest = [f"l <= {spec.max_len}"] if "history" in inputs else []
    symbols = export.symbolic_shape("b, l, c, e, g", constraints=longest)
    free = dict(zip("blceg", symbols, strict=True))
    rows = spec.num_items + 1

    def array(dtype: Any, *shape: str | int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct([free.get(str(n), n) for n in shape], dtype)

    shapes = {
        "weights": weights,
        "vectors": jax.eval_shape(functools.partial(item_vectors, spec), weights),
        **{name: array(jnp.int32, *_SHOWN[name]) for name in spec.shown},
        "exclude": array(jnp.int32, "b", "e"),
        "masks": array(jnp.bool_, "g", rows),
        "mask": array(jnp.int32, "b"),
        "mask_seen": array(jnp.bool_, "b"),
        "items": array(jnp.int32, "b", "c"),
        "item": array(jnp.int32, "b"),
    }
    return {name: shapes[name] for name in inputs}


def recommend_with(
    spec: Spec, params: Params, known: jax.Array
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns `recommend` as the model itself answers in this process, of what it is shown.

    Programs in files are compared with it. It takes SHOWN and `exclude` by name, allows the items
    that are known, (V,) bool, and leaves out what is in the history.
    """
    weights = by_name(params)
    masks = known[None]

    def recommend(
        weights: dict[str, jax.Array], exclude: jax.Array, shown: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        vectors, rows = item_vectors(spec, weights), len(exclude)
        seen = jnp.ones(rows, bool) if "history" in shown else None
        which = jnp.zeros(rows, jnp.int32)
        return _recommend(spec, weights, vectors, exclude, masks, which, seen, **shown)

    run = jax.jit(recommend)

    def asked(*, exclude: Any, **shown: Any) -> tuple[jax.Array, jax.Array]:
        with portable():
            return run(weights, exclude, shown)

    return asked


@contextmanager
def portable() -> Iterator[None]:
    """Traces as for a CPU, whose code runs anywhere, and leaves out where the source lies.

    A GPU's fused kernels could not be lowered for the other kinds, and files and lines would make
    the bytes depend on where the package is installed. Products are in the full precision of their
    types: with the TF32 of a GPU or the bfloat16 passes of a TPU, which are the default there,
    scores would depend on the device from the third digit on.
    """
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        cpu = jax.local_devices(backend="cpu")[0]
        with jax.default_device(cpu), jax.default_matmul_precision("highest"):
            yield
    finally:
        jax.config.update(name, before)


def _lower(
    function: Callable[..., Any], name: str, inputs: dict[str, Any], outputs: tuple[str, ...]
) -> Program:
    def program(*arguments: Any) -> Any:
        return function(**dict(zip(inputs, arguments, strict=True)))

    program.__name__ = name
    lowered = export.export(jax.jit(program), platforms=PLATFORMS)(*inputs.values())
    taken = (told(key, value) for key, value in inputs.items())
    given = (told(key, value) for key, value in zip(outputs, lowered.out_avals, strict=True))
    return Program(bytes(lowered.serialize()), tuple(taken), tuple(given))


def told(name: str, value: Any) -> dict[str, Any]:
    """Returns what a manifest says of an input or output; a free size is a letter."""
    if isinstance(value, dict):
        return {"name": name}
    shape = [n if isinstance(n, int) else str(n) for n in value.shape]
    return {"name": name, "shape": shape, "dtype": value.dtype.name}


def _bind(spec: Spec, weights: dict[str, jax.Array]) -> Any:
    return spec.model.bind(nest({name.replace(".", "/"): x for name, x in weights.items()}))


def item_vectors(spec: Spec, weights: dict[str, jax.Array]) -> jax.Array:
    """Returns (V, dim)."""
    return _bind(spec, weights).item_vectors()[: spec.num_items + 1]


def user_vectors(spec: Spec, weights: dict[str, jax.Array], **shown: Any) -> jax.Array:
    """Returns (b, dim)."""
    return _bind(spec, weights).user_vectors(Batch(**shown))


def left_out(
    exclude: jax.Array, mask_seen: jax.Array | None, shown: dict[str, jax.Array]
) -> jax.Array:
    """Returns (b, e + l) items to leave out: those named, and the history where it is masked."""
    if mask_seen is None:
        return exclude
    seen = jnp.where(mask_seen[:, None], shown["history"], 0)
    return jnp.concatenate([exclude, seen], axis=1)


def _recommend(
    spec: Spec,
    weights: dict[str, jax.Array],
    vectors: jax.Array,
    exclude: jax.Array,
    masks: jax.Array,
    mask: jax.Array,
    mask_seen: jax.Array | None = None,
    **shown: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    exclude = left_out(exclude, mask_seen, shown)
    scores, items = top_k_dot(
        user_vectors(spec, weights, **shown),
        vectors,
        spec.k,
        exclude=exclude,
        masks=masks,
        mask=mask,
        chunk=spec.chunk,
    )
    return items, scores


def score(
    spec: Spec,
    weights: dict[str, jax.Array],
    vectors: jax.Array,
    items: jax.Array,
    **shown: jax.Array,
) -> jax.Array:
    """Returns (b, c) scores; -inf of what is no item."""
    scores = jnp.einsum(
        "bd,bcd->bc",
        user_vectors(spec, weights, **shown),
        jnp.take(vectors, items, axis=0, mode="clip"),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return jnp.where((items > 0) & (items <= spec.num_items), scores, -jnp.inf)


def _similar(spec: Spec, vectors: jax.Array, item: jax.Array) -> tuple[jax.Array, jax.Array]:
    vectors = units(vectors)
    rows = jnp.take(vectors, item, axis=0, mode="clip")
    scores, items = top_k_dot(rows, vectors, spec.k, exclude=item[:, None], chunk=spec.chunk)
    return items, scores


def units(vectors: jax.Array) -> jax.Array:
    """Returns (V, dim) vectors of length 1, without the columns that are the same for all items."""
    vectors = vectors.astype(jnp.float32)
    # A column of ones, with which a model adds a bias, would make all items look alike.
    vectors = jnp.where(jnp.any(vectors[1:] != vectors[1:2], axis=0)[None], vectors, 0.0)
    lengths = jnp.sqrt(jnp.sum(jnp.square(vectors), axis=1, keepdims=True))
    return vectors / jnp.where(lengths > 0, lengths, 1.0)
