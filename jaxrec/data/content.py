"""What is known of items as vectors: columns of the item vocabulary, hashed or as they are.

Hashes do not depend on the catalogue: an attribute or a word that two catalogues share is at the
same place in both.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxrec import config as configs
from jaxrec.data.dataset import Dataset
from jaxrec.typing import UserError

_WORD = re.compile(r"\w+")


def content_matrix(
    dataset: Dataset, columns: Sequence[str], *, hashed_width: int = 256
) -> np.ndarray:
    """Returns (num_items + 1, F) float32: what columns of the item vocabulary say.

    A column of number vectors of one length, such as embeddings made elsewhere, is taken as it is.
    All others are bags of tokens, hashed together into `hashed_width` signed places
    (arXiv 0902.2206): the values of a list, the parts of a text with "|" in it, the words of any
    other text in lower case, or a whole number as one token. Each of the two parts of a row has
    length 1, or 0 where nothing is known, and row 0 is 0.

    Args:
      dataset: with metadata of its items (`prepare.py --items=FILE`).
      columns: of `dataset.item_vocabulary`.
      hashed_width: places of the hashed tokens.

    Raises:
      UserError: for a column that is not there, or of fractions.
    """
    frame, vectors, tokens = dataset.item_vocabulary, [], []
    for column in columns:
        if column not in frame or column == "id":
            there = ", ".join(str(name) for name in frame if name != "id") or "none"
            raise UserError(
                f"--columns: the item vocabulary has no metadata {column!r}; it has: {there}. "
                "Metadata is joined by scripts/prepare.py --items=FILE."
            )
        values = frame[column]
        if _is_vectors(values):
            vectors.append(_unit(np.asarray(values.tolist(), np.float32)))
        elif pd.api.types.is_float_dtype(values) and (values.dropna() % 1 != 0).any():
            raise UserError(
                f"--columns: {column!r} holds fractions. Cut them into ranges with names, or give "
                "vectors."
            )
        else:
            tokens.append([{f"{column}={t}" for t in _tokens(value)} for value in values])
    if tokens:
        joined = [set().union(*parts) for parts in zip(*tokens, strict=True)]
        vectors.append(_unit(_hashed(joined, hashed_width)))
    if not vectors:
        raise UserError("--columns is empty. Name at least one column of the item vocabulary.")
    rows = np.concatenate(vectors, axis=1)
    return np.concatenate([np.zeros((1, rows.shape[1]), np.float32), rows])


def write_content(
    dataset: Dataset, output: str | Path, columns: Sequence[str], *, hashed_width: int = 256
) -> None:
    """Writes `content_matrix` to a directory: content.npy, and content.json with whose it is."""
    matrix = content_matrix(dataset, columns, hashed_width=hashed_width)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    configs.write_array(output / "content.npy", matrix)
    told = {
        "items": dataset.manifest.item_fingerprint,
        "columns": list(columns),
        "hashed_width": hashed_width,
    }
    configs.write_whole(output / "content.json", json.dumps(told, indent=2) + "\n")


def read_content(directory: str | Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the matrix, memory-mapped, and what content.json says. Raises UserError."""
    try:
        told: dict[str, Any] = json.loads((Path(directory) / "content.json").read_text())
        return np.load(Path(directory) / "content.npy", mmap_mode="r"), told
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{directory} holds no whole content ({error}). Write it: scripts/content.py "
            f"--data=DIR --columns=NAME --output={directory}."
        ) from None


def _is_vectors(values: pd.Series) -> bool:
    """Whether all values are float arrays of one length."""
    arrays = [np.asarray(v) for v in values if isinstance(v, list | tuple | np.ndarray)]
    return (
        len(arrays) == len(values)
        and all(a.ndim == 1 and a.dtype.kind == "f" for a in arrays)
        and len({len(a) for a in arrays}) == 1
    )


def _tokens(value: Any) -> Iterable[str]:
    if isinstance(value, list | tuple | np.ndarray):
        return [str(part) for part in value]
    if pd.isna(value):
        return []
    if isinstance(value, float):
        return [str(int(value))]  # a column of whole numbers in which some are missing
    text = str(value)
    return [t.strip() for t in text.split("|")] if "|" in text else _WORD.findall(text.lower())


def _hashed(rows: Sequence[Iterable[str]], width: int) -> np.ndarray:
    found = np.zeros((len(rows), width), np.float32)
    places: dict[str, tuple[int, float]] = {}
    for row, tokens in zip(found, rows, strict=True):
        for token in tokens:
            if token not in places:
                digest = hashlib.blake2b(token.encode(), digest_size=8).digest()
                number = int.from_bytes(digest, "little")
                places[token] = (number >> 1) % width, 1.0 if number & 1 else -1.0
            place, sign = places[token]
            row[place] += sign
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)
