"""Checks that a model or a loss of yours has the properties that everything here relies on."""

from jaxrec.testing.dataset import tiny_dataset
from jaxrec.testing.losses import check_loss
from jaxrec.testing.models import check_model
from jaxrec.testing.report import Checked

__all__ = ["Checked", "check_loss", "check_model", "tiny_dataset"]
