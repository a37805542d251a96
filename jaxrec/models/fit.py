"""Filling a model's config from a dataset."""

from jaxrec.typing import UserError


def fit_count(name: str, configured: int, counted: int) -> int:
    """Returns the dataset's count; UserError when the config asks for another one."""
    if configured not in (0, counted):
        raise UserError(
            f"config.model.{name}={configured} does not fit the dataset, which has {counted}. For "
            f"a new run leave config.model.{name} at 0 to take the dataset's count. A trained one "
            "wants the dataset that it was trained on (--data=DIR), as it was then: to go on with "
            "one that has grown, use scripts/finetune.py."
        )
    return counted
