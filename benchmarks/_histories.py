"""Shared by the benchmarks of batches: a dataset, or short invented histories like Amazon's."""

import numpy as np
import pandas as pd

from jaxrec.data import Dataset, build, open_dataset


def histories(data: str | None) -> Dataset:
    """Opens a dataset directory, or invents 22,363 histories of 7 training events on average."""
    if data:
        return open_dataset(data)
    random = np.random.default_rng(0)
    lengths = 5 + random.geometric(1 / 5, 22_363) - 1  # with the two held out, 9 on average
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = random.zipf(1.3, len(users)) % 12_101
    frame = pd.DataFrame({"user": users, "item": items, "time": np.arange(len(users))})
    return build(frame, user_column="user", item_column="item", time_column="time")
