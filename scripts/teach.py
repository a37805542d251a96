"""Writes what a trained run recommends before each training event, to teach other models.

python scripts/teach.py --workdir=runs/teacher --output=runs/teacher-labels -k 50

A student's config then has data=Taught(data=..., labels="runs/teacher-labels") and
objective=Distillation(objective=...). What was cut off goes on when it is run again.
"""

from _main import run
from _run import dataset_of
from absl import flags

from jaxrec.distillation import write_labels
from jaxrec.typing import UserError

flags.DEFINE_string("workdir", None, "Directory of the teacher, a run of scripts/train.py.")
flags.DEFINE_string("data", None, "Dataset of the student; that of the teacher when not said.")
flags.DEFINE_string("output", None, "Directory of the labels.")
flags.DEFINE_integer("k", 50, "How many items an event.", lower_bound=2)
flags.DEFINE_integer("step", None, "Step of the checkpoint; the best one when not said.")

FLAGS = flags.FLAGS


def main() -> None:
    """Writes the labels, and says so file by file."""
    if not FLAGS.workdir or not FLAGS.output:
        raise UserError("say who teaches and where labels go: --workdir=DIR --output=DIR.")
    dataset = dataset_of(FLAGS.workdir, FLAGS.data)
    write_labels(FLAGS.workdir, dataset, FLAGS.output, k=FLAGS.k, step=FLAGS.step)


if __name__ == "__main__":
    run(main)
