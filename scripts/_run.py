"""Opening a finished run: the workdir knows which dataset it was trained on."""

import json
from pathlib import Path

from jaxrec.data import Dataset, open_dataset
from jaxrec.typing import UserError


def dataset_of(workdir: str, data: str | None) -> Dataset:
    """Opens --data, or the dataset that the run was trained on."""
    if data:
        return open_dataset(data)
    path = Path(workdir) / "run.json"
    try:
        return open_dataset(json.loads(path.read_text())["data"])
    except FileNotFoundError:
        raise UserError(
            f"{workdir} holds no run. Train one: scripts/train.py --workdir={workdir}, or say "
            "where it is."
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{path} is damaged. Say where the dataset is: --data=DIR.") from None
