"""Makes a dataset directory of a raw log.

python scripts/prepare.py --input=ratings.csv --output=data/ratings --time_column=timestamp
python scripts/prepare.py --input=today.csv --output=data/ratings --append
"""

import sys
import time
from typing import cast

from _main import run
from absl import flags

from jaxrec.data import format_report, prepare
from jaxrec.data.downloads import NAMES
from jaxrec.data.engines import ENGINES
from jaxrec.data.recipe import (
    DUPLICATE_NAMES,
    KEEP_NAMES,
    SPLIT_NAMES,
    Options,
    Recipe,
    choose,
)
from jaxrec.data.text_files import QUOTINGS
from jaxrec.data.times import TIME_UNITS
from jaxrec.typing import UserError

_DEFAULTS = Recipe()
_PROGRESS_SECONDS = 5.0

flags.DEFINE_multi_string(
    "input",
    [],
    "The log: a .csv, .tsv, .inter (also .gz, .bz2, .zst) or .parquet file, a glob or a directory; "
    f"may be repeated. Or 'synthetic', or the name of a public data set: {', '.join(NAMES)}.",
)
flags.DEFINE_string("output", None, "Directory to make. It appears whole or not at all.")
flags.DEFINE_string("user_column", _DEFAULTS.user_column, "Column of the user ids.")
flags.DEFINE_string("item_column", _DEFAULTS.item_column, "Column of the item ids.")
flags.DEFINE_string(
    "time_column",
    None,
    "Column of the times: numbers, or dates (UTC unless they say). Without it, rows are in time "
    "order; a log with a column that looks like times wants --rows_in_time_order then.",
)
flags.DEFINE_bool(
    "rows_in_time_order", False, "Rows are in time order, although a column looks like times."
)
flags.DEFINE_string(
    "time_unit",
    _DEFAULTS.time_unit,
    f"Of times that are numbers: {', '.join(TIME_UNITS)}. auto tells it by their magnitude.",
)
flags.DEFINE_enum(
    "day_first",
    None,
    ["true", "false"],
    "Whether 05/02/2024 is 5 February. Only needed when all dates can be read in two ways.",
)
flags.DEFINE_list(
    "missing_words",
    list(_DEFAULTS.missing_words),
    "Texts that stand for a missing id, time or label, besides the empty one; may be empty.",
)
flags.DEFINE_string("separator", None, "Of the cells of text files, such as ';' or '::' or '\\t'.")
flags.DEFINE_string("encoding", None, "Of text files, such as latin-1, cp1250 or utf-16.")
flags.DEFINE_enum(
    "quoting",
    None,
    list(QUOTINGS),
    "Of text files: minimal, double quotes hold cells together; none, they are characters as "
    "others. By default the file tells.",
)
flags.DEFINE_list("column_names", None, "Names of all columns of a log without a header.")
flags.DEFINE_string("label_column", None, "Column of numbers to learn, such as ratings.")
flags.DEFINE_string("split_column", None, "Column of train, valid and test, for --split=given.")
flags.DEFINE_string(
    "items", None, "File of item metadata with the item column, e.g. title, genres."
)
flags.DEFINE_string("users", None, "File of user metadata with the user column.")
flags.DEFINE_enum(
    "metadata_duplicates",
    _DEFAULTS.metadata_duplicates,
    list(DUPLICATE_NAMES),
    "What to do with rows of metadata that say different things of one id.",
)
flags.DEFINE_integer("min_user_events", 0, "Drop users with fewer events, until it is stable.")
flags.DEFINE_integer("min_item_events", 0, "Drop items with fewer events, until it is stable.")
flags.DEFINE_float("min_label", None, "Drop events with a smaller label.")
flags.DEFINE_float(
    "positive_from",
    None,
    "Events with a smaller label train heads and regressions, and are no target of ranking, no "
    "history and no popularity. When not said, labels above 0 are positive.",
)
flags.DEFINE_string(
    "keep",
    _DEFAULTS.keep,
    f"Which of a user's events on one item to keep: {', '.join(KEEP_NAMES)}.",
)
flags.DEFINE_string("split", _DEFAULTS.split, f"How to split: {', '.join(SPLIT_NAMES)}.")
flags.DEFINE_float(
    "valid_fraction", _DEFAULTS.valid_fraction, "Validation share, for temporal and random."
)
flags.DEFINE_float("test_fraction", _DEFAULTS.test_fraction, "Test share, for temporal and random.")
flags.DEFINE_string(
    "valid_from",
    None,
    "Start of validation for --split=temporal: a date, or a number like the log's.",
)
flags.DEFINE_string("test_from", None, "Start of test for --split=temporal.")
flags.DEFINE_integer("seed", _DEFAULTS.seed, "Seed of --split=random and of --input=synthetic.")
flags.DEFINE_string(
    "engine",
    "duckdb",
    f"What carries files: {', '.join(ENGINES)}. duckdb needs the memory of --memory_limit and of "
    "the vocabularies; pandas holds the log in memory; spark takes the session that is configured.",
)
flags.DEFINE_string(
    "memory_limit", None, "For duckdb, such as 4GB; the rest goes to the disk. Default: 80% of RAM."
)
flags.DEFINE_bool(
    "append",
    False,
    "Add the events of --input to the dataset in --output, with the recipe that it was prepared "
    "with. Its indices stay; new users and items come after them.",
)
flags.DEFINE_string(
    "vocabulary",
    None,
    "Directory of a dataset or of a run whose users and items come first, in their order, with "
    "events or without: what is retired keeps its row when a model moves to the new dataset.",
)
flags.DEFINE_bool("overwrite", False, "Replace a dataset that is there already.")
flags.DEFINE_string(
    "local", None, "For a named --input, a copy of its archive: no network is used."
)
flags.DEFINE_string("downloads", None, "Where named inputs are kept; ~/.cache/jaxrec if not said.")

FLAGS = flags.FLAGS


def main() -> None:
    """Prepares, and prints what was dropped and what came out."""
    if not FLAGS.input or not FLAGS.output:
        raise UserError("give the log and the directory to make: --input=FILE --output=DIR.")
    choose("engine", FLAGS.engine, ENGINES)
    values = FLAGS.flag_values_dict()
    # Flags left alone are not passed on: named inputs know their own columns.
    chosen = {name: values[name] for name in Options.__annotations__ if FLAGS[name].present}
    if "day_first" in chosen:
        chosen["day_first"] = FLAGS.day_first == "true"
    dataset = prepare(
        FLAGS.input,
        FLAGS.output,
        items=FLAGS.items,
        users=FLAGS.users,
        engine=FLAGS.engine,
        memory_limit=FLAGS.memory_limit,
        append=FLAGS.append,
        vocabulary=FLAGS.vocabulary,
        overwrite=FLAGS.overwrite,
        local=FLAGS.local,
        downloads=FLAGS.downloads,
        separator=FLAGS.separator,
        encoding=FLAGS.encoding,
        quoting=FLAGS.quoting,
        column_names=FLAGS.column_names,
        progress=_Progress().show,
        **cast(Options, chosen),
    )
    manifest = dataset.manifest
    print(format_report(manifest.report))
    parts = ", ".join(f"{count:,} {name}" for name, count in manifest.split["events"].items())
    print(
        f"\n{FLAGS.output}: {manifest.num_users:,} users, {manifest.num_items:,} items, "
        f"{manifest.num_events:,} events; split {manifest.split['name']}: {parts}"
    )


class _Progress:
    """A line on stderr every few seconds, and none for work that takes no longer."""

    def __init__(self) -> None:
        self.shown = time.monotonic()

    def show(self, stage: str, done: int, total: int) -> None:
        if done < total and time.monotonic() - self.shown > _PROGRESS_SECONDS:
            self.shown = time.monotonic()
            print(f"{stage} {done:,} of {total:,} events", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main)
