"""From a raw log to a dataset, in memory or on disk."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from jaxrec.data.append import merge, recipe_of
from jaxrec.data.assemble import First, Table, assemble
from jaxrec.data.dataset import SHARD_EVENTS, Dataset, open_dataset
from jaxrec.data.downloads import NAMES, default_directory, fetch
from jaxrec.data.engines import PandasEngine, open_engine
from jaxrec.data.histories import apply_rules
from jaxrec.data.readers import check_columns, check_files, find_files
from jaxrec.data.recipe import Options, Recipe
from jaxrec.data.replay import TRAINING_EVENTS
from jaxrec.data.spool import Log
from jaxrec.data.store import appearing, check_output
from jaxrec.data.synthetic import synthetic
from jaxrec.data.vocabulary import read_vocabularies
from jaxrec.typing import UserError

type Source = str | Path | Sequence[str | Path] | pd.DataFrame
type Progress = Callable[[str, int, int], None]


def build(
    frame: pd.DataFrame,
    *,
    items: Table | None = None,
    users: Table | None = None,
    **options: Unpack[Options],
) -> Dataset:
    """Makes a dataset of a data frame, in memory.

    Args:
      frame: the log, one event a row.
      items, users: metadata, a file or a frame with the id column of the log. Its other columns
        are joined to the vocabulary; an id without a row gets nulls, and of several rows of one id
        the first counts.
      **options: fields of `Recipe`: columns, cleaning rules and the split.

    Returns:
      The dataset. It depends on each user's own order of rows, not on how users are interleaved.

    Raises:
      UserError: for a log, an option or metadata that does not fit.
    """
    given = _Given(log=frame, items=items, users=users, sources=[])
    recipe = Recipe(**options)
    return _make(_read(given, recipe, _Means()), given, recipe, _Means())


def prepare(
    source: Source,
    output: str | Path,
    *,
    items: Table | None = None,
    users: Table | None = None,
    engine: str = "duckdb",
    memory_limit: str | None = None,
    shard_events: int | None = None,
    append: bool = False,
    vocabulary: str | Path | None = None,
    overwrite: bool = False,
    local: str | Path | None = None,
    downloads: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Dataset:
    """Makes a dataset of a log and writes it to a directory.

    Args:
      source: files, globs or directories of CSV, TSV or Parquet; a data frame; "synthetic"; or the
        name of a public data set, one of `jaxrec.data.downloads.NAMES`. For names, times, labels
        and metadata are known, and columns have the default names.
      output: the directory to make. It appears whole or not at all.
      items, users: metadata, as for `build`.
      engine: what carries files: "duckdb", "pandas" or "spark". Frames and names are carried by
        pandas.
      memory_limit: of DuckDB, such as "4GB"; None leaves its default, 80% of the memory.
      shard_events: events in each file of an array, for logs of more events than that; None means
        2**26, or with `append` what the dataset has.
      append: add the events to the dataset in `output`, with the recipe that it was prepared with.
        Its indices stay, and new ids come after them. A temporal split keeps its cuts, unless
        `valid_from` and `test_from` are given; the other splits are made anew.
      vocabulary: directory of a dataset, or workdir of a run, whose users and items come first, in
        their order, whether they have events or not: what is retired keeps its rows. New ids come
        after them. Their metadata stays unless `items` or `users` are given.
      overwrite: replace a dataset that is there already.
      local: for a named source, a copy of its archive, instead of the network.
      downloads: where named sources are kept; None means the user's cache directory.
      progress: called with what is done, how many events of it and of how many.
      **options: fields of `Recipe`: columns, cleaning rules and the split.

    Returns:
      The dataset, opened from `output`.

    Raises:
      UserError: for a source, option or output that does not fit.
      OSError: when the disk does not take the files; nothing is left behind.
    """
    if append and overwrite:
        raise UserError("say append or overwrite, not both.")
    if append and vocabulary is not None:
        raise UserError(
            "append keeps the vocabulary of the dataset in output; leave vocabulary out."
        )
    if shard_events is not None and shard_events < 1:
        raise UserError(f"shard_events is {shard_events}; it must be 1 or more.")
    path = Path(output) if append else check_output(output, overwrite=overwrite)
    earlier = open_dataset(path) if append else None
    first = _first(earlier, vocabulary)
    name = _named(source)
    if memory_limit is not None and (name or isinstance(source, pd.DataFrame)):
        raise UserError(
            f"memory_limit={memory_limit} is for files that DuckDB reads; frames and named data "
            "sets are in memory as a whole. Leave it out."
        )
    if local is not None and name not in NAMES:
        raise UserError(f"a local copy goes with a named source, one of: {', '.join(NAMES)}.")
    asked = "label_column" in options
    if name is not None and not append:
        options = {"time_column": "timestamp", "label_column": "rating", **options}
    recipe = Recipe(**options) if earlier is None else recipe_of(earlier, options)
    given = _Given(log=source, items=items, users=users, sources=[])
    if name is not None:  # mistakes were said before a long download
        given = _fetched(name, given, recipe, local, downloads)
        if recipe.label_column not in given.log and not (asked or append):
            recipe = dataclasses.replace(recipe, label_column=None)
    elif not isinstance(source, pd.DataFrame):
        paths = find_files(source)
        check_files(paths, recipe.columns)
        given = dataclasses.replace(given, log=paths)
    given.sources.extend(_describe(file) for file in _files(given))
    size = earlier.manifest.shard_events if earlier else SHARD_EVENTS
    with appearing(path) as (new, work):
        means = _Means(
            engine=engine,
            memory_limit=memory_limit,
            work=work,
            output=new,
            shard_events=shard_events or size,
            progress=progress,
        )
        log = _read(given, recipe, means, first)
        _make(log, given, recipe, means, earlier, first)
    return open_dataset(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Given:
    """What the user gave, or what a name stands for."""

    log: Any  # a data frame or paths
    items: Table | None
    users: Table | None
    sources: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Means:
    """With what, and where, a dataset is made; without directories, in memory."""

    engine: str = "pandas"
    memory_limit: str | None = None
    work: Path | None = None
    output: Path | None = None
    shard_events: int = SHARD_EVENTS
    progress: Progress | None = None

    def directory(self, name: str) -> Path | None:
        """Makes a directory for what is needed on the way."""
        if self.work is None:
            return None
        (self.work / name).mkdir()
        return self.work / name


def _first(earlier: Dataset | None, vocabulary: str | Path | None) -> First | None:
    """Returns the users and items that come first."""
    if earlier is not None:
        return First(users=earlier.user_vocabulary, items=earlier.item_vocabulary)
    if vocabulary is None:
        return None
    frames = read_vocabularies(vocabulary)
    users = frames["user"].drop(columns=TRAINING_EVENTS, errors="ignore")
    return First(users=users, items=frames["item"], anew=True)


def _read(given: _Given, recipe: Recipe, means: _Means, first: First | None = None) -> Log:
    from jaxrec.data.clean import read_log  # loads Narwhals, which training does not need

    known: dict[str, Any] = {}
    if first is not None:
        known = {
            "known_users": pd.Index(first.users["id"]),
            "known_items": pd.Index(first.items["id"]),
        }
    rest = {"directory": means.directory("log"), "progress": means.progress, **known}
    if isinstance(given.log, pd.DataFrame):
        check_columns(given.log.columns, recipe.columns.values(), "the data frame")
        pandas = PandasEngine()
        return read_log(pandas, pandas.of_frame(given.log, recipe.columns), recipe, **rest)
    spill = means.directory("spill")
    with open_engine(means.engine, memory_limit=means.memory_limit, directory=spill) as engine:
        frame = engine.scan(given.log, recipe.columns)
        return read_log(engine, frame, recipe, paths=given.log, **rest)


def _make(
    log: Log,
    given: _Given,
    recipe: Recipe,
    means: _Means,
    earlier: Dataset | None = None,
    first: First | None = None,
) -> Dataset:
    events, report = log.events, log.report
    old = (0, 0) if first is None else (len(first.users), len(first.items))
    if earlier is not None:
        events = merge(earlier, log, recipe, means.directory("merged"))
        log.events.remove()
        report = report.joined(len(events), len(log.users), len(log.items))
    kept = apply_rules(
        events.columns,
        recipe,
        report,
        num_users=len(log.users),
        num_items=len(log.items),
        directory=means.directory("marks"),
        old_users=old[0],
        old_items=old[1],
    )
    return assemble(
        events.columns,
        kept,
        recipe,
        user_ids=log.users,
        item_ids=log.items,
        dates=log.dates,
        users=given.users,
        items=given.items,
        sources=given.sources,
        directory=means.output,
        shard_events=means.shard_events,
        earlier=earlier,
        first=first,
    )


def _fetched(
    name: str,
    given: _Given,
    recipe: Recipe,
    local: str | Path | None,
    downloads: str | Path | None,
) -> _Given:
    """Returns the log and the metadata of a named source; given metadata goes before its own."""
    items: Any
    users: Any = None
    sources = []
    if name == "synthetic":
        frame, items = synthetic(seed=recipe.seed)
    else:
        log = fetch(name, downloads or default_directory(), local=local)
        frame, items, users = log.events, log.items, log.users
        sources = [_describe(path) for path in log.paths]
    return _Given(
        log=frame,
        items=items if given.items is None else given.items,
        users=users if given.users is None else given.users,
        sources=sources,
    )


def _named(source: Source) -> str | None:
    """Returns the name of a named source; a file of that name goes before the name."""
    if not isinstance(source, str | Path | pd.DataFrame) and len(source) == 1:
        (source,) = source
    if isinstance(source, str) and source in (*NAMES, "synthetic") and not Path(source).exists():
        return source
    return None


def _files(given: _Given) -> list[Path]:
    files = [] if isinstance(given.log, pd.DataFrame) else list(given.log)
    for table in (given.items, given.users):
        if isinstance(table, str | Path):
            files += find_files(table)[:1]
    return files


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
