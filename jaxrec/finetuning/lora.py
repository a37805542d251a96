"""Low-rank adapters: a change of a trunk's matrices in a few per cent of their parameters.

config = LoRA(model=sasrec.Config(...), rank=8)
adapted = functional_of(config)              # trains as any model does; the trunk stays fixed
save_adapter("shop.npz", config, params)     # kilobytes
config, params = load_adapter("shop.npz", trunk_config, trunk)
trunk_config, trunk = merge(config, params)  # a plain model again
"""

import dataclasses
import hashlib
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import config as configs
from jaxrec.functional import Functional, functional_of, reparametrise
from jaxrec.layers.embedding import CodedTable, look_up
from jaxrec.models.wrapper import Wrapper
from jaxrec.ops.keys import Stream, nth, stream
from jaxrec.paths import divide, flatten, nest, select, unite
from jaxrec.typing import Array, Batch, Params, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(Wrapper):
    """A model with low-rank adapters (arXiv 2106.09685); the config of a model, as its trunk's is.

    A matrix W acts as W + alpha / rank * A B. Before training the product is 0, so that the model
    gives what its trunk gives. A table has a row of A for each of its rows, which the touched-rows
    step takes along.

    Differs from the paper: dropout zeroes columns of the adapter's input for a whole step and not
    element by element, as weights know no batch; adapters of tables have none.

    Attributes:
      model: the trunk's config.
      rank: columns of A, from 1 to the smaller side of each matrix.
      alpha: strength; what is added is alpha / rank times the product.
      dropout: share of an adapter's inputs that a step leaves out, in [0, 1).
      on: the matrices that get one: paths, beginnings of paths or globs. "items/table" is a table.
      also: further parameters of the trunk that are trained, such as "*/bias".
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    on: tuple[str, ...] = ("*/kernel",)
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1; got {self.rank}.")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be above 0, to do something; got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); got {self.dropout}.")

    def functional(self) -> Functional:
        """Returns the model; trunk and adapters lie in one tree, side by side.

        Raises:
          UserError: when a pattern matches nothing or no matrix, a matrix is too small, or the
            model has adapters already.
        """
        trunk = functional_of(self.model)
        shapes = flatten(trunk.shapes)
        if any(path.endswith("_lora") for path in shapes):
            raise UserError(
                "the model of LoRA has adapters already (a LoRA inside). Train those, without "
                "lora.rank, or merge them into their trunk first."
            )
        if not all(jnp.issubdtype(shape.dtype, jnp.floating) for shape in shapes.values()):
            inner = type(self.model).__name__
            raise UserError(
                f"LoRA of a {inner}, whose parameters are integers. Put it inside, where matrices "
                f"are: {inner}(model=LoRA(...))."
            )
        matrices = self._matrices(shapes)
        trained = select(self.also, shapes, option="lora.also") - trunk.frozen

        def init(key: jax.Array) -> Params:
            new = {}
            for number, (path, shape) in enumerate(sorted(matrices.items())):
                left, right = _names(path)
                drawn = nth(stream(key, Stream.ADAPTERS), number)
                inner, outer = (shape[0], self.rank), (self.rank, shape[1])
                if _is_table(path):  # a row that is never touched must stay as it is
                    new[left] = jnp.zeros(inner)
                    new[right] = jax.random.normal(drawn, outer) * self.rank**-0.5
                else:
                    new[left] = jax.random.normal(drawn, inner) * shape[0] ** -0.5
                    new[right] = jnp.zeros(outer)
            return unite(trunk.init(key), nest(new))

        def expand(params: Params, key: jax.Array | None) -> Params:
            return self._expand(params, sorted(matrices), key)

        return reparametrise(trunk, init, expand, frozen=shapes.keys() - trained)

    def _expand(self, params: Params, paths: Sequence[str], key: jax.Array | None) -> Params:
        """Returns the trunk's parameters with the products added to those at `paths`."""
        flat = flatten(params)
        for number, path in enumerate(paths):
            a, b = (flat.pop(name) for name in _names(path))
            if key is not None and self.dropout and not _is_table(path):
                drawn = nth(key, number)
                kept = jax.random.bernoulli(drawn, 1 - self.dropout, (len(a), 1))
                a = jnp.where(kept, a / (1 - self.dropout), 0)
            adapted = _Adapted(flat[path], a, b, self.alpha / self.rank)
            flat[path] = adapted if _is_table(path) else adapted.whole()
        return nest(flat)

    def _matrices(self, shapes: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        if not self.on:
            raise UserError(
                "lora.on is empty. Say which matrices get adapters, such as '*/kernel'."
            )
        chosen = select(self.on, shapes, option="lora.on")
        matrices = {p: shapes[p].shape for p in sorted(chosen) if len(shapes[p].shape) == 2}
        if not matrices:
            raise UserError(f"lora.on={self.on} matches no matrix, only {sorted(chosen)[:3]}.")
        for path, shape in matrices.items():
            if self.rank > min(shape):
                raise UserError(
                    f"lora.rank={self.rank} is above what {path!r} of {shape[0]} x {shape[1]} can "
                    f"have. Choose at most {min(shape)}, or other matrices by lora.on."
                )
        return matrices


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Adapted:
    """A matrix and what is added to it; as a `CodedTable`, only rows that are asked for are made.

    Attributes:
      matrix: (V, D), coded or not.
      left: (V, rank).
      right: (rank, D).
      scale: of the product.
    """

    matrix: jax.Array | CodedTable
    left: jax.Array | CodedTable
    right: jax.Array
    scale: float = dataclasses.field(metadata={"static": True})

    def rows(self, ids: Array) -> jax.Array:
        """Returns vectors of shape ids.shape + (D,)."""
        matrix, left = look_up(self.matrix, ids), look_up(self.left, ids)
        return _Adapted(matrix, left, self.right, self.scale).whole()

    def whole(self) -> jax.Array:
        """Returns all rows, (V, D)."""
        change = jnp.dot(look_up(self.left), self.right, preferred_element_type=jnp.float32)
        return look_up(self.matrix).astype(jnp.float32) + jnp.float32(self.scale) * change


def _names(path: str) -> tuple[str, str]:
    """Returns the paths of A and B beside a matrix; A of a table is further columns of it."""
    parent = path.rpartition("/")[0]
    return f"{path}_lora", f"{parent}/lora_of_table" if _is_table(path) else f"{path}_lora_out"


def _is_table(path: str) -> bool:
    return path.endswith("/table")


def merge(config: LoRA, params: Params) -> tuple[Any, Params]:
    """Returns the trunk's config, and its parameters with the adapters added in.

    Args:
      config: the fitted config of the adapted model.
      params: its parameters.
    """
    adapted = [name.removesuffix("_lora") for name in flatten(params) if name.endswith("_lora")]
    flat = flatten(config._expand(params, sorted(adapted), None))
    tables = {path: leaf.whole() for path, leaf in flat.items() if isinstance(leaf, _Adapted)}
    return config.model, nest(flat | tables)


def split_adapter(config: LoRA, params: Params) -> tuple[Params, Params]:
    """Returns what is fixed of an adapted model's parameters, and what was trained."""
    return divide(params, functional_of(config).frozen)


def save_adapter(path: str | Path, config: LoRA, params: Params) -> None:
    """Writes what was trained, without the trunk, and which trunk it belongs to.

    Args:
      path: an .npz file; it appears whole or not at all.
      config: the fitted config of the adapted model.
      params: its parameters.
    """
    trunk, trained = split_adapter(config, params)
    about = {**_options(config), "trunk": trunk_fingerprint(trunk)}
    # An .npz file knows no bfloat16, which float32 holds exactly.
    arrays = {name: np.asarray(leaf, np.float32) for name, leaf in flatten(trained).items()}
    with configs.whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **{_ABOUT: np.array(json.dumps(about))}, **arrays)


def load_adapter(path: str | Path, model: Any, trunk: Params) -> tuple[LoRA, Params]:
    """Returns the config and the parameters of a trunk with an adapter that `save_adapter` wrote.

    Args:
      path: the file.
      model: the fitted config of the trunk.
      trunk: the trunk's parameters.

    Raises:
      UserError: for a file that is absent or damaged, or an adapter of another trunk.
    """
    try:
        with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            about = json.loads(str(file[_ABOUT]))
            arrays = {name: file[name] for name in file.files if name != _ABOUT}
        fingerprint = about.pop("trunk")
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in about.items()
        }
        config = LoRA(model=model, **options)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Write an adapter with save_adapter.") from None
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no adapter, or is damaged ({error}).") from None
    fixed = divide(trunk, arrays)[1]
    if fingerprint != trunk_fingerprint(fixed):
        raise UserError(
            f"{path} was trained on another trunk (fingerprint {fingerprint[:12]}, here "
            f"{trunk_fingerprint(fixed)[:12]}). Use the run that it was trained from."
        )
    return config, unite(fixed, nest({name: jnp.asarray(x) for name, x in arrays.items()}))


def trunk_fingerprint(trunk: Params) -> str:
    """Returns the SHA-256 of the names, shapes and values of parameters."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(trunk).items()):
        value = np.ascontiguousarray(leaf)
        digest.update(f"{name} {value.shape} {value.dtype}\n".encode())
        digest.update(value.view(np.uint8))
    return digest.hexdigest()


def user_vectors_each(
    config: LoRA, trunk: Params, adapters: Sequence[Params], which: Array, batch: Batch
) -> jax.Array:
    """Returns (B, D): the user's vector of each row by an adapter of its own, as serving wants it.

    Args:
      config: the fitted config, the same for all adapters.
      trunk: what is fixed of the parameters, as `split_adapter` returns it.
      adapters: what was trained, one for each adapter.
      which: (B,) int32 numbers of adapters.
      batch: B rows.

    Raises:
      UserError: for adapters of tables, of which each row would want a table of its own.
    """
    tables = [name for name in flatten(adapters[0]) if name.endswith("/table_lora")]
    if tables:
        raise UserError(
            f"an adapter of a table ({tables[0]}) cannot be chosen row by row. Put adapters on "
            "kernels, or serve one adapter a batch."
        )
    model = functional_of(config)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)

    def one(number: jax.Array, row: Batch) -> jax.Array:
        mine = jax.tree.map(lambda leaf: leaf[number], stacked)
        alone = jax.tree.map(lambda leaf: leaf[None], row)
        return model.apply(unite(trunk, mine), alone, method="user_vectors")[0]

    return jax.vmap(one)(jnp.asarray(which), batch)


_ABOUT = "about"


def _options(config: LoRA) -> dict[str, Any]:
    names = ("rank", "alpha", "dropout", "on", "also")
    return {name: getattr(config, name) for name in names}
