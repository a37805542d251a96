"""A made-up dataset, the same on every call."""

import functools

import numpy as np
import pandas as pd

from jaxrec.data import Dataset, build

NUM_ITEMS, NUM_USERS = 20, 6


@functools.cache
def tiny_dataset() -> Dataset:
    """Returns 6 users with every one of 20 items once, in orders of their own, with ratings."""
    random = np.random.default_rng(0)
    items = np.concatenate([random.permutation(NUM_ITEMS) for _ in range(NUM_USERS)])
    log = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(NUM_USERS), NUM_ITEMS),
            "item_id": items,
            "timestamp": np.arange(len(items)),
            "rating": random.integers(1, 6, len(items)),
        }
    )
    kinds = pd.DataFrame({"item_id": np.arange(NUM_ITEMS), "genres": list("abcd" * 5)})
    return build(
        log,
        items=kinds,
        time_column="timestamp",
        label_column="rating",
        split="leave_last_out",
    )
