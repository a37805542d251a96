"""Trains a recommender and measures it; run again, it goes on where it was cut off.

python scripts/train.py --config=configs/sasrec.py --data=data/ratings --workdir=runs/a \
    --config.optimizer.learning_rate=1e-3
"""

import _processes
from _config import load_config, take_overrides
from _main import run
from absl import flags

from jaxrec.training import is_first, train
from jaxrec.typing import UserError

flags.DEFINE_string(
    "config",
    "configs/sasrec.py",
    "Config file, with a function get_config(). Set any field of it with "
    "--config.path.to.field=value, such as --config.training.steps=1000.",
)
flags.DEFINE_string("data", None, "Dataset directory that scripts/prepare.py made.")
flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the run: config.json, checkpoints/, metrics.jsonl, tensorboard/, result.json.",
)
flags.DEFINE_bool("quiet", False, "No progress, only the result.")
flags.adopt_module_key_flags(_processes)

FLAGS = flags.FLAGS
OVERRIDES = take_overrides()


def main() -> None:
    """Trains, and prints the metrics of the best checkpoint."""
    if not FLAGS.data or not FLAGS.workdir:
        raise UserError("say what to train on and where to put the run: --data=DIR --workdir=DIR.")
    config = load_config(FLAGS.config, OVERRIDES)
    with _processes.joined():
        result = train(config, FLAGS.data, FLAGS.workdir, quiet=FLAGS.quiet)
    if not is_first():
        return
    for split in ("valid", "test"):
        if split in result:
            shown = {k: v for k, v in result[split].items() if k.split("@")[0] in _SHOWN}
            print(split, "  ".join(f"{name} {value:.4f}" for name, value in shown.items()))
            for sentence in result["notes"][split]:
                print(f"  note: {sentence}")
    speed = result["throughput"]
    print(
        f"{result['steps']:,} steps in {result['wall_s']:,.0f} s, {speed['step_ms']:.1f} ms a "
        f"step, {speed['examples_per_s']:,.0f} examples/s; best at step {result['best_step']:,}"
    )


_SHOWN = ("ndcg", "recall", "rmse")

if __name__ == "__main__":
    run(main)
