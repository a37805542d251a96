"""Checkpoints: Orbax directories with the state, the config, the vocabulary and the position."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxrec.optim import table_of
from jaxrec.training.processes import another_has_gone, gone
from jaxrec.training.record import best_step
from jaxrec.typing import UserError

SKIP: Any = ocp.PLACEHOLDER  # in place of an array that `Checkpoints.restore` should leave out


class KeepLastAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the newest `keep_last` checkpoints and the one of step `best`."""

    def __init__(self, keep_last: int):
        self.keep_last = keep_last
        self.best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        newest = len(checkpoints) - self.keep_last
        return [i >= newest or c.step == self.best for i, c in enumerate(checkpoints)]


class Checkpoints:
    """The checkpoints of a workdir, by step. Saving is asynchronous and atomic.

    One that is opened `read_only` leaves alone what a run beside it is about to save.
    """

    def __init__(self, directory: str | Path, *, keep_last: int = 2, read_only: bool = False):
        self.directory = Path(directory).absolute()
        self._policy = KeepLastAndBest(keep_last)
        with _explained(self.directory):
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._policy,
                    # Orbax's own read_only does the same, with warnings.
                    cleanup_tmp_directories=not read_only,
                    create=not read_only,
                ),
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Returns the steps that have a whole checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, meta: dict[str, Any], *, best: int | None) -> None:
        """Starts saving; the checkpoint of step `best` is kept as well as the newest ones."""
        self._policy.best = best
        with _explained(self.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)
                ),
            )

    def wait(self) -> None:
        """Waits until what was saved is whole on disk."""
        with _explained(self.directory):
            self._manager.wait_until_finished()

    def meta(self, step: int) -> dict[str, Any]:
        """Returns what `save` was given as meta."""
        with self._damage(step):
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            return dict(self._manager.restore(step, args=args)["meta"])

    def restore(self, step: int, like: Any = None) -> Any:
        """Returns the state of a step in the structure, shapes, dtypes and shardings of `like`.

        Whatever mesh wrote it: rows at the end of a table that only make parts equal are cut off,
        or added with zeros. Nothing else may have another shape.

        Args:
          like: a tree of arrays or of `jax.ShapeDtypeStruct`. Those without a sharding come to one
            device of this process, and `SKIP` leaves an array out. None takes the state as it was
            written, as nested dicts.
        """
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def wanted(leaf: Any) -> Any:
            if leaf is SKIP:
                return ocp.RestoreArgs()
            if isinstance(leaf, np.ndarray):
                return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
            return ocp.ArrayRestoreArgs(
                sharding=getattr(leaf, "sharding", None) or here,
                global_shape=leaf.shape,
                dtype=leaf.dtype,
                strict=False,
            )

        with self._damage(step):
            if like is None:
                like = self._manager.item_metadata(step)["state"].tree
                like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
            self._check_shapes(step, like)
            restore = ocp.args.PyTreeRestore(like, restore_args=jax.tree.map(wanted, like))
            args = ocp.args.Composite(state=restore)
            restored = self._manager.restore(step, args=args)["state"]
            return jax.tree.map(_writable, like, restored)

    def _check_shapes(self, step: int, like: Any) -> None:
        """Refuses arrays of other shapes than were saved, but for rows of tables."""
        tree = self._manager.item_metadata(step)["state"].tree
        saved = {_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(like):
            if leaf is SKIP or _name(path) not in saved:
                continue
            there, wanted = tuple(saved[_name(path)]), tuple(leaf.shape)
            rows = table_of(path) is not None and len(there) == len(wanted) > 0
            if there != wanted and not (rows and there[1:] == wanted[1:]):
                raise UserError(
                    f"the checkpoint of step {step} in {self.directory} has {_name(path)} of shape "
                    f"{there}, and {wanted} is wanted. Use the config that it was written with."
                )

    def close(self) -> None:
        """Waits and releases threads."""
        with _explained(self.directory):
            self._manager.close()

    @contextlib.contextmanager
    def _damage(self, step: int) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if another_has_gone(error):
                raise gone(error) from None
            others = [s for s in self.steps() if s != step]
            instead = f"to fall back to step {others[-1]}" if others else "to start again"
            raise UserError(
                f"the checkpoint of step {step} is damaged ({_first_line(error)}). Remove "
                f"{self.directory / str(step)} {instead}."
            ) from error


@contextlib.contextmanager
def open_checkpoint(
    workdir: str | Path, step: int | None = None
) -> Iterator[tuple[Checkpoints, int]]:
    """Gives the checkpoints of a workdir, which are only read, and the step to take.

    Args:
      step: a checkpoint's step; None takes the best one, or the newest without validation.

    Raises:
      UserError: when there is no checkpoint, or none of that step.
    """
    directory = Path(workdir) / "checkpoints"
    nothing = f"{workdir} has no checkpoint yet. Train first: scripts/train.py."
    if not directory.is_dir():
        raise UserError(nothing)
    with Checkpoints(directory, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(nothing)
        if step is None:
            best = best_step(workdir, steps[-1], checkpoints.meta(steps[-1]))
            step = best if best in steps else steps[-1]
        elif step not in steps:
            raise UserError(f"{workdir} has no checkpoint of step {step}; it has {steps}.")
        yield checkpoints, step


def _writable(like: Any, leaf: Any) -> Any:
    """Returns a table for the host's memory with the rows that are wanted; other leaves as is."""
    if not isinstance(like, np.ndarray) or not like.ndim:
        return leaf
    missing = max(0, len(like) - len(leaf))
    padded = np.pad(leaf[: len(like)], [(0, missing)] + [(0, 0)] * (like.ndim - 1))
    return np.require(padded if missing else leaf[: len(like)], requirements="W")


def _name(path: Any) -> str:
    """Returns the path of a leaf, however the containers around it say their keys."""
    keys = (getattr(e, "key", getattr(e, "name", getattr(e, "idx", ""))) for e in path)
    return "/".join(map(str, keys))


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turns whatever the storage raises into one sentence: it has many ways to say disk full."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if another_has_gone(error):
            raise gone(error) from None
        raise UserError(
            f"could not save a checkpoint in {directory}: {_cause(error)}. Make room or "
            "choose another --workdir; the same command goes on from the last whole checkpoint."
        ) from error


def _cause(error: BaseException) -> str:
    """Returns what the operating system said, if it is in there, or else the first line."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else _first_line(error)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
