"""Writing a dataset directory so that it appears whole or not at all."""

import ctypes
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxrec.typing import UserError

_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux


def check_output(output: str | Path, *, overwrite: bool = False) -> Path:
    """Returns the path when a dataset may be written there.

    Raises:
      UserError: when something is there already and `overwrite` is False, or when what is there is
        no dataset: only datasets are ever overwritten.
    """
    path = Path(output)
    if not path.exists() and not path.is_symlink():
        return path
    if path.is_dir() and not any(path.iterdir()):
        return path
    if not overwrite:
        raise UserError(f"{path} exists already. Choose another output, or say overwrite.")
    if not (path / "manifest.json").is_file():
        raise UserError(f"{path} is no dataset, so it is not overwritten. Choose another output.")
    return path


@contextmanager
def appearing(path: Path) -> Iterator[tuple[Path, Path]]:
    """Gives two empty directories: the first takes the name `path` when the block succeeds.

    The second is for what is needed on the way, on the same disk, and is removed in any case. Both
    lie in a sibling of `path`. What a process left there that was killed is removed first.

    Raises:
      OSError: when the disk does not take the files; what was written is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the process ends, however it ends
        new, work = partial / "new", partial / "work"
        new.mkdir()
        work.mkdir()
        yield new, work
        for file in new.iterdir():
            _flush(file)
        _flush(new)
        _take_place(new, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def write_json(path: Path, value: Any) -> None:
    """Writes a value for people to read."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _take_place(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        old = new.with_name("old")
        path.rename(old)
        new.rename(path)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two directories change names in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _remove_leftovers(path: Path) -> None:
    for partial in path.parent.glob(f".{_escaped(path.name)}.*.partial"):
        lock = os.open(partial, os.O_RDONLY)
        try:
            if not _let_go(lock):
                continue  # its process is at work
            if (partial / "old").exists() and not path.exists():
                (partial / "old").rename(path)
            shutil.rmtree(partial, ignore_errors=True)
        finally:
            os.close(lock)


def _let_go(lock: int) -> bool:
    """Takes a lock that nobody holds; returns False when somebody does."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
