"""Cells of text files as values: text as it is written, unless a whole column is numbers."""

import re
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec.data.engines import to_frame
from jaxrec.typing import UserError

_WHOLE = r"^(?:0|-?[1-9][0-9]{0,17})$"
_VECTOR = re.compile(r"\s*\[(.*)\]\s*", re.DOTALL)


def typed_cells(cells: pa.Array, kind: str, words: Collection[str], name: str) -> pd.Series:
    """Returns a column of text in the type that its cells say.

    Args:
      cells: (N,) text.
      kind: the type that an atomic file gives the column, or "".
      words: what may be missing among numbers.
      name: of the column, for errors.
    """
    empty = pc.equal(cells, "")
    texts = pc.if_else(empty, None, cells)
    if kind in ("token", "token_seq"):
        return texts.to_pandas()
    gone = pc.or_(empty, pc.is_in(texts, pa.array(sorted(words), pa.string())))
    some = pc.if_else(gone, None, texts)
    values = some.drop_null()
    if kind == "float":
        try:
            return some.cast(pa.float64()).to_pandas()
        except pa.ArrowInvalid:
            raise UserError(
                f"the column {name}:float holds a text that is no number. Correct it, or write "
                f"{name}:token."
            ) from None
    if kind == "float_seq":
        values = pc.binary_join_element_wise("[", pc.if_else(gone, None, texts), "]", "")
        return pd.Series(_vectors(values.to_pylist()) or texts.to_pandas(), dtype=object)
    if not len(values):
        return texts.to_pandas()
    if pc.all(pc.match_substring_regex(values, _WHOLE)).as_py():
        numbers = some.cast(pa.int64())
        return to_frame(pa.table({"cells": numbers}))["cells"].astype(
            "Int64" if some.null_count else "int64"
        )
    if all(_is_float(text) for text in values.unique().to_pylist()):
        return some.cast(pa.float64()).to_pandas()
    vectors = _vectors(some.to_pylist())
    return texts.to_pandas() if vectors is None else pd.Series(vectors, dtype=object)


def _is_float(text: str) -> bool:
    try:
        return repr(float(text)) == text and text not in ("nan", "inf", "-inf")
    except ValueError:
        return False


def _vectors(texts: Sequence[str | None]) -> list[np.ndarray | None] | None:
    """Reads texts such as "[0.1, 0.2]", or returns None when one of them is none."""
    found: list[np.ndarray | None] = []
    for text in texts:
        match = None if text is None else _VECTOR.fullmatch(text)
        if text is not None and match is None:
            return None
        parts = [] if match is None else match[1].replace(",", " ").split()
        try:
            found.append(np.array([float(part) for part in parts]) if parts else None)
        except ValueError:
            return None
    return found
