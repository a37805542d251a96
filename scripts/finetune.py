"""Starts a run from the checkpoint of another one: on new events, another catalogue, other devices.

python scripts/finetune.py --source=runs/a --data=data/ratings --append=today.parquet \
    --workdir=runs/b --replay=0.1 --config.training.epochs=2

Rows of tables and their optimiser slots move by original id. Run again, it goes on where it was cut
off. A model that ends significantly worse than its source is refused.
"""

import dataclasses

import _processes
from _config import load_config, take_overrides
from _main import run
from absl import flags

from jaxrec.config import override_all
from jaxrec.finetuning import Growth, LoRA, append_once, finetune, source_config
from jaxrec.training import ExperimentConfig, is_first
from jaxrec.typing import UserError

_DEFAULTS = Growth()

flags.DEFINE_string("source", None, "Directory of the run to start from. It is only read.")
flags.DEFINE_integer(
    "source_step", None, "Step of its checkpoint; the best one, or the newest, when not said."
)
flags.DEFINE_string("data", None, "Dataset directory that scripts/prepare.py made.")
flags.DEFINE_multi_string(
    "append",
    [],
    "Events to add to --data before training, as scripts/prepare.py --append does; may be "
    "repeated. A file that was appended already is left out, so that the command can be given "
    "again.",
)
flags.DEFINE_string("workdir", None, "Directory of the new run.")
flags.DEFINE_string(
    "config",
    None,
    "Config file, with a function get_config(); the source's own config when not said. Set any "
    "field of it with --config.path.to.field=value, such as --config.training.epochs=2.",
)
flags.DEFINE_string(
    "new_rows",
    _DEFAULTS.new_rows,
    "What the rows of new items start with: content (the items nearest by metadata), neighbours "
    "(the items around them in histories), mean (of all old rows) or random.",
)
flags.DEFINE_bool("keep_slots", True, "Move the optimiser's state as well, where it is the same.")
flags.DEFINE_float(
    "replay",
    None,
    "Train on events that are new since the source, and in each epoch on this fraction of the old "
    "ones, in [0, 1]. On all events when not said.",
)
flags.DEFINE_integer(
    "lora_rank",
    0,
    "Train low-rank adapters of so many columns and leave the source's own parameters as they are; "
    "0 trains the model itself. The workdir gets the adapters alone as adapter.npz.",
)
flags.DEFINE_float(
    "lora_alpha", LoRA.alpha, "Strength of the adapters: alpha / rank times their product is added."
)
flags.DEFINE_float(
    "lora_dropout", LoRA.dropout, "Share of an adapter's inputs that a step leaves out, in [0, 1)."
)
flags.DEFINE_list(
    "lora_on",
    list(LoRA.on),
    "The matrices that get adapters: paths, beginnings of paths or globs, such as "
    "blocks/1,items/table.",
)
flags.DEFINE_bool(
    "accept_worse", False, "End well even when the model is significantly worse than its source."
)
flags.DEFINE_bool("quiet", False, "No progress, only the result.")

flags.adopt_module_key_flags(_processes)

FLAGS = flags.FLAGS
OVERRIDES = take_overrides()


def main() -> None:
    """Appends, trains, and prints the metrics before and after."""
    if not (FLAGS.source and FLAGS.data and FLAGS.workdir):
        raise UserError(
            "say what to start from, what to train on and where to put the run: --source=DIR "
            "--data=DIR --workdir=DIR."
        )
    growth = Growth(new_rows=FLAGS.new_rows, keep_slots=FLAGS.keep_slots)
    if FLAGS.config:
        config = load_config(FLAGS.config, OVERRIDES)
    else:
        config = override_all(source_config(FLAGS.source), OVERRIDES)
    config = _with_adapters(config)
    with _processes.joined():
        if FLAGS.append:
            appended = append_once(FLAGS.append, FLAGS.data)
            if is_first() and not FLAGS.quiet:
                print("appended:", ", ".join(map(str, appended)) or "nothing, it was there already")
        result = finetune(
            FLAGS.source,
            FLAGS.data,
            FLAGS.workdir,
            config=config,
            step=FLAGS.source_step,
            growth=growth,
            replay=FLAGS.replay,
            accept_worse=FLAGS.accept_worse,
            quiet=FLAGS.quiet,
        )
    if not is_first():
        return
    if "comparison" in result:
        found = result["comparison"]
        low, high = found["interval"]
        print(
            f"{found['split']} ndcg@10 {found['old']:.4f} before, {found['new']:.4f} after, "
            f"difference {found['new'] - found['old']:+.4f} [{low:+.4f}, {high:+.4f}]"
        )
    print(
        f"{result['steps']:,} steps in {result['wall_s']:,.0f} s; best at step "
        f"{result['best_step']:,}"
    )


def _with_adapters(config: ExperimentConfig) -> ExperimentConfig:
    if not FLAGS.lora_rank:
        idle = [name for name in ("alpha", "dropout", "on") if FLAGS[f"lora_{name}"].present]
        if idle:
            raise UserError(
                f"--lora_{idle[0]} does nothing with --lora_rank=0, which means no adapters. Say "
                "--lora_rank=8, or leave it out."
            )
        return config
    try:
        adapted = LoRA(
            model=config.model,
            rank=FLAGS.lora_rank,
            alpha=FLAGS.lora_alpha,
            dropout=FLAGS.lora_dropout,
            on=tuple(FLAGS.lora_on),
        )
    except ValueError as error:
        raise UserError(f"the adapters' {error}") from None
    return dataclasses.replace(config, model=adapted)


if __name__ == "__main__":
    run(main)
