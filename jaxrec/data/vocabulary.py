"""Original ids as text, each in one spelling, and the order in which they are numbered."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from jaxrec.data.spelling import REFUSED, id_columns, refused
from jaxrec.typing import UserError

ROLES = ("user", "item")
_WHOLE_NUMBER = r"0|-?[1-9][0-9]{0,17}"


def id_texts(values: pd.Series) -> pd.Series:
    """Returns what `jaxrec.ids.id_text` says of each value, so that 1, 1.0 and "1" are one id.

    Args:
      values: (N,) ids of any type, or a mixture of types.

    Returns:
      (N,) texts with the same index, null where missing.

    Raises:
      UserError: for a value that is no id.
    """
    ids, raw = id_columns(values)
    if pc.any(pc.equal(raw, REFUSED), min_count=0).as_py():
        error = refused(values)
        assert error is not None
        raise error
    return ids.to_pandas().astype("str").set_axis(values.index)


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


def path_in_workdir(workdir: str | Path, role: str) -> Path:
    """Returns where a run's workdir holds the vocabulary of "user" or "item"."""
    return Path(workdir) / "vocabularies" / f"{role}.parquet"


def read_vocabularies(path: str | Path) -> dict[str, pd.DataFrame]:
    """Returns the vocabularies of a dataset's directory or of a run's workdir, by role.

    Raises:
      UserError: when neither is there, or what is there is damaged.
    """
    found = {}
    for role in ROLES:
        file = Path(path) / f"{role}_vocabulary.parquet"
        file = file if file.is_file() else path_in_workdir(path, role)
        try:
            frame = pd.read_parquet(file)
            ids = pd.Index(id_texts(frame["id"]))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{path} holds no vocabulary of {role}s ({type(error).__name__}). Give the "
                "directory of a dataset, or the workdir of a run that scripts/train.py made."
            ) from None
        if ids.isna().any() or ids.has_duplicates:
            raise UserError(f"{file} is damaged: an id is there twice, or missing.")
        found[role] = frame.assign(id=ids)
    return found
