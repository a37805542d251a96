"""What keeping a model fresh is worth, and what it costs: a rolling window over a log.

The log is taken in order of time. Its first part is history. What follows is cut into windows of
equally many events, and goes by window by window: each strategy's model is asked for the events of
a window before any of them is learned from, then the window is appended and the strategy may learn
from it.

  frozen   trained once, on the history
  cold     trained anew on all events so far
  warm     `finetune` of its model of the window before: new events, with replay of old ones
  plain, l2, distil   as warm without replay: as it is; with a pull towards the model of the window
           before (l2_to_start); with that model as teacher (Distillation). Against forgetting.

  python benchmarks/freshness.py                                  # an invented log that drifts
  python benchmarks/freshness.py --input=ratings.csv              # as scripts/prepare.py reads it

A request is one event: the model is shown all that its user did before, the window's own events
included, and ranks every item that it knows but those of the history. Items that a model was not
trained on are left out of the history it is shown, and a request for one is a miss; so is one
without any item that it knows. Of each user at most --requests events of a window are asked for,
drawn at random. ndcg@10 is the mean over users of a user's mean, and its interval that of a
bootstrap over users. The first window is only learned from, since all strategies are one model
until then.

The old domain is the history: the last event that each of its users has there is kept out of all
training, and asked for at every window, with what the user did before it.

Learning rate and number of epochs are chosen for each strategy inside the history, with the first
seed for all: it is trained there on what comes before the last window, and every epoch measured on
that window, as above. Fine-tuning starts there from a cold model of what comes before the last two.
So no measured window has a say, and the choice is made for the distance that is measured.

"tuning" lines tell what was chosen, "window" lines what was measured, one a seed, strategy and
window, and "summary" lines the means over windows and seeds. "step_seconds" are steps times their
mean time; "seconds" are of the whole call that trains, with growth, checkpoints, metrics at the end
and compilation, of which what an earlier call compiled is kept.
"""

import dataclasses
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from _report import emit
from absl import app, flags, logging

from jaxrec.data import TEST, Dataset, SequenceData, open_dataset, prepare, synthetic
from jaxrec.data.times import parse_moment
from jaxrec.distillation import Distillation
from jaxrec.evaluation import (
    EvaluationConfig,
    Recommender,
    Requests,
    accuracy,
    requests_at,
    requests_for,
)
from jaxrec.finetuning import append_once, finetune, grow_run
from jaxrec.metrics import bootstrap_interval
from jaxrec.models import sasrec
from jaxrec.objectives import FullSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.training import ExperimentConfig, TrainingConfig, load_trained, train
from jaxrec.typing import UserError

_INPUT = flags.DEFINE_string("input", None, "Log, CSV or Parquet; invented without it.")
_COLUMNS = flags.DEFINE_list(
    "columns", ["user_id", "item_id", "timestamp"], "Columns of users, items and times."
)
_HISTORY = flags.DEFINE_float("history", 0.5, "Share of the events that is history.")
_WINDOWS = flags.DEFINE_integer("windows", 3, "Windows that are measured.", lower_bound=1)
_STRATEGIES = flags.DEFINE_list(
    "strategies", ["warm", "plain", "l2", "distil"], "Strategies beside frozen and cold."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Parameters and orders of the data.", lower_bound=1)
_RATES = flags.DEFINE_list("rates", ["1e-2", "3e-3"], "Learning rates to choose from.")
_EPOCHS = flags.DEFINE_integer("epochs", 25, "Most epochs to choose from.", lower_bound=1)
_REQUESTS = flags.DEFINE_integer("requests", 10, "Most requests a user and window.", lower_bound=1)
_DIM = flags.DEFINE_integer("dim", 32, "Width of the model.", lower_bound=2)

_LIFETIME_DAYS = 500
_DAY = 86_400
_NAMES = ("user_id", "item_id", "timestamp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a model learns from a window.

    Attributes:
      replay: share of old rows in an epoch of `finetune`; None trains anew on everything.
      l2_to_start, distillation: of the regularisers; 0 has none.
    """

    replay: float | None = None
    l2_to_start: float = 0.0
    distillation: float = 0.0


STRATEGIES = {
    "cold": Strategy(),
    "warm": Strategy(replay=0.2),
    "plain": Strategy(replay=0.0),
    "l2": Strategy(replay=0.0, l2_to_start=0.003),
    "distil": Strategy(replay=0.0, distillation=0.5),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """A strategy, with the learning rate and the epochs that are its best."""

    strategy: Strategy
    learning_rate: float
    epochs: int


class Model(NamedTuple):
    """A trained run: where it is, and the dataset whose items it knows."""

    workdir: Path
    dataset: Dataset


def invent(seed: int = 0, *, num_users: int = 1200, num_items: int = 600) -> pd.DataFrame:
    """Invents a log that drifts: that of `synthetic`, whose items retire and are replaced.

    Each place of the catalogue, such as the second instalment of a series, is taken by a new item
    every `_LIFETIME_DAYS` days, each place on a day of its own. So new items come every day, what
    was popular goes, and what follows on what changes.
    """
    log, _ = synthetic(seed, num_users=num_users, num_items=num_items)
    days = (log["timestamp"] - log["timestamp"].min()) / _DAY
    born = np.random.default_rng(seed).random(num_items + 1) * _LIFETIME_DAYS
    generation = ((days + born[log["item_id"]]) // _LIFETIME_DAYS).astype(np.int64)
    return log.assign(item_id=log["item_id"] + generation * num_items)[[*_NAMES]]


def read(path: str, columns: Sequence[str], directory: Path) -> pd.DataFrame:
    """Reads a log as scripts/prepare.py does: columns user_id, item_id, and timestamp as int64."""
    user, item, moment = columns
    names: dict[str, Any] = {"user_column": user, "item_column": item, "time_column": moment}
    whole = prepare([path], directory / "whole", **names)
    return pd.DataFrame(
        {
            "user_id": whole.user_vocabulary["id"].to_numpy()[whole.users - 1],
            "item_id": whole.item_vocabulary["id"].to_numpy()[whole.items - 1],
            "timestamp": np.asarray(whole.times),
        }
    )


def cut(log: pd.DataFrame, history: float, windows: int) -> list[pd.DataFrame]:
    """Cuts a log into history and windows of about equally many events, in order of time.

    Events of one moment are never on two sides of a cut.
    """
    log = log.drop_duplicates().sort_values("timestamp", kind="stable", ignore_index=True)
    places = np.rint(len(log) * (history + (1 - history) * np.arange(windows) / windows))
    times = log["timestamp"].to_numpy()
    places = np.searchsorted(times, times[places.astype(np.int64)])
    bounds = [0, *places.tolist(), len(log)]
    return [log.iloc[begin:end] for begin, end in itertools.pairwise(bounds)]


def hold_out(history: pd.DataFrame) -> pd.DataFrame:
    """Marks the last event of each user with 3 events or more as "test", the others "train"."""
    users = history["user_id"]
    last = ~users.duplicated(keep="last") & (users.map(users.value_counts()) >= 3)
    return history.assign(split=np.where(last, "test", "train"))


class Log:
    """Datasets of a log as it grows, each window appended to the one before.

    Attributes:
      datasets: [0] has the first part alone, [t] the windows up to t as well.
      starts: the first moment of each part, in the unit of the datasets.
    """

    def __init__(self, parts: Sequence[pd.DataFrame], directory: Path):
        directory.mkdir()
        options: dict[str, Any] = {"split": "given", "split_column": "split"}
        first = prepare(parts[0], directory / "data", time_column="timestamp", **options)
        self.datasets = [first]
        unit = first.manifest.time_unit
        self.starts = [
            parse_moment(int(part["timestamp"].iloc[0]), "start", unit=unit) for part in parts
        ]
        for number, part in enumerate(parts[1:], 1):
            file = directory / f"window-{number}.parquet"
            part.to_parquet(file)
            append_once([file], directory / "data")
            self.datasets.append(open_dataset(directory / "data"))

    def of_window(self, number: int, most: int) -> Requests:
        """Returns the requests of a window, at most so many of each user."""
        dataset = self.datasets[number]
        events = np.flatnonzero(dataset.times >= self.starts[number])
        events = events[events > dataset.offsets[dataset.users[events]]]
        order = np.random.default_rng(number).permutation(events)
        nth = pd.Series(dataset.users[order]).groupby(dataset.users[order]).cumcount()
        return requests_at(dataset, np.sort(order[nth < most]))

    def of_history(self, number: int) -> Requests:
        """Returns the requests of the old domain, in the catalogue of a window."""
        dataset = self.datasets[number]
        return requests_at(dataset, np.flatnonzero(dataset.split == TEST))


class Knowing:
    """A recommender whose catalogue is the first so many items of a later one."""

    def __init__(self, recommender: Recommender, num_items: int):
        self.recommender, self.num_items = recommender, num_items

    def recommend(self, requests: Requests, k: int, *, mask_seen: bool) -> np.ndarray:
        known = requests.history_items <= self.num_items
        rows = np.repeat(np.arange(len(requests)), requests.history_lengths)[known]
        there, begins = np.unique(rows, return_index=True)
        histories = np.split(requests.history_items[known], begins[1:])
        asked = requests_for(histories, requests.users[there], self.num_items)
        found = np.zeros((len(requests), k), np.int32)
        found[there] = self.recommender.recommend(asked, k, mask_seen=mask_seen)
        return found


def by_user(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Returns the mean of each user's values, users ascending."""
    _, rows = np.unique(users, return_inverse=True)
    return np.bincount(rows, values) / np.bincount(rows)


def measure(model: Model, *asked: Requests, step: int | None = None) -> list[np.ndarray]:
    """Returns, for each set of requests, ndcg@10 of each user who is asked for.

    Args:
      step: of a checkpoint; None takes the last.
    """
    experiment, params, _ = load_trained(model.workdir, model.dataset, step=step)
    knowing = Knowing(experiment.recommender(params), model.dataset.num_items)
    config = experiment.config.evaluation
    found = [accuracy(knowing, requests, config)["ndcg@10"] for requests in asked]
    return [by_user(x, requests.users) for x, requests in zip(found, asked, strict=True)]


def config_of(
    strategy: Strategy, learning_rate: float, epochs: int, *, seed: int, dim: int, every: int = 0
) -> ExperimentConfig:
    """A small SASRec, its sizes and dropout the same for all strategies.

    Args:
      every: epochs between checkpoints, all of which are kept; 0 has one at the end.
    """
    return ExperimentConfig(
        data=SequenceData(max_len=50, row_len=64),
        model=sasrec.Config(
            max_len=50,
            dim=dim,
            num_blocks=1,
            num_heads=2,
            hidden=2 * dim,
            block="post_norm",
            positions="rotary",
        ),
        objective=FullSoftmax(),
        optimizer=OptimizerConfig(learning_rate=learning_rate, l2_to_start=strategy.l2_to_start),
        training=TrainingConfig(
            epochs=epochs,
            batch_size=8,
            seed=seed,
            evaluate_epochs=every or epochs,
            checkpoint_every=10**6,
            keep_last=epochs,
        ),
        evaluation=EvaluationConfig(ks=(10,), bootstrap_samples=0),
    )


def learn(
    config: ExperimentConfig,
    strategy: Strategy,
    dataset: Dataset,
    workdir: Path,
    source: Path | None,
) -> dict[str, Any]:
    """Trains as a strategy does, from a source if it fine-tunes; returns what `train` does.

    "seconds" are of all of it, the growth of a teacher included.
    """
    begun = time.perf_counter()
    if strategy.replay is None:
        result = train(config, dataset, workdir, quiet=True)
    else:
        assert source is not None
        if strategy.distillation:
            # A teacher has the student's items; the new ones start as the student's do.
            teacher = workdir.with_name(f"{workdir.name}-teacher")
            grow_run(source, dataset, teacher)
            objective = Distillation(
                objective=config.objective, teacher=str(teacher), weight=strategy.distillation
            )
            config = dataclasses.replace(config, objective=objective)
        result = finetune(
            source,
            dataset,
            workdir,
            config=config,
            replay=strategy.replay,
            accept_worse=True,
            quiet=True,
        )
    step_seconds = result["steps"] * result["throughput"]["step_ms"] / 1e3
    return result | {"step_seconds": step_seconds, "seconds": time.perf_counter() - begun}


def tune(
    history: pd.DataFrame,
    length: int,
    directory: Path,
    strategies: dict[str, Strategy],
    *,
    rates: Sequence[float],
    epochs: int,
    most: int,
    dim: int,
) -> dict[str, Chosen]:
    """Chooses the learning rate and the epochs of each strategy inside the history.

    Args:
      length: events of a window.
      epochs: the most that are tried.
      most: requests of a user.

    Raises:
      UserError: when the history is shorter than two windows and a half.
    """
    if 2 * len(history) < 5 * length:
        raise UserError(
            f"the history has {len(history)} events and a window {length}: choosing inside the "
            "history wants two windows there and half of one before. Raise --history or --windows."
        )
    first, new, last = np.split(np.arange(len(history)), [-2 * length, -length])
    log = Log([history.iloc[rows] for rows in (first, new, last)], directory)
    dataset, requests = log.datasets[1], log.of_window(2, most)
    chosen: dict[str, Chosen] = {}
    for name, strategy in strategies.items():
        curves = {}
        for rate in rates:
            config = config_of(strategy, rate, epochs, seed=0, dim=dim, every=1)
            workdir = directory / f"{name}-{rate}"
            result = learn(config, strategy, dataset, workdir, directory / "source")
            steps = result["steps"] // epochs
            for epoch in range(1, epochs + 1):
                (values,) = measure(Model(workdir, dataset), requests, step=epoch * steps)
                curves[rate, epoch] = float(values.mean())
        rate, epoch = max(curves, key=lambda pair: curves[pair])
        chosen[name] = Chosen(strategy=strategy, learning_rate=rate, epochs=epoch)
        told = {str(rate): [round(curves[rate, n + 1], 4) for n in range(epochs)] for rate in rates}
        best = {"learning_rate": rate, "epochs": epoch, "ndcg@10": curves[rate, epoch]}
        emit("freshness_tuning", {"strategy": name, **best, "by_epoch": told})
        if name == "cold":
            config = config_of(strategy, rate, epoch, seed=0, dim=dim)
            learn(config, strategy, log.datasets[0], directory / "source", None)
    return chosen


def follow(
    log: Log, chosen: dict[str, Chosen], directory: Path, *, seed: int, most: int, dim: int
) -> list[dict[str, Any]]:
    """Lets the log go by with all strategies; returns a case for each of them and each window."""
    directory.mkdir()
    cold = chosen["cold"]
    config = config_of(Strategy(), cold.learning_rate, cold.epochs, seed=seed, dim=dim)
    spent = {"frozen": learn(config, Strategy(), log.datasets[0], directory / "frozen", None)}
    frozen = Model(directory / "frozen", log.datasets[0])
    models = {name: frozen for name in ("frozen", *chosen)}
    cases = []
    for window in range(1, len(log.datasets)):
        dataset, before = log.datasets[window], log.datasets[window - 1]
        if window > 1:
            requests, old = log.of_window(window, most), log.of_history(window)
            for name, model in models.items():
                values, kept = measure(model, requests, old)
                cases.append(
                    {
                        "strategy": name,
                        "seed": seed,
                        "window": window,
                        "users": len(values),
                        "new_items": dataset.num_items - before.num_items,
                        "ndcg@10": float(values.mean()),
                        "interval": interval(values),
                        "old_ndcg@10": float(kept.mean()),
                        "old_interval": interval(kept),
                        **{key: spent[name][key] for key in ("steps", "step_seconds", "seconds")},
                    }
                )
                emit("freshness_window", cases[-1])
                cases[-1] |= {"by_user": {"ndcg@10": values, "old_ndcg@10": kept}}
        if window == len(log.datasets) - 1:
            break
        for name, best in chosen.items():
            config = config_of(best.strategy, best.learning_rate, best.epochs, seed=seed, dim=dim)
            workdir = directory / f"{name}-{window}"
            source = models[name].workdir
            spent[name] = learn(config, best.strategy, dataset, workdir, source)
            models[name] = Model(workdir, dataset)
    return cases


def interval(values: np.ndarray) -> list[float]:
    """Returns the two ends of the bootstrap interval of a mean."""
    return [round(float(end), 5) for end in bootstrap_interval(values, 0)]


def summary(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what strategies are on average, and compared with cold.

    Means are over the users of all windows. "..._minus_cold" is the interval of the mean difference
    over users, each with the mean over seeds; "..._std" the standard deviation between seeds. A
    user of the old domain, who is asked for at every window, has the mean over windows.
    """
    names, seeds = ({case[key]: None for case in cases} for key in ("strategy", "seed"))
    joins: dict[str, Callable[..., Any]] = {
        "ndcg@10": np.concatenate,
        "old_ndcg@10": functools.partial(np.mean, axis=0),
    }
    users: dict[tuple[str, str], np.ndarray] = {}
    means: dict[str, dict[str, float]] = {}
    for name in names:
        mine = [case for case in cases if case["strategy"] == name]
        means[name] = {}
        for key, join in joins.items():
            by_seed = [
                join([case["by_user"][key] for case in mine if case["seed"] == seed])
                for seed in seeds
            ]
            users[name, key] = np.mean(by_seed, axis=0)
            means[name] |= {key: float(np.mean(by_seed))}
            if len(seeds) > 1:
                spread = np.std([x.mean() for x in by_seed], ddof=1)
                means[name] |= {f"{key}_std": float(spread)}
        for key in ("steps", "step_seconds", "seconds"):
            # What is frozen was trained before the first window.
            spent = [0.0 if name == "frozen" else float(case[key]) for case in mine]
            means[name] |= {key: float(np.mean(spent))}
    found: list[dict[str, Any]] = []
    for name, case in means.items():
        cold = means["cold"]
        ratios = {f"{k}_of_cold": case[k] / cold[k] for k in case if not k.endswith("_std")}
        minus = {
            f"{key}_minus_cold": interval(users[name, key] - users["cold", key]) for key in joins
        }
        found.append({"strategy": name, "seeds": len(seeds), **case, **ratios, **minus})
    return found


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)  # Orbax tells every step of its work
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        jax.config.update("jax_compilation_cache_dir", str(directory / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        log = read(_INPUT.value, _COLUMNS.value, directory) if _INPUT.value else invent()
        # The first window is only learned from.
        parts = cut(log, _HISTORY.value, _WINDOWS.value + 1)
        parts[0] = hold_out(parts[0])
        parts[1:] = [part.assign(split="train") for part in parts[1:]]
        begun = time.perf_counter()
        # What cold training makes is where the others start from in the choice of their rates.
        names = ["cold", *(name for name in _STRATEGIES.value if name != "cold")]
        chosen = tune(
            parts[0],
            len(parts[1]),
            directory / "tuning",
            {name: STRATEGIES[name] for name in names},
            rates=[float(rate) for rate in _RATES.value],
            epochs=_EPOCHS.value,
            most=_REQUESTS.value,
            dim=_DIM.value,
        )
        grown = Log(parts, directory / "log")
        cases = []
        for seed in range(_SEEDS.value):
            sizes = {"seed": seed, "most": _REQUESTS.value, "dim": _DIM.value}
            cases += follow(grown, chosen, directory / f"seed-{seed}", **sizes)
        for case in summary(cases):
            emit("freshness_summary", case | {"wall_s": time.perf_counter() - begun})


if __name__ == "__main__":
    app.run(main)
