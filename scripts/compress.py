"""Makes a trained recommender smaller, and says what it costs.

python scripts/compress.py --workdir=runs/a --output=runs/a_small --max_metric_drop=0.01
python scripts/compress.py --workdir=runs/a --output=runs/a_half --target_bytes=2000000 \
    --methods=int8,int4,prune

Candidates are chosen on the validation split; what is chosen is measured on the test split too. The
output is a workdir that scripts/evaluate.py and scripts/recommend.py accept, with compression.json
and compression.html beside the model. The source is only read.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from _main import run
from _run import dataset_of
from absl import flags

from jaxrec.compression.measuring import (
    choose,
    format_page,
    format_table,
    measure,
    metric_of,
    to_json,
)
from jaxrec.compression.search import METHODS, Candidate, Source, candidates, check_methods
from jaxrec.config import write_whole
from jaxrec.data.dataset import fingerprint
from jaxrec.training import load_trained, save_trained
from jaxrec.typing import UserError

flags.DEFINE_string("workdir", None, "Directory of a run that scripts/train.py made.")
flags.DEFINE_string("output", None, "Directory to make, the workdir of the smaller model.")
flags.DEFINE_string("data", None, "Dataset directory; the one of the training run when not said.")
flags.DEFINE_integer("step", None, "Step of the checkpoint; the best one when not said.")
flags.DEFINE_integer(
    "target_bytes", None, "Take the best model of at most so many bytes.", lower_bound=1
)
flags.DEFINE_float(
    "max_metric_drop",
    None,
    "Take the smallest model that loses at most so much of the metric, such as 0.01 for 1%.",
    lower_bound=0.0,
)
flags.DEFINE_list(
    "methods",
    ["int8", "int4", "pq"],
    f"What to try, of {', '.join(METHODS)}. qat, prune and distil train, which takes a while; "
    "the others do not.",
)
flags.DEFINE_string("split", "valid", "What candidates are chosen on: valid or test.")
flags.DEFINE_float(
    "training_share",
    0.5,
    "How long methods that train do so, in lengths of the source's own training.",
    lower_bound=0.0,
)
flags.DEFINE_bool("quiet", False, "No progress, only the table.")

FLAGS = flags.FLAGS


def main() -> None:
    """Tries candidates, prints what each costs and gains, and saves the one that fits."""
    if not FLAGS.workdir or not FLAGS.output:
        raise UserError("say what to compress and where to: --workdir=DIR --output=DIR.")
    if (FLAGS.target_bytes is None) == (FLAGS.max_metric_drop is None):
        raise UserError("say what to aim for: either --target_bytes=N or --max_metric_drop=0.01.")
    share, drop = FLAGS.training_share, FLAGS.max_metric_drop
    if not 0 < share < math.inf or (drop is not None and not drop < math.inf):
        raise UserError(
            "--training_share must be above 0 and --max_metric_drop a share such as 0.01; got "
            f"{share} and {drop}."
        )
    output, kept = Path(FLAGS.output), Path(FLAGS.output) / "compress_work"
    if (output / "checkpoints").exists():
        raise UserError(f"{output} holds a run already. Choose another --output.")
    if output.exists() and not (output.is_dir() and set(output.iterdir()) <= {kept}):
        raise UserError(f"{output} exists and is not empty. Choose another --output.")
    dataset = dataset_of(FLAGS.workdir, FLAGS.data)
    experiment, params, step = load_trained(FLAGS.workdir, dataset, step=FLAGS.step)
    check_methods(experiment.config.model, FLAGS.methods)
    source, metric = Candidate("source", experiment, params), metric_of(experiment)
    made: dict[str, Candidate] = {source.name: source}
    first, per_user = measure(source, source, FLAGS.split)
    rows = [first]
    # What was trained from other parameters, or for another time, is not gone on with.
    whose = fingerprint(*(np.asarray(leaf) for leaf in jax.tree.leaves(params)))
    work = kept / f"{whose[:16]}_share_{share:g}"
    what = Source(experiment, params, Path(FLAGS.workdir), work, share, FLAGS.quiet)
    _say(f"{metric} of {len(per_user):,} users of the {FLAGS.split} split")
    _say(f"source: {first.num_bytes:,} bytes, {first.metric:.4f}")
    for candidate in candidates(what, FLAGS.methods):
        row, _ = measure(candidate, source, FLAGS.split, per_user=per_user)
        _say(f"{row.name}: {row.num_bytes:,} bytes, {row.metric:.4f} ({row.change:+.2%})")
        made[row.name] = candidate
        rows.append(row)
    print(format_table(rows, metric))
    chosen = choose(rows, target_bytes=FLAGS.target_bytes, max_metric_drop=FLAGS.max_metric_drop)
    by_split = {FLAGS.split: rows}
    if FLAGS.split != "test":
        on_test, values = measure(source, source, "test")
        again = measure(made[chosen.name], source, "test", per_user=values)[0]
        by_split["test"] = [on_test, again] if chosen.name != source.name else [on_test]
        print(f"\ntest split\n{format_table(by_split['test'], metric)}")
    best = made[chosen.name]
    where = FLAGS.data or json.loads((Path(FLAGS.workdir) / "run.json").read_text())["data"]
    save_trained(best.experiment, best.params, output, data=where, step=step)
    told = {"source": str(Path(FLAGS.workdir).absolute()), "metric": metric, "chosen": chosen.name}
    write_whole(output / "compression.json", json.dumps(told | to_json(by_split), indent=2) + "\n")
    write_whole(output / "compression.html", format_page(rows, metric, f"{FLAGS.workdir}, smaller"))
    shutil.rmtree(kept, ignore_errors=True)
    print(f"\n{chosen.name}: {output}")


def _say(line: str) -> None:
    if not FLAGS.quiet:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main)
