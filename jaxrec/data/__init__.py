"""From raw logs to datasets on disk and batches: readers, cleaning, splits, public data sets."""

from jaxrec.data.batches import SequenceData
from jaxrec.data.content import write_content
from jaxrec.data.dataset import NOT_POSITIVE, TEST, TRAIN, VALID, Dataset, Manifest, open_dataset
from jaxrec.data.downloads import fetch
from jaxrec.data.pairs import PairData
from jaxrec.data.prepare import build, prepare
from jaxrec.data.recipe import Recipe
from jaxrec.data.replay import Replay
from jaxrec.data.report import format_report
from jaxrec.data.synthetic import synthetic
from jaxrec.data.taught import Taught

__all__ = [
    "NOT_POSITIVE",
    "TEST",
    "TRAIN",
    "VALID",
    "Dataset",
    "Manifest",
    "PairData",
    "Recipe",
    "Replay",
    "SequenceData",
    "Taught",
    "build",
    "fetch",
    "format_report",
    "open_dataset",
    "prepare",
    "synthetic",
    "write_content",
]
