"""Data: prepared datasets and training batches."""

from jaxrec.data.batches import SequenceData
from jaxrec.data.dataset import TEST, TRAIN, VALID, Dataset, Manifest, open_dataset
from jaxrec.data.pairs import PairData

__all__ = [
    "TEST",
    "TRAIN",
    "VALID",
    "Dataset",
    "Manifest",
    "PairData",
    "SequenceData",
    "open_dataset",
]
