"""What training on one catalogue is worth in another one, when items are known by their content.

A SASRec whose item vectors follow from content alone is trained on a source, then on some users of
a target, starting from the source's parameters or from nothing; both are measured on the last event
of every user of the target. Prints one JSON object a case; "users": 0 is the source's model as it
is. Checkpoints and learning rates are chosen on the validation events of the same few users, in the
same way wherever training begins.

  python benchmarks/transfer.py                                        # two invented domains
  python benchmarks/transfer.py --source=DIR --target=DIR --columns=attributes

The invented domains have other items and other users. What they share is attributes and how people
move among them: a genre leads to its neighbour on a ring, and a user mostly stays with a style.
--source and --target are directories of scripts/prepare.py with metadata of items.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from _report import emit
from absl import app, flags, logging

from jaxrec.data import TRAIN, VALID, Dataset, SequenceData, build, open_dataset, write_content
from jaxrec.evaluation import EvaluationConfig
from jaxrec.models import WithContent, sasrec
from jaxrec.objectives import FullSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.paths import flatten, nest
from jaxrec.training import (
    Experiment,
    ExperimentConfig,
    TrainingConfig,
    TrainState,
    load_trained,
    train,
)
from jaxrec.typing import Params

_SOURCE = flags.DEFINE_string("source", None, "Dataset to learn from first; invented without it.")
_TARGET = flags.DEFINE_string("target", None, "Dataset to transfer to; invented without it.")
_COLUMNS = flags.DEFINE_list("columns", ["attributes"], "Columns of the item metadata.")
_SHARES = flags.DEFINE_list(
    "shares", ["0.01", "0.1"], "Shares of the target's users to learn from."
)
_STEPS = flags.DEFINE_integer("steps", 600, "Steps on the source.", lower_bound=1)
_MORE = flags.DEFINE_integer("more_steps", 300, "Steps on the target.", lower_bound=1)
_DIM = flags.DEFINE_integer("dim", 32, "Width of the model.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Choices of users and parameters.", lower_bound=1)

_RATES = (3e-3, 3e-4)
_GENRES, _STYLES = 12, 8


def domain(name: str, seed: int, *, num_users: int = 2000, num_items: int = 600) -> Dataset:
    """Invents a catalogue and what its users did, left in time order."""
    random = np.random.default_rng(seed)
    cells = np.arange(num_items) % (_GENRES * _STYLES)
    genres, styles = np.divmod(cells, _STYLES)
    members = [np.flatnonzero(cells == cell) for cell in range(_GENRES * _STYLES)]
    users, items = [], []
    for user in range(num_users):
        genre, style = random.integers(_GENRES), random.integers(_STYLES)
        for _ in range(random.integers(8, 24)):
            genre = (genre + 1) % _GENRES if random.random() < 0.7 else random.integers(_GENRES)
            shown = style if random.random() < 0.8 else random.integers(_STYLES)
            users.append(user)
            items.append(random.choice(members[genre * _STYLES + shown]))
    log = pd.DataFrame({"user_id": users, "item_id": [f"{name}{item}" for item in items]})
    log["timestamp"] = np.arange(len(log))
    known = pd.DataFrame(
        {
            "item_id": [f"{name}{item}" for item in range(num_items)],
            "attributes": [f"g{g}|s{s}" for g, s in zip(genres, styles, strict=True)],
        }
    )
    return build(log, items=known, time_column="timestamp", split="leave_last_out")


def some_users(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The dataset with training events of a share of its users alone; test events stay.

    Those of the others become validation events without a history, which nothing asks for before
    the test, where they are histories.
    """
    random = np.random.default_rng(seed)
    count = max(1, round(share * dataset.num_users))
    chosen = np.zeros(dataset.num_users + 1, bool)
    chosen[1 + random.permutation(dataset.num_users)[:count]] = True
    split = np.array(dataset.split)
    split[(split == TRAIN) & ~chosen[dataset.users]] = VALID
    return dataclasses.replace(dataset, split=split)


def config_of(content: Path, steps: int, seed: int, *, dim: int = 32) -> ExperimentConfig:
    """A small SASRec of content alone."""
    trunk = sasrec.Config(max_len=30, dim=dim, num_blocks=1, num_heads=2, hidden=2 * dim)
    return ExperimentConfig(
        data=SequenceData(max_len=30),
        model=WithContent(model=trunk, content=str(content), id_vectors=False),
        objective=FullSoftmax(),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        training=TrainingConfig(
            steps=steps, batch_size=32, seed=seed, evaluate_every=max(1, steps // 6)
        ),
        evaluation=EvaluationConfig(ks=(10,)),
    )


def carried(params: Params, into: Params) -> Params:
    """The parameters of a model of another catalogue, with all but its content from `params`."""
    mine = flatten(params)
    return nest({p: x if p == "items/table" else mine[p] for p, x in flatten(into).items()})


def measure(
    source: Dataset,
    target: Dataset,
    directory: Path,
    *,
    columns: list[str],
    shares: list[float],
    steps: int,
    more_steps: int,
    seed: int,
    dim: int = 32,
) -> list[dict[str, Any]]:
    """Returns test NDCG@10 on the target by share of users and by where training began."""
    contents = {}
    for name, dataset in (("source", source), ("target", target)):
        contents[name] = directory / f"{name}-content"
        write_content(dataset, contents[name], columns, hashed_width=64)
    config = config_of(contents["source"], steps, seed, dim=dim)
    train(config, source, directory / "source", quiet=True)
    _, learned, _ = load_trained(directory / "source", source)
    config = config_of(contents["target"], more_steps, seed, dim=dim)

    def start(state: TrainState) -> TrainState:
        # Copies, as a step takes the arrays that it is given.
        params = jax.tree.map(jax.numpy.copy, carried(learned, state.params))
        return dataclasses.replace(state, params=params)

    experiment = Experiment.of(config, target)
    params = carried(learned, experiment.model.init(jax.random.key(seed)))
    untouched = experiment.evaluate(params, "test", intervals=False).metrics
    found: list[dict[str, Any]] = [
        {"users": 0.0, "start": "source", "seed": seed, "test": untouched["ndcg@10"]}
    ]
    for share in shares:
        few = some_users(target, share, seed)
        for name, begin in (("nothing", None), ("source", start)):
            results = {}
            for rate in _RATES:
                optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
                tried = dataclasses.replace(config, optimizer=optimizer)
                workdir = directory / f"{share}-{name}-{rate}"
                results[rate] = train(tried, few, workdir, start=begin, quiet=True)
            best = max(_RATES, key=lambda rate: results[rate]["valid"]["ndcg@10"])
            case: dict[str, Any] = {"users": share, "start": name, "seed": seed}
            case |= {"learning_rate": best, "test": results[best]["test"]["ndcg@10"]}
            found.append(case)
    return found


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)  # Orbax tells every step of its work
    source = open_dataset(_SOURCE.value) if _SOURCE.value else domain("a", 0)
    target = open_dataset(_TARGET.value) if _TARGET.value else domain("b", 1)
    for seed in range(_SEEDS.value):
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            cases = measure(
                source,
                target,
                Path(directory),
                columns=_COLUMNS.value,
                shares=[float(share) for share in _SHARES.value],
                steps=_STEPS.value,
                more_steps=_MORE.value,
                seed=seed,
                dim=_DIM.value,
            )
        for case in cases:
            emit("transfer", case | {"seconds": time.monotonic() - begun})


if __name__ == "__main__":
    app.run(main)
