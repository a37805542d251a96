"""What the rows of new things start with: sparse mixtures of the rows of old ones."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy import sparse

from jaxrec.data.dataset import TRAIN, Dataset
from jaxrec.data.spool import Column, whole_users
from jaxrec.typing import UserError

type _Block = np.ndarray | sparse.csr_array

_CELLS = 1 << 24  # similarities held at a time
_ROWS = 1 << 20  # rows of a table that are looked at together


def by_neighbours(
    dataset: Dataset, rows: np.ndarray, num_rows: int, window: int
) -> sparse.csr_array:
    """Mixes the rows of old items that occur around a new one in the histories.

    Args:
      dataset: its training events are looked at.
      rows: (items + 1,) int64, the old row of each item, -1 for new ones.
      num_rows: rows of the old table.
      window: how many events before and after count as around.

    Returns:
      (new items, num_rows) float32; a row sums to 1, or is empty without any neighbour. An item
      that occurs twice as often counts twice.
    """
    number = np.cumsum(rows < 0) - 1  # of an item among the new ones
    found = sparse.csr_array((int((rows < 0).sum()), num_rows), dtype=np.float32)
    for where in whole_users(cast(Column, dataset.users)):
        trains = np.asarray(dataset.split[where]) == TRAIN
        users = np.asarray(dataset.users[where])[trains]
        items = np.asarray(dataset.items[where])[trains]
        new, old = [], []
        for distance in range(1, window + 1):
            same = users[distance:] == users[:-distance]
            pair = items[:-distance][same], items[distance:][same]
            for one, other in (pair, pair[::-1]):
                counts = (rows[one] < 0) & (rows[other] > 0)
                new.append(number[one[counts]])
                old.append(rows[other[counts]])
        at = np.concatenate(new), np.concatenate(old)
        found = found + sparse.csr_array((np.ones(len(at[0]), np.float32), at), found.shape)
    return _to_one(found)


def by_content(
    old: pd.DataFrame, new: pd.DataFrame, rows: np.ndarray, nearest: int
) -> sparse.csr_array:
    """Mixes the rows of the items whose metadata is nearest by cosine, weighted by it.

    Args:
      old, new: vocabularies with metadata; see `content`.
      rows: (items + 1,) int64, the old row of each item of `new`, -1 for new ones.
      nearest: how many old items are mixed.

    Returns:
      (new items, len(old) + 1) float32; a row sums to 1, or is empty when no old item is alike.

    Raises:
      UserError: when the vocabularies have no metadata in common that can be compared.
    """
    fresh = np.flatnonzero(rows[1:] < 0)
    blocks = content(old, new.iloc[fresh])
    # Of all blocks together, a row has as many units of length as it has blocks.
    lengths = [np.sqrt(sum(_has(side) for side in sides)) for sides in zip(*blocks, strict=True)]
    known, wanted = (np.where(length > 0, length, 1).astype(np.float32) for length in lengths)
    parts, nearest = [], min(nearest, len(old))
    step = max(1, _CELLS // max(1, len(old)))
    for start in range(0, len(fresh), step):
        part = slice(start, start + step)
        alike = sum(_dense(new_side[part] @ old_side.T) for old_side, new_side in blocks)
        alike = (alike / known / wanted[part, None]).clip(min=0)
        chosen = np.argpartition(-alike, nearest - 1, axis=1)[:, :nearest]
        weights = np.take_along_axis(alike, chosen, axis=1)
        at = np.repeat(np.arange(len(chosen)), nearest), chosen.ravel() + 1
        shape = (len(chosen), len(old) + 1)
        mixed = sparse.csr_array((weights.ravel().astype(np.float32), at), shape)
        mixed.eliminate_zeros()
        parts.append(mixed)
    if not parts:
        return sparse.csr_array((0, len(old) + 1), dtype=np.float32)
    return _to_one(sparse.csr_array(sparse.vstack(parts)))


def content(old: pd.DataFrame, new: pd.DataFrame) -> Sequence[tuple[_Block, _Block]]:
    """Returns content vectors of two vocabularies, a pair of (rows, features) for each column.

    Rows have length 1, or 0 without any content. Columns count that both have and that can be
    compared: lists of numbers, all as long, are vectors; texts, split at "|", and lists of texts
    are sets of attributes, of which those count that some old item has. A column whose values all
    differ, such as a title, says nothing and is left out.

    Raises:
      UserError: when there is no such column.
    """
    blocks = [
        block
        for name in old.columns
        if name != "id" and name in new
        if (block := _vectors(old[name], new[name]) or _attributes(old[name], new[name]))
    ]
    if not blocks:
        others = {
            what: [name for name in frame if name != "id"] or "none"
            for what, frame in (("source", old), ("dataset", new))
        }
        raise UserError(
            "new rows cannot start from content: no metadata column of the items can be compared "
            f"(the source has {others['source']}, the dataset {others['dataset']}). Give vectors "
            "or attributes of the items to scripts/prepare.py with --items=FILE, or choose "
            "--new_rows=neighbours."
        )
    return blocks


def _has(rows: _Block) -> np.ndarray:
    """Returns which rows are not zero, as 0 or 1."""
    if isinstance(rows, np.ndarray):
        return rows.any(axis=1).astype(np.int32)
    return (np.diff(rows.indptr) > 0).astype(np.int32)


def _dense(products: Any) -> np.ndarray:
    return products if isinstance(products, np.ndarray) else products.toarray()


def _vectors(old: pd.Series, new: pd.Series) -> tuple[np.ndarray, np.ndarray] | None:
    columns = [[_numbers(value) for value in column] for column in (old, new)]
    widths = {len(value) for column in columns for value in column if value is not None}
    if len(widths) != 1:
        return None
    tables = [np.zeros((len(column), *widths), np.float32) for column in columns]
    for table, column in zip(tables, columns, strict=True):
        for row, value in zip(table, column, strict=True):
            row[:] = 0 if value is None else value
        lengths = np.linalg.norm(table, axis=1, keepdims=True)
        table /= np.where(lengths > 0, lengths, 1)
    return tables[0], tables[1]


def _numbers(value: object) -> np.ndarray | None:
    if not isinstance(value, list | tuple | np.ndarray) or not len(value):
        return None
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        return None
    return array if array.ndim == 1 and np.isfinite(array).all() else None


def _attributes(old: pd.Series, new: pd.Series) -> tuple[sparse.csr_array, sparse.csr_array] | None:
    sets = [[_words(value) for value in column] for column in (old, new)]
    there, counts = np.unique([w for words in sets[0] for w in words], return_counts=True)
    if not (counts > 1).any() and not {w for words in sets[1] for w in words} & set(there):
        return None
    number = {word: i for i, word in enumerate(there.tolist())}
    first, second = (_indicators(column, number) for column in sets)
    return _unit(first), _unit(second)


def _words(value: object) -> list[str]:
    if isinstance(value, str):
        return sorted({word.strip() for word in value.split("|")} - {""})
    if isinstance(value, list | tuple | np.ndarray):
        return sorted({word for word in value if isinstance(word, str)})
    return []


def _indicators(sets: list[list[str]], number: dict[str, int]) -> sparse.csr_array:
    found = [[number[word] for word in words if word in number] for words in sets]
    ends = np.cumsum([0, *map(len, found)])
    columns = np.array([c for row in found for c in row], np.int64)
    return sparse.csr_array(
        (np.ones(len(columns), np.float32), columns, ends), (len(sets), len(number))
    )


def _unit(rows: sparse.csr_array) -> sparse.csr_array:
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return _scaled(rows, 1 / np.where(lengths > 0, lengths, 1))


def _to_one(rows: sparse.csr_array) -> sparse.csr_array:
    totals = np.asarray(rows.sum(axis=1)).ravel()
    return _scaled(rows, 1 / np.where(totals > 0, totals, 1))


def _scaled(rows: sparse.csr_array, factors: np.ndarray) -> sparse.csr_array:
    return sparse.csr_array(sparse.diags_array(factors.astype(np.float32)) @ rows)


def mixed(table: np.ndarray, mixture: sparse.csr_array) -> np.ndarray:
    """Returns (new, width) float32: mixtures of the table's rows, their mean where one is empty.

    Args:
      table: (num_rows, width) of any float; row 0 is padding and takes no part in the mean.
      mixture: (new, num_rows) float32.
    """
    used = np.unique(mixture.indices)
    values = mixture[:, used] @ table[used].astype(np.float32)
    empty = np.diff(mixture.indptr) == 0
    if empty.any():
        values[empty] = mean_row(table)
    return values


def mean_row(table: np.ndarray) -> np.ndarray:
    """Returns (width,) float32: the mean of all rows but row 0, summed in float64."""
    total = sum(part.sum(axis=0, dtype=np.float64) for part in _blocks(table))
    return np.asarray(total / max(1, len(table) - 1), np.float32)


def deviation(table: np.ndarray) -> float:
    """Returns the standard deviation of the rows but row 0 around their mean, over all elements."""
    mean = mean_row(table).astype(np.float64)
    squares = sum(float(np.square(part - mean).sum()) for part in _blocks(table))
    return float(np.sqrt(squares / max(1, table[1:].size)))


def _blocks(table: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(1, len(table), _ROWS):
        yield table[start : start + _ROWS].astype(np.float64)
