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
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|NaN|inf")
_NUMBERS = re.compile(rf"\s*[\[(]?\s*(?:(?:{_NUMBER.pattern})[\s,;|]*)+[\])]?\s*")


def content_matrix(
    dataset: Dataset, columns: Sequence[str], *, hashed_width: int = 256
) -> np.ndarray:
    """Returns (num_items + 1, F) float32: what columns of the item vocabulary say.

    A column of number vectors of one length, such as embeddings made elsewhere, is taken as it is;
    an item without one gets zeros. All others are bags of tokens, hashed together into
    `hashed_width` signed places (arXiv 0902.2206): the values of a list, the parts of a text with
    "|" in it, the words of any other text in lower case, or a whole number as one token. Each of
    the two parts of a row has length 1, or 0 where nothing is known, and row 0 is 0.

    Args:
      dataset: with metadata of its items (`prepare.py --items=FILE`).
      columns: of `dataset.item_vocabulary`.
      hashed_width: places of the hashed tokens.

    Raises:
      UserError: for a column that is not there, or of fractions; for vectors of several lengths, or
        with what is no finite number.
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
        rows = _number_lists(column, values, frame["id"])
        if rows is not None:
            vectors.append(_unit(rows))
        elif _has_fractions(column, values):
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
    matrix = np.concatenate(vectors, axis=1)
    return np.concatenate([np.zeros((1, matrix.shape[1]), np.float32), matrix])


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


def _number_lists(column: str, values: pd.Series, ids: pd.Series) -> np.ndarray | None:
    """Returns (N, F) float32 of a column of vectors, zeros where there is none; else None."""
    lists = {
        place: np.asarray(value)
        for place, value in enumerate(values)
        if isinstance(value, list | tuple | np.ndarray) and len(value)
    }
    if not lists or all(array.dtype.kind in "USO" for array in lists.values()):
        return None
    width = len(next(iter(lists.values())))
    rows = np.zeros((len(values), width), np.float32)
    for place, value in enumerate(values):
        array = lists.get(place)
        if array is None:
            if not isinstance(value, list | tuple | np.ndarray) and not pd.isna(value):
                raise _no_vector(column, ids.iloc[place], f"holds {str(value)[:40]!r}")
            continue
        if array.ndim != 1 or array.dtype.kind not in "iuf":
            raise _no_vector(column, ids.iloc[place], "holds something else than numbers")
        if len(array) != width:
            wrong = f"has {len(array)} numbers, and others have {width}"
            raise _no_vector(column, ids.iloc[place], wrong)
        rows[place] = array
        if not np.isfinite(rows[place]).all():
            raise _no_vector(column, ids.iloc[place], "has a number that is not finite")
    return rows


def _no_vector(column: str, item: object, what: str) -> UserError:
    return UserError(
        f"--columns: {column!r} holds vectors, and that of item {item!r} {what}. Give each item as "
        "many finite numbers, or none; tags are texts."
    )


def _has_fractions(column: str, values: pd.Series) -> bool:
    """Whether a column is of numbers with fractions, as numbers or as text.

    Raises:
      UserError: when each text is several such numbers: a vector that was not read as one.
    """
    if pd.api.types.is_numeric_dtype(values.dtype):
        return bool((values.dropna().astype(np.float64) % 1 != 0).any())
    texts = [value for value in values if isinstance(value, str)]
    if not texts or not all(_NUMBERS.fullmatch(text) for text in texts):
        return False
    fractions = any("." in text or "e" in text.lower() for text in texts)
    if fractions and any(len(_NUMBER.findall(text)) > 1 for text in texts):
        raise UserError(
            f"--columns: {column!r} holds several numbers in a text, such as {texts[0][:40]!r}. "
            "Write vectors as [0.1, 0.2], or as lists in a Parquet file."
        )
    return fractions


def _tokens(value: Any) -> Iterable[str]:
    if isinstance(value, list | tuple | np.ndarray):
        return [str(part) for part in value]
    if pd.isna(value):
        return []
    if isinstance(value, float) and value.is_integer():
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
