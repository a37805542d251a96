"""Real tokens a second of a SASRec training step: packed rows against one padded row a user.

Both see the same histories, in rows of the same length, with the same model, objective and
optimiser; a padded row holds one user's newest events ("all"), a packed one as many windows as fit.
Steps are timed in turn, so that a busy machine slows both. Prints one JSON object a case.

  python benchmarks/packing.py --data=DIR --cases=sampled,full

--data is a directory of scripts/prepare.py; without it, histories of 7 training events on average.
The fill of packed rows over that of padded ones bounds the gain, but for what a step costs whatever
its rows hold. The full softmax gains less: its loss passes padding over in any layout, and what it
does for real tokens is the same in both.
"""

import itertools
import statistics
import time
from typing import Any, Literal

import jax
import numpy as np
from _histories import histories
from _report import emit
from absl import app, flags

from jaxrec.data import Dataset, SequenceData
from jaxrec.functional import functional
from jaxrec.memory import keep_freed_memory
from jaxrec.models import sasrec
from jaxrec.objectives import FullSoftmax, Objective, SampledSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.training import init_state, make_step

CASES: dict[str, Objective] = {
    "sampled": SampledSoftmax(num_negatives=256, shared=True),
    "full": FullSoftmax(),
}

_CASES = flags.DEFINE_list("cases", list(CASES), "Objectives: sampled (256 shared), full.")
_DATA = flags.DEFINE_string("data", None, "Dataset directory; invented lengths without it.")
_BATCH = flags.DEFINE_integer("batch", 128, "Rows of a batch.", lower_bound=1)
_MAX_LEN = flags.DEFINE_integer("max_len", 50, "Positions of a row.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 20, "Timed steps of each layout.", lower_bound=1)
_BFLOAT16 = flags.DEFINE_bool("bfloat16", False, "Matrix products in bfloat16, not float32.")


class _Stepper:
    """One layout's batches, on the device, and a state to train."""

    def __init__(
        self, dataset: Dataset, targets: Literal["all", "packed"], objective: Objective
    ) -> None:
        data = SequenceData(max_len=_MAX_LEN.value, targets=targets)
        batches = data.batches(dataset, _BATCH.value, 0)
        # The last batch of an epoch may be filled in part.
        count = max(1, batches.steps_per_epoch - 1)
        host = [batches.batch(step) for step in range(min(count, _REPEATS.value))]
        self.tokens = float(np.mean([np.sum(batch.where) for batch in host]))
        self.fill = self.tokens / (_BATCH.value * _MAX_LEN.value)
        self.steps_per_epoch = batches.steps_per_epoch
        self._data, self._numbers = batches, itertools.count()
        self._batches = itertools.cycle([jax.device_put(batch) for batch in host])
        config = sasrec.Config(
            max_len=_MAX_LEN.value, compute_dtype="bfloat16" if _BFLOAT16.value else "float32"
        )
        model = functional(config.fit(dataset.manifest).build)
        optimizer = OptimizerConfig().build(10_000)
        self._step = make_step(model, objective, optimizer, seed=0)
        self._state: Any = init_state(model, optimizer, 0)
        self._statistics = jax.device_put(objective.statistics(dataset))

    def load_seconds(self) -> float:
        """Builds a batch and returns how long it took."""
        start = time.perf_counter()
        self._data.batch(next(self._numbers))
        return time.perf_counter() - start

    def seconds(self) -> float:
        """Runs one step and returns how long it took."""
        batch, start = next(self._batches), time.perf_counter()
        self._state, _ = self._step(self._state, batch, self._statistics)
        jax.block_until_ready(self._state)
        return time.perf_counter() - start


def _measure(dataset: Dataset, case: str) -> dict[str, Any]:
    padded, packed = (_Stepper(dataset, name, CASES[case]) for name in ("all", "packed"))
    for _ in range(3):
        padded.seconds(), packed.seconds()
    times = [
        (padded.seconds(), packed.seconds(), packed.load_seconds()) for _ in range(_REPEATS.value)
    ]
    step = [statistics.median(column) for column in zip(*times, strict=True)]
    rates = padded.tokens / step[0], packed.tokens / step[1]
    return {
        "case": case,
        "data": "prepared" if _DATA.value else "invented",
        "dtype": "bfloat16" if _BFLOAT16.value else "float32",
        "batch": _BATCH.value,
        "row_len": _MAX_LEN.value,
        "padded_fill": padded.fill,
        "packed_fill": packed.fill,
        "padded_step_ms": 1e3 * step[0],
        "packed_step_ms": 1e3 * step[1],
        "padded_steps_per_epoch": padded.steps_per_epoch,
        "packed_steps_per_epoch": packed.steps_per_epoch,
        "padded_real_tokens_per_s": rates[0],
        "packed_real_tokens_per_s": rates[1],
        "times_more_tokens_per_s": rates[1] / rates[0],
        "packed_batches_built_in_a_step": step[1] / step[2],
        "times_more_fill": packed.fill / padded.fill,
    }


def main(argv: list[str]) -> None:
    keep_freed_memory()
    dataset = histories(_DATA.value)
    for case in _CASES.value:
        emit("packing", _measure(dataset, case))


if __name__ == "__main__":
    app.run(main)
