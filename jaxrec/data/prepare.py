"""From a raw log to a dataset, in memory or on disk."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from jaxrec.data.append import merge, recipe_of
from jaxrec.data.assemble import First, assemble
from jaxrec.data.dataset import SHARD_EVENTS, Dataset, open_dataset
from jaxrec.data.downloads import NAMES, default_directory, fetch
from jaxrec.data.engines import PandasEngine, open_engine
from jaxrec.data.files import find_all, find_files
from jaxrec.data.histories import apply_rules
from jaxrec.data.metadata import Table
from jaxrec.data.readers import check_columns, check_files
from jaxrec.data.recipe import Options, Recipe
from jaxrec.data.replay import TRAINING_EVENTS
from jaxrec.data.roles import check_no_times, note_unused, unused_columns
from jaxrec.data.spool import Log
from jaxrec.data.store import appearing, check_output
from jaxrec.data.synthetic import synthetic
from jaxrec.data.text_files import TextFormat
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
        are joined to the vocabulary; an id without a row gets nulls. Rows that say different things
        of one id are refused, unless `metadata_duplicates="first"`.
      **options: fields of `Recipe`: columns, cleaning rules and the split.

    Returns:
      The dataset. It depends on each user's own order of rows, not on how users are interleaved.

    Raises:
      UserError: for a log, an option or metadata that does not fit.
    """
    recipe = Recipe(**options)
    given = _checked(_Given(log=frame, items=items, users=users), recipe, list(frame.columns))
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
    separator: str | None = None,
    encoding: str | None = None,
    quoting: str | None = None,
    column_names: Sequence[str] | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Dataset:
    """Makes a dataset of a log and writes it to a directory.

    Args:
      source: files, globs or directories of CSV, TSV, RecBole's atomic files or Parquet; a data
        frame; "synthetic"; or the name of a public data set, one of
        `jaxrec.data.downloads.NAMES`. For names, times, labels and metadata are known, and columns
        have the default names.
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
      separator, encoding, quoting, column_names: how text files are written; see
        `jaxrec.data.text_files.TextFormat`. Names of columns are those of the log; metadata has a
        header.
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
    form = TextFormat(
        separator=separator, encoding=encoding, quoting=quoting, column_names=column_names
    )
    if not form.is_usual and (name or isinstance(source, pd.DataFrame)):
        raise UserError(
            "separator, encoding, quoting and column_names are for text files. Leave them out."
        )
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
    given = _Given(log=source, items=items, users=users, form=form)
    if name is not None:  # mistakes were said before a long download
        given = _fetched(name, given, recipe, local, downloads)
        if recipe.label_column not in given.log and not (asked or append):
            recipe = dataclasses.replace(recipe, label_column=None)
    elif not isinstance(source, pd.DataFrame):
        paths, skipped = find_all(source)
        files = check_files(paths, recipe.columns, form)
        notes = [file.note for file in files if file.note]
        if skipped:
            notes.append(f"files passed over, {len(skipped)}: such as {skipped[0]}")
        given = dataclasses.replace(given, log=files, notes=notes)
    log = given.log
    names = list(log.columns) if isinstance(log, pd.DataFrame) else list(log[0].names)
    given = _checked(given, recipe, names)
    given.sources.extend(_describe(path) for path in _paths(given))
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
        made = _read(given, recipe, means, first, earlier)
        _make(made, given, recipe, means, earlier, first)
    return open_dataset(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Given:
    """What the user gave, or what a name stands for."""

    log: Any  # a data frame or files
    items: Table | None
    users: Table | None
    form: TextFormat | None = None
    notes: Sequence[str] = ()  # on reading, for the report
    sources: list[dict[str, Any]] = dataclasses.field(default_factory=list)


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


def _checked(given: _Given, recipe: Recipe, names: Sequence[object]) -> _Given:
    """Returns what was given with notes on what it has beside the roles.

    Raises:
      UserError: when the log has a column of times that is not said to be one.
    """
    where = "the data frame" if isinstance(given.log, pd.DataFrame) else "the log"
    check_columns(names, recipe.columns.values(), where)
    unused = unused_columns([str(name) for name in names], recipe.columns)
    if recipe.time_column is None and not recipe.rows_in_time_order:
        check_no_times(given.log, unused)
    notes = [*given.notes, *note_unused(unused, len(names))]
    if recipe.time_column is None:
        notes.append("no times: rows are taken to be in time order")
    return dataclasses.replace(given, notes=notes)


def _read(
    given: _Given,
    recipe: Recipe,
    means: _Means,
    first: First | None = None,
    earlier: Dataset | None = None,
) -> Log:
    from jaxrec.data.clean import read_log  # loads Narwhals, which training does not need

    known: dict[str, Any] = {}
    if first is not None:
        known = {
            "known_users": pd.Index(first.users["id"]),
            "known_items": pd.Index(first.items["id"]),
        }
    rest = {
        "directory": means.directory("log"),
        "progress": means.progress,
        "day_first": None if earlier is None else earlier.manifest.day_first,
        "notes": given.notes,
        **known,
    }
    if isinstance(given.log, pd.DataFrame):
        pandas = PandasEngine()
        return read_log(pandas, pandas.of_frame(given.log, recipe.columns), recipe, **rest)
    spill = means.directory("spill")
    with open_engine(means.engine, memory_limit=means.memory_limit, directory=spill) as engine:
        frame = engine.scan(given.log, recipe.columns)
        paths = [file.path for file in given.log]
        return read_log(engine, frame, recipe, paths=paths, **rest)


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
        user_ids=log.users,
        item_ids=log.items,
        directory=means.directory("marks"),
        old_users=old[0],
        old_items=old[1],
    )
    return assemble(
        events.columns,
        kept,
        recipe,
        log,
        users=given.users,
        items=given.items,
        form=given.form,
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


def _paths(given: _Given) -> list[Path]:
    paths = [] if isinstance(given.log, pd.DataFrame) else [file.path for file in given.log]
    for table in (given.items, given.users):
        if isinstance(table, str | Path):
            paths += find_files(table)
    return paths


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
