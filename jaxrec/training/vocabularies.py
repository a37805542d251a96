"""What a workdir remembers of its dataset: the original ids that the rows of tables stand for.

A run leaves

  workdir/vocabularies/user.parquet   column `id`; column `training_events`, how many each user had
  workdir/vocabularies/item.parquet   column `id`, and the metadata of the dataset's items

in the order of the indices: row i is index i + 1. With them a checkpoint can be grown into another
catalogue after the dataset that it was trained on is gone.
"""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from jaxrec.config import whole_file
from jaxrec.data.dataset import Dataset, vocabulary_fingerprint
from jaxrec.data.replay import TRAINING_EVENTS
from jaxrec.data.training_events import training_counts
from jaxrec.data.vocabulary import id_texts, path_in_workdir
from jaxrec.typing import UserError


def save_vocabularies(dataset: Dataset, workdir: str | Path) -> None:
    """Writes both vocabularies, each whole or not at all.

    Metadata that Parquet has no type for is left out.
    """
    users = dataset.user_vocabulary[["id"]].copy()
    users[TRAINING_EVENTS] = training_counts(dataset)[1:]
    _write(users, path_in_workdir(workdir, "user"))
    try:
        _write(dataset.item_vocabulary, path_in_workdir(workdir, "item"))
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        _write(dataset.item_vocabulary[["id"]], path_in_workdir(workdir, "item"))


def load_vocabulary(workdir: str | Path, role: str, fingerprint: str) -> pd.DataFrame:
    """Returns what `save_vocabularies` wrote for "user" or "item", its `id` column as text.

    Args:
      fingerprint: that of the vocabulary that a checkpoint was trained with; empty is not checked.

    Raises:
      UserError: when the file is absent, damaged, of another vocabulary, or has an id twice.
    """
    path = path_in_workdir(workdir, role)
    if not path.is_file():
        raise UserError(
            f"{path} does not exist, so nobody knows which {role}s the rows of the tables stand "
            "for. Call scripts/train.py once more with the run's own config, data and workdir: it "
            "writes the file without training again."
        )
    try:
        frame = pd.read_parquet(path)
        ids = frame["id"].tolist()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}). Remove it and call scripts/train.py once "
            "more with the run's own config, data and workdir: it writes the file again."
        ) from None
    if fingerprint and vocabulary_fingerprint(frame) != fingerprint:
        raise UserError(
            f"{path} is not the vocabulary that the checkpoint was trained with (it has {len(ids)} "
            "ids). Remove it and call scripts/train.py once more with the run's own config, data "
            "and workdir."
        )
    return frame.assign(id=distinct_ids(frame, f"{path}"))


def distinct_ids(vocabulary: pd.DataFrame, where: str) -> pd.Index:
    """Returns the ids of a vocabulary as texts.

    Raises:
      UserError: when two of them are equal as text, or one is missing.
    """
    ids = pd.Index(id_texts(vocabulary["id"]))
    bad = ids.isna() | ids.duplicated()
    if bad.any():
        first = vocabulary["id"].iloc[int(bad.argmax())]
        raise UserError(
            f"{where} has the id {first!r} twice, or it is missing: rows cannot be moved by id. "
            "Ids are compared as text, so that 1 and '1' are the same. Prepare the dataset again."
        )
    return ids


def _write(frame: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as partial:
        frame.to_parquet(partial, index=False)
