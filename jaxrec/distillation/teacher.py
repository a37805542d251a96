"""A trained run as a teacher."""

from pathlib import Path

from jaxrec import config as configs
from jaxrec.data.batches import fields_read
from jaxrec.data.dataset import Dataset
from jaxrec.functional import Functional, functional_of
from jaxrec.training import load_trained
from jaxrec.training.trained import fetch
from jaxrec.typing import Params, UserError


def teacher_params(workdir: str, dataset: Dataset) -> Params:
    """Returns the best parameters of a run as NumPy arrays, without rows that fill up blocks.

    Raises:
      UserError: when there is no such run, or its vocabularies are not those of the dataset.
    """
    try:
        experiment, params, _ = load_trained(workdir, dataset)
    except UserError as error:
        raise UserError(
            f"the teacher {workdir} cannot teach on this dataset: {error} A teacher and its "
            "student must have the same vocabularies, as labels are items."
        ) from None
    return fetch(experiment, params)


def teacher_model(workdir: str) -> tuple[Functional, frozenset[str]]:
    """Returns the model of a run, and the batch fields that it recommends from."""
    config = configs.load(Path(workdir) / "config.json")
    return functional_of(config.model), fields_read(config.data)
