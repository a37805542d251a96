"""Original ids as text, each in one spelling, and the order in which they are numbered."""

import numpy as np
import pandas as pd

_WHOLE_NUMBER = r"0|-?[1-9][0-9]{0,17}"


def id_texts(values: pd.Series) -> pd.Series:
    """Returns ids as texts, so that 1, 1.0 and "1" are one id.

    Args:
      values: (N,) ids: integers, floats, texts, or a mixture. Null and "" are missing.

    Returns:
      (N,) texts with the same index, null where missing. "007" is not "7".
    """
    codes, uniques = pd.factorize(values)
    if isinstance(uniques, pd.CategoricalIndex):
        uniques = pd.Index(uniques.astype(uniques.categories.dtype))
    texts = _as_text(pd.Index(uniques))
    texts = texts.where(texts != "")
    texts = texts.append(pd.Index([None], dtype="str"))
    return pd.Series(texts.take(np.where(codes < 0, len(texts) - 1, codes)), index=values.index)


def vocabulary_order(ids: pd.Index) -> np.ndarray:
    """Returns the order of a vocabulary: whole numbers first, by number; then texts, by code point.

    Args:
      ids: (V,) distinct texts.

    Returns:
      (V,) int64, such that ids[order] is in order.
    """
    whole = np.asarray(ids.str.fullmatch(_WHOLE_NUMBER), bool)
    numbers, texts = np.flatnonzero(whole), np.flatnonzero(~whole)
    numbers = numbers[np.argsort(ids[numbers].astype(np.int64), kind="stable")]
    return np.concatenate([numbers, texts[ids[texts].argsort()]]).astype(np.int64)


def _as_text(values: pd.Index) -> pd.Index:
    if len(values) == 0:
        return pd.Index([], dtype="str")
    if pd.api.types.is_float_dtype(values.dtype):
        whole = values[values == np.floor(values)]
        if len(whole) == len(values) and (np.abs(whole.to_numpy()) < 2.0**53).all():
            values = values.astype(np.int64)
        else:
            values = values.astype(object)
    if values.dtype == object:
        # A column that mixes types.
        series = pd.Series(values)
        floats = series.map(lambda value: isinstance(value, float) and value.is_integer())
        values = pd.Index(series.mask(floats, series[floats].map(int)).map(str))
    return values.astype("str")
