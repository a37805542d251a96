"""Artefacts: what an exported model holds, checked when it is opened, and its programs as methods.

An artefact is a directory that `jaxrec.export.run` writes (docs/export.md says what is in it). It
is data: nothing in it is code of Python's, and nothing is unpickled.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxrec.export.weights import read_weights
from jaxrec.typing import Array, UserError

if TYPE_CHECKING:
    import pandas as pd

    from jaxrec.export.ann import Index

FORMAT = 3
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
GOLDEN, SNAPSHOT, POPULARITY = "golden.json", "snapshot.json", "popularity.npy"
KNOWN_ITEMS, KNOWN_USERS = "known_items.npy", "known_users.npy"
NO_FLATBUFFERS = (
    "jax writes and reads programs with the package flatbuffers, which is not here. Install it: "
    "pip install 'jaxrec[export]'."
)
_BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Artefact:
    """An exported model in memory.

    Indices are from 1 on, and 0 is no item. `jaxrec.export.programs` says what the programs do.

    Attributes:
      path: where it lies.
      manifest: what manifest.json says.
      weights: all parameters by name, on the default device.
      vectors: (num_items + 1, dim) item vectors, there as well.
      programs: "users", "recommend", "score" and "similar" as they are, jitted: they take all
        inputs in the order of the manifest, on the device or not, check nothing, and compile for
        each new shape.
    """

    path: Path
    manifest: Mapping[str, Any]
    weights: Mapping[str, jax.Array]
    vectors: jax.Array
    programs: Mapping[str, Callable[..., Any]]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything in the artefact."""
        return str(self.manifest["fingerprint"])

    @property
    def num_items(self) -> int:
        return int(self.manifest["num_items"])

    @property
    def shown(self) -> tuple[str, ...]:
        """What the model recommends from: "users", "history"."""
        return tuple(self.manifest["shown"])

    @functools.cached_property
    def item_ids(self) -> np.ndarray:
        """(num_items + 1,) text: the original id of each item index, "" at 0."""
        return np.load(self.path / "item_ids.npy")

    @functools.cached_property
    def user_ids(self) -> np.ndarray | None:
        """(num_users + 1,) text: the original ids of users; None if none are known."""
        return np.load(self.path / "user_ids.npy") if "users" in self.shown else None

    @functools.cached_property
    def popularity(self) -> np.ndarray:
        """(num_items + 1,) int64: training events of each item."""
        return np.load(self.path / POPULARITY)

    @functools.cached_property
    def known_items(self) -> np.ndarray:
        """(num_items + 1,) bool: items that were trained, or whose content the model knows.

        The vectors of others are what they were born with, so they are not recommended.
        """
        return np.load(self.path / KNOWN_ITEMS)

    @functools.cached_property
    def known_users(self) -> np.ndarray | None:
        """(num_users + 1,) bool: users that were trained; None if the model knows no users."""
        return np.load(self.path / KNOWN_USERS) if "users" in self.shown else None

    @functools.cached_property
    def golden(self) -> dict[str, Any]:
        """Requests and what was answered when it was made; see `jaxrec.export.golden`."""
        return json.loads((self.path / GOLDEN).read_text(encoding="utf-8"))

    @functools.cached_property
    def snapshot(self) -> dict[str, Any]:
        """How training data and scores were spread; see `jaxrec.export.samples.snapshot_of`."""
        return json.loads((self.path / SNAPSHOT).read_text(encoding="utf-8"))

    def items(self) -> "pd.DataFrame":
        """Returns what is known of items; row i belongs to item i + 1."""
        import pandas as pd

        return pd.read_parquet(self.path / "items.parquet")

    def recommend(
        self,
        *,
        history: Array | None = None,
        users: Array | None = None,
        exclude: Array | None = None,
        masks: Array | None = None,
        mask: Array | None = None,
        mask_seen: bool | Array = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Recommends to b users.

        Args:
          history: (b, l) int32, for models that are shown histories: oldest first, aligned to the
            right, 0 before it; l at most `manifest["max_len"]`.
          users: (b,) int32, for models that are shown users.
          exclude: (b, e) int32, items to leave out; 0 does nothing.
          masks: (g, num_items + 1) bool, lists of items that may be recommended; all by default.
            Items that the model does not know are left out of each.
          mask: (b,) int32, the list that holds for each user; the first by default.
          mask_seen: bool or (b,) bool: leave out what is in the history.

        Returns:
          Items (b, k) int32, best first, and their scores (b, k) float32; 0 and -inf where fewer
          than k are left.

        Raises:
          UserError: for a shape, type or index that does not fit.
        """
        shown = self._shown(history, users)
        rows = np.shape(next(iter(shown.values())))[:1]
        if exclude is None:
            exclude = np.zeros((*rows, 1), np.int32)
        masks = self._everything if masks is None else self._known(masks)
        if mask is None:
            mask = np.zeros(rows, np.int32)
        if np.ndim(mask_seen) == 0:
            mask_seen = np.full(rows, mask_seen)
        limits = {"exclude": exclude, "masks": masks, "mask": mask, "mask_seen": mask_seen}
        result: tuple[jax.Array, jax.Array] = self._call("recommend", {**shown, **limits})
        return result

    def score(
        self, items: Array, *, history: Array | None = None, users: Array | None = None
    ) -> jax.Array:
        """Returns (b, c) float32 scores of items (b, c) int32. Raises UserError.

        They are -inf at 0 and of items that the model does not know.
        """
        found = self._call("score", {**self._shown(history, users), "items": items})
        return jnp.where(self._everything[0][jnp.asarray(items)], found, -jnp.inf)

    def similar(self, items: Array) -> tuple[jax.Array, jax.Array]:
        """Returns the k items most like each of items (b,) int32, and cosines. Raises UserError.

        Items that the model does not know are left out, and 0 and -inf fill up the end.
        """
        found, cosines = self._call("similar", {"item": items})
        kept = self._everything[0][found]
        order = jnp.argsort(~kept, axis=1, stable=True)
        found, cosines = jnp.where(kept, found, 0), jnp.where(kept, cosines, -jnp.inf)
        return jnp.take_along_axis(found, order, 1), jnp.take_along_axis(cosines, order, 1)

    def user_vectors(
        self, *, history: Array | None = None, users: Array | None = None
    ) -> jax.Array:
        """Returns (b, dim) vectors whose products with `vectors` are scores. Raises UserError."""
        result: jax.Array = self._call("users", self._shown(history, users))
        return result

    def search_ann(
        self,
        *,
        history: Array | None = None,
        users: Array | None = None,
        exclude: Array | None = None,
        masks: Array | None = None,
        mask: Array | None = None,
        mask_seen: bool | Array = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Recommends as `recommend` does, with the index of an export with --ann, on the CPU.

        It misses what the manifest says. Of items that are left out more are missed, as they are
        dropped from what was found: see `jaxrec.export.ann.Index.search_among`.

        Raises:
          UserError: as `recommend`, without an index, or without faiss.
        """
        vectors = np.asarray(self.user_vectors(history=history, users=users), np.float32)
        rows = len(vectors)
        left_out = [np.zeros((rows, 1), np.int32) if exclude is None else np.asarray(exclude)]
        if history is not None:
            left_out.append(np.where(np.reshape(mask_seen, (-1, 1)), np.asarray(history), 0))
        masks = self._everything if masks is None else self._known(masks)
        mask = np.zeros(rows, np.int32) if mask is None else mask
        excluded = np.concatenate(left_out, axis=1)
        return self._index.search_among(
            vectors, int(self.manifest["k"]), excluded, np.asarray(masks), np.asarray(mask)
        )

    @functools.cached_property
    def _index(self) -> "Index":
        from jaxrec.export.ann import read_index

        told = self.manifest.get("ann")
        if told is None:
            raise UserError(f"{self.path} has no index. Export the model with --ann=hnsw.")
        return read_index(self.path / told["file"], told["kind"], told["effort"])

    @functools.cached_property
    def _everything(self) -> jax.Array:
        return jnp.asarray(self.known_items)[None]

    def _known(self, masks: Array) -> Array:
        """Returns lists without what the model does not know; lists of a wrong kind as they are."""
        fits = np.ndim(masks) == 2 and masks.shape[1] == self.num_items + 1
        return masks & self._everything if fits and masks.dtype == np.bool_ else masks

    def _shown(self, history: Array | None, users: Array | None) -> dict[str, Array]:
        given = {"users": users, "history": history}
        there = {name: value for name, value in given.items() if value is not None}
        if there.keys() != set(self.shown):
            raise UserError(
                f"this model recommends from {' and '.join(self.shown)}; got "
                f"{' and '.join(there) or 'neither'}."
            )
        return {name: there[name] for name in self.shown}

    def _call(self, program: str, given: Mapping[str, Any]) -> Any:
        sizes: dict[str, int] = {}
        fixed = {"weights": self.weights, "vectors": self.vectors}
        arguments: list[Any] = []
        for told in self.manifest["programs"][program]["inputs"]:
            name = told["name"]
            arguments.append(fixed[name] if name in fixed else self._fit(told, given[name], sizes))
        return self.programs[program](*arguments)

    def _fit(self, told: Mapping[str, Any], value: Any, sizes: dict[str, int]) -> Array:
        """Returns an input as the program wants it; `sizes` are those of its free dimensions."""
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        name, shape, dtype = told["name"], told["shape"], np.dtype(told["dtype"])
        fits = len(array.shape) == len(shape) and np.can_cast(array.dtype, dtype, "same_kind")
        if fits:
            wanted = [
                sizes.setdefault(n, max(size, 1)) if isinstance(n, str) else n
                for n, size in zip(shape, array.shape, strict=True)
            ]
            fits = wanted == list(array.shape)
        if not fits:
            asked = ", ".join(str(sizes.get(n, n)) for n in shape)
            raise UserError(
                f"{name} must be {dtype.name} of shape ({asked}), no size 0; got {array.dtype} of "
                f"shape {array.shape}."
            )
        longest = self.manifest["max_len"]
        if name == "history" and array.shape[1] > longest:
            raise UserError(
                f"history has {array.shape[1]} columns and this model reads {longest}. Give the "
                "newest ones."
            )
        if dtype == np.int32 and array.size:
            most = {"mask": sizes.get("g", 1) - 1, "users": self.manifest["num_users"]}
            low, high = int(array.min()), int(array.max())
            if low < 0 or high > most.get(name, self.num_items):
                raise UserError(
                    f"{name} must lie between 0 and {most.get(name, self.num_items)}; got "
                    f"{low if low < 0 else high}."
                )
        return array.astype(dtype)


def load_artefact(path: str | Path) -> Artefact:
    """Opens an artefact, after checking every file of it.

    Raises:
      UserError: when it is no artefact, a file is missing or damaged, or it was made for other
        versions of jaxrec or jax than are here.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    for name, told in manifest["files"].items():
        if Path(name).name != name:
            raise UserError(f"{path / MANIFEST} names a file elsewhere, {name!r}: do not trust it.")
        _check_file(path / name, told)
    if not manifest["programs"]:
        raise UserError(
            f"{path} has weights and no programs. Export it with --format=stablehlo to run it."
        )
    return open_programs(path, manifest)


def open_programs(path: Path, manifest: Mapping[str, Any]) -> Artefact:
    """Opens an artefact whose files are known to be right, or that is still being written.

    Raises:
      UserError: when the programs were made for other versions of jax than are here.
    """
    exported = {
        name: _deserialize(path / told["file"], manifest)
        for name, told in manifest["programs"].items()
    }
    # Copies: a file that is written over would take mapped weights with it.
    weights = {name: jnp.array(value) for name, value in read_weights(path / WEIGHTS).items()}
    programs = {name: jax.jit(program.call) for name, program in exported.items()}
    vectors = programs.pop("items")(weights)
    return Artefact(path, manifest, weights, vectors, programs)


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a manifest without its fingerprint, and so of all files in it."""
    rest = {key: value for key, value in manifest.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def describe_file(path: Path) -> dict[str, Any]:
    """Returns the size and the SHA-256 of a file, as a manifest tells them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} is no artefact (it has no {MANIFEST}). Make one with scripts/export.py "
            "--workdir=RUN --output=DIR."
        ) from None
    except ValueError as error:
        raise _damaged(file, str(error)) from None
    if not isinstance(manifest, dict) or manifest.get("kind") != "jaxrec artefact":
        raise UserError(
            f"{path} is no artefact: its {MANIFEST} is of something else. Make one with "
            "scripts/export.py --workdir=RUN --output=DIR."
        )
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path} is an artefact of format {manifest.get('format')}, by jaxrec "
            f"{manifest.get('jaxrec')}; this version reads format {FORMAT}. Export the model again "
            "with this version, or run it with that one."
        )
    if manifest.get("fingerprint") != fingerprint_of(manifest):
        raise _damaged(file, "it has another fingerprint than it says")
    return manifest


def _check_file(path: Path, told: Mapping[str, Any]) -> None:
    try:
        found = describe_file(path)
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    for what in ("bytes", "sha256"):
        if found[what] != told[what]:
            raise _damaged(path, f"{what} {found[what]}, and the manifest says {told[what]}")


def _deserialize(path: Path, manifest: Mapping[str, Any]) -> export.Exported:
    try:
        return export.deserialize(bytearray(path.read_bytes()))
    except ImportError:
        raise UserError(NO_FLATBUFFERS) from None
    except Exception as error:
        raise UserError(
            f"{path} was made with jax {manifest['jax']}, and jax {jax.__version__} does not read "
            f"it ({error}). Export the model again with this version, or install that one."
        ) from None


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is missing or damaged ({reason}). Copy or export the artefact again.")
