"""Measures a trained recommender beside baselines.

python scripts/evaluate.py --workdir=runs/a --split=test --report=runs/a/report.html
"""

from pathlib import Path

from _main import run
from _run import dataset_of
from absl import flags

from jaxrec.evaluation import measure_baselines, metrics_table, write_report
from jaxrec.training import load_trained
from jaxrec.typing import UserError

flags.DEFINE_string("workdir", None, "Directory of a run that scripts/train.py made.")
flags.DEFINE_string("data", None, "Dataset directory; the one of the training run when not said.")
flags.DEFINE_string("split", "test", "What to measure on: valid or test.")
flags.DEFINE_integer("step", None, "Step of the checkpoint; the best one when not said.")
flags.DEFINE_multi_integer(
    "k", [], "Cut-off of the metrics, repeatable; the config's when not said."
)
flags.DEFINE_bool("mask_seen", None, "Leave a user's own items out; as configured when not said.")
flags.DEFINE_bool("baselines", True, "Measure popularity and item-kNN as well.")
flags.DEFINE_string("report", None, "HTML page to write, with curves and plots.")

FLAGS = flags.FLAGS


def main() -> None:
    """Prints one table: the model and, unless told not to, the baselines."""
    if not FLAGS.workdir:
        raise UserError("say which run: --workdir=DIR.")
    dataset = dataset_of(FLAGS.workdir, FLAGS.data)
    experiment, params, step = load_trained(FLAGS.workdir, dataset, step=FLAGS.step)
    experiment = experiment.measuring(ks=tuple(FLAGS.k), mask_seen=FLAGS.mask_seen)
    name = type(experiment.model.bind(params)).__name__
    first = experiment.evaluate(params, FLAGS.split)
    rows = {name: first}
    failed: list[str] = []
    if FLAGS.baselines:
        config = experiment.config.evaluation.without_ratings()
        found, failed = measure_baselines(dataset, FLAGS.split, config)
        rows |= found
    print(f"{FLAGS.split} split, {first.num_users:,} users, checkpoint of step {step:,}")
    print(metrics_table(rows))
    for sentence in (*first.blind_spots.sentences(), *failed):
        print(f"note: {sentence}")
    if FLAGS.report:
        log = Path(FLAGS.workdir) / "metrics.jsonl"
        write_report(FLAGS.report, experiment.config, rows, log if log.exists() else None)
        print(f"report: {FLAGS.report}")


if __name__ == "__main__":
    run(main)
