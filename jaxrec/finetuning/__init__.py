"""Fine-tuning: what a trained recommender becomes on other data, and adapters for it."""

from jaxrec.finetuning.lora import (
    LoRA,
    load_adapter,
    merge,
    save_adapter,
    split_adapter,
    user_vectors_each,
)

__all__ = [
    "LoRA",
    "load_adapter",
    "merge",
    "save_adapter",
    "split_adapter",
    "user_vectors_each",
]
