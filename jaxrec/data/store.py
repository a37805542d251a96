"""Writing a dataset directory so that it appears whole or not at all."""

import dataclasses
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data.dataset import Dataset
from jaxrec.typing import UserError


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


def write_dataset(dataset: Dataset, output: str | Path, *, overwrite: bool = False) -> None:
    """Writes a dataset to a directory, with the cleaning report beside it as `report.json`.

    The files are written to a sibling directory, which takes the output's name when it is whole.
    Whatever stops the writing, the output is the old one or the new one.

    Raises:
      UserError: as `check_output`.
      OSError: when the disk does not take the files; what was written is removed.
    """
    path = check_output(output, overwrite=overwrite)
    with _appearing(path) as partial:
        arrays = {
            "users": dataset.users,
            "items": dataset.items,
            "times": dataset.times,
            "split": dataset.split,
            "labels": dataset.labels,
        }
        for name, array in arrays.items():
            if array is not None:
                _write_array(partial / f"{name}.npy", array)
        dataset.user_vocabulary.to_parquet(partial / "user_vocabulary.parquet", index=False)
        dataset.item_vocabulary.to_parquet(partial / "item_vocabulary.parquet", index=False)
        _write_json(partial / "report.json", dataset.manifest.report)
        _write_json(partial / "manifest.json", dataclasses.asdict(dataset.manifest))


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """Gives an empty sibling directory and renames it to `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            _flush(file)
        _flush(partial)
        if path.is_dir() and any(path.iterdir()):
            old = partial.with_suffix(".old")
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_array(path: Path, array: np.ndarray) -> None:
    # As np.save does, but a full disk keeps its error number, which np.save loses.
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
