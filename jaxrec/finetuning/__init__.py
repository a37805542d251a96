"""Fine-tuning: starting from the checkpoint of another run, on other data and other devices."""

from jaxrec.finetuning.comparison import Comparison, compare
from jaxrec.finetuning.growth import Grown, Growth, Report, grow
from jaxrec.finetuning.run import append_once, finetune, source_config
from jaxrec.finetuning.source import Source, open_source

__all__ = [
    "Comparison",
    "Grown",
    "Growth",
    "Report",
    "Source",
    "append_once",
    "compare",
    "finetune",
    "grow",
    "open_source",
    "source_config",
]
