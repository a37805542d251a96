"""Original ids as sorted text: 1, 1.0 and "1" are one id, and numbers sort as numbers."""

import numpy as np
import pandas as pd

_WHOLE_NUMBER = r"0|-?[1-9][0-9]{0,17}"


def encode_ids(values: pd.Series) -> pd.Categorical:
    """Returns ids as a categorical whose categories are their texts in vocabulary order.

    Whole numbers come first, in numeric order; other texts follow in code point order. The order
    depends on the set of ids alone, not on rows. "007" is a text and not the number 7.

    Args:
      values: (N,) ids: integers, floats that are whole numbers, or text. Null and "" are missing.

    Returns:
      (N,) categorical; missing ids have code -1. Categories that no row has do not occur.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    codes, uniques = pd.factorize(values)
    texts = _as_text(pd.Index(uniques))
    merged, ids = pd.factorize(texts.where(texts != ""))
    order = _vocabulary_order(pd.Index(ids))
    rank = np.empty(len(order) + 1, np.int64)
    rank[order], rank[-1] = np.arange(len(order)), -1
    to_rank = rank[np.append(merged, -1)]
    return pd.Categorical.from_codes(to_rank[codes], categories=pd.Index(ids)[order])


def _as_text(values: pd.Index) -> pd.Index:
    if pd.api.types.is_float_dtype(values.dtype):
        whole = values[values == np.floor(values)]
        if len(whole) == len(values) and (np.abs(whole.to_numpy()) < 2.0**53).all():
            values = values.astype(np.int64)
        else:
            values = values.astype(object)
    if values.dtype == object:
        # A column that mixes types, such as ids from several files.
        series = pd.Series(values)
        floats = series.map(lambda value: isinstance(value, float) and value.is_integer())
        values = pd.Index(series.mask(floats, series[floats].map(int)).map(str))
    return values.astype("str")


def _vocabulary_order(ids: pd.Index) -> np.ndarray:
    whole = np.asarray(ids.str.fullmatch(_WHOLE_NUMBER), bool)
    numbers, texts = np.flatnonzero(whole), np.flatnonzero(~whole)
    numbers = numbers[np.argsort(ids[numbers].astype(np.int64), kind="stable")]
    return np.concatenate([numbers, texts[ids[texts].argsort()]]).astype(np.int64)
