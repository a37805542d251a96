"""Writes what is known of a dataset's items as vectors, for models with content.

python scripts/content.py --data=data/beauty --columns=attributes --output=data/beauty-content

A config then has model=WithContent(model=..., content="data/beauty-content"). Columns come from
scripts/prepare.py --items=FILE.
"""

from _main import run
from absl import flags

from jaxrec.data import open_dataset, write_content
from jaxrec.typing import UserError

flags.DEFINE_string("data", None, "Dataset directory that scripts/prepare.py made.")
flags.DEFINE_list("columns", [], "Columns of the item metadata.")
flags.DEFINE_string("output", None, "Directory of the content.")
flags.DEFINE_integer("hashed_width", 256, "Places that tokens are hashed to.", lower_bound=1)

FLAGS = flags.FLAGS


def main() -> None:
    """Writes the content."""
    if not FLAGS.data or not FLAGS.output or not FLAGS.columns:
        raise UserError("say of what and where to: --data=DIR --columns=NAME,NAME --output=DIR.")
    dataset = open_dataset(FLAGS.data)
    write_content(dataset, FLAGS.output, FLAGS.columns, hashed_width=FLAGS.hashed_width)


if __name__ == "__main__":
    run(main)
