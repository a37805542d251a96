"""Fine-tuning: starting from the checkpoint of another run, on other data, with few parameters."""

from jaxrec.finetuning.comparison import Comparison, compare
from jaxrec.finetuning.growth import Grown, Growth, Report, grow
from jaxrec.finetuning.lora import (
    LoRA,
    load_adapter,
    merge,
    save_adapter,
    split_adapter,
    user_vectors_each,
)
from jaxrec.finetuning.run import append_once, finetune, grow_run, source_config
from jaxrec.finetuning.source import Source, open_source

__all__ = [
    "Comparison",
    "Grown",
    "Growth",
    "LoRA",
    "Report",
    "Source",
    "append_once",
    "compare",
    "finetune",
    "grow",
    "grow_run",
    "load_adapter",
    "merge",
    "open_source",
    "save_adapter",
    "source_config",
    "split_adapter",
    "user_vectors_each",
]
