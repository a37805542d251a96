"""What fine-tuning costs: all parameters, the head, blocks, low-rank adapters.

Prints one JSON object for each: the parameters that are trained, what the compiled step takes for
its state and for temporaries, and its time, in turns with the others. The baseline that a user
would write instead is the case "masked": all gradients and all slots, with the updates of the
frozen parameters set to zero.

  python benchmarks/finetuning.py --items=12101 --batch=32
"""

import statistics
from typing import Any

import jax
import numpy as np
import optax
from _report import emit, seconds_of
from absl import app, flags

from jaxrec.finetuning import LoRA
from jaxrec.functional import functional_of
from jaxrec.models import sasrec
from jaxrec.objectives import FullSoftmax, SampledSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.paths import flatten, nest, select
from jaxrec.training import init_state, make_step
from jaxrec.typing import Batch

_ITEMS = flags.DEFINE_integer("items", 12_101, "Items of the catalogue.", lower_bound=8)
_DIM = flags.DEFINE_integer("dim", 64, "Width of the model.", lower_bound=8)
_RANK = flags.DEFINE_integer("rank", 8, "Rank of the adapters.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 32, "Rows of a batch.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("max_len", 64, "Positions of a row, all of them real.")
_SAMPLED = flags.DEFINE_integer("sampled", 0, "Negatives of a sampled softmax; 0 is the full one.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed steps a turn.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 3, "Turns; the median counts.", lower_bound=1)
_CASES = flags.DEFINE_list(
    "cases", ["all", "masked", "head", "block", "lora", "lora_table"], "Cases."
)

_PATTERNS = {"head": ("items",), "block": ("blocks/1",), "masked": ("blocks/1",)}


def _objective() -> Any:
    return SampledSoftmax(num_negatives=_SAMPLED.value) if _SAMPLED.value else FullSoftmax()


def _step(case: str) -> tuple[Any, dict[str, Any]]:
    """Returns a function that takes a step, and figures of it."""
    config: Any = sasrec.Config(num_items=_ITEMS.value, max_len=_LENGTH.value, dim=_DIM.value)
    if case.startswith("lora"):
        on = ("items/table",) if case == "lora_table" else ("*/kernel",)
        config = LoRA(model=config, rank=_RANK.value, on=on)
    model, objective = functional_of(config), _objective()
    paths = flatten(model.shapes)
    chosen = select(_PATTERNS.get(case, ("*",)), paths, option="case") - model.frozen
    trained, optimizer = chosen, OptimizerConfig().build(1000)
    if case == "masked":
        labels = nest({path: "train" if path in chosen else "zero" for path in paths})
        kinds = {"train": optax.identity(), "zero": optax.set_to_zero()}
        zero = optax.multi_transform(kinds, labels)
        trained, optimizer = frozenset(paths), optax.chain(optimizer, zero)
    state = init_state(model, optimizer, 0, trained=trained)
    step: Any = make_step(model, objective, optimizer, seed=0, trained=trained)
    drawn = np.random.default_rng(0).integers(1, _ITEMS.value, (2, _BATCH.value, _LENGTH.value))
    history, positives = drawn.astype(np.int32)
    batch = jax.device_put(Batch(history=history, positives=positives))
    numbers = {"num_items": np.asarray(_ITEMS.value, np.int32)} if _SAMPLED.value else {}
    program = step.lower(state, batch, numbers).compile()
    memory = program.memory_analysis()
    sizes = {path: leaf.size for path, leaf in paths.items()}
    mine = sum(sizes[path] for path in chosen)
    figures = {
        "trained_parameters": mine,
        "trained_share": mine / sum(sizes.values()),
        "state_mib": memory.argument_size_in_bytes / 2**20,
        "temp_mib": memory.temp_size_in_bytes / 2**20,
    }
    kept = [state]

    def take() -> Any:
        kept[0], metrics = program(kept[0], batch, numbers)
        return metrics

    return take, figures


def main(_: list[str]) -> None:
    made = {case: _step(case) for case in _CASES.value}
    times: dict[str, list[float]] = {case: [] for case in made}
    for _turn in range(_TURNS.value):
        for case, (take, _figures) in made.items():
            times[case].append(1e3 * seconds_of(take, _REPEATS.value, warmup=2))
    whole = statistics.median(times["all"]) if "all" in times else None
    for case, (_take, figures) in made.items():
        step_ms = statistics.median(times[case])
        sizes = {"items": _ITEMS.value, "dim": _DIM.value, "rank": _RANK.value}
        ratio = {"step_of_all": step_ms / whole} if whole else {}
        emit("finetuning", {"case": case, **sizes, **figures, "step_ms": step_ms, **ratio})


if __name__ == "__main__":
    app.run(main)
