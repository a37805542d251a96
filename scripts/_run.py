"""Opening a finished run: the workdir knows which dataset it was trained on."""

import json
from pathlib import Path

from jaxrec.data import Dataset, open_dataset
from jaxrec.typing import UserError

_NAME = "run.json"


def remember_data(workdir: str, data: str) -> None:
    """Writes down where the dataset of a run is."""
    Path(workdir).mkdir(parents=True, exist_ok=True)
    where = {"data": str(Path(data).absolute())}
    (Path(workdir) / _NAME).write_text(json.dumps(where) + "\n")


def dataset_of(workdir: str, data: str | None) -> Dataset:
    """Opens --data, or the dataset that the run was trained on."""
    if data:
        return open_dataset(data)
    try:
        return open_dataset(json.loads((Path(workdir) / _NAME).read_text())["data"])
    except FileNotFoundError:
        raise UserError(
            f"{workdir} holds no run. Train one: scripts/train.py --workdir={workdir}, or say where "
            "it is."
        ) from None
