"""The ids in the workdir: those of the dataset, in its order, with what each user trained."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import Dataset
from jaxrec.data.vocabulary import path_in_workdir
from jaxrec.training.vocabularies import load_vocabulary, save_vocabularies
from jaxrec.typing import UserError


def test_a_run_leaves_its_vocabularies(trained: Path, dataset: Dataset) -> None:
    items = load_vocabulary(trained, "item", dataset.manifest.item_fingerprint)
    pd.testing.assert_frame_equal(items, dataset.item_vocabulary)
    users = load_vocabulary(trained, "user", dataset.manifest.user_fingerprint)
    assert users["id"].tolist() == dataset.user_vocabulary["id"].tolist()
    trains = np.asarray(dataset.users)[np.asarray(dataset.split) == 0]
    assert users["training_events"].tolist() == np.bincount(trains)[1:].tolist()


def test_metadata_that_parquet_refuses_is_left_out(dataset: Dataset, tmp_path: Path) -> None:
    mixed = dataset.item_vocabulary.assign(odd=pd.Series([1, "a", [2]] * 20, dtype=object))
    save_vocabularies(dataclasses.replace(dataset, item_vocabulary=mixed), tmp_path)
    assert load_vocabulary(tmp_path, "item", "").columns.tolist() == ["id"]


def test_a_vocabulary_appears_whole_or_not_at_all(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(frame: pd.DataFrame, path: Path, **options: object) -> None:
        path.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", half)
    with pytest.raises(OSError):
        save_vocabularies(dataset, tmp_path)
    assert list((tmp_path / "vocabularies").iterdir()) == []


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = path_in_workdir(tmp_path, "item")
    path.parent.mkdir()
    pd.DataFrame({"id": ["a", "b", "a"]}).to_parquet(path)
    with pytest.raises(UserError, match="has the id 'a' twice"):
        load_vocabulary(tmp_path, "item", "")
