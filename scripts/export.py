"""Exports a trained recommender as a directory that runs without jaxrec.

python scripts/export.py --workdir=runs/a --output=artefacts/a

python scripts/export.py --workdir=runs/a --output=artefacts/a --format=stablehlo,onnx

The directory holds programs for CPU, CUDA and TPU, weights, ids and metadata of items, the config,
a model card with measured metrics, and README.md, whose script runs it with jax and NumPy. Adapted,
quantised and pruned models are exported as any other. docs/export.md tells more.
"""

from pathlib import Path

from _main import run
from _run import dataset_of
from absl import flags

from jaxrec.export.run import FORMATS, check_request, export_run
from jaxrec.typing import UserError

flags.DEFINE_string("workdir", None, "Directory of a run that scripts/train.py made.")
flags.DEFINE_string("output", None, "Directory to make; must not exist, or be empty.")
flags.DEFINE_list(
    "format",
    ["stablehlo", "safetensors"],
    f"What to write, of {', '.join(FORMATS)}. safetensors, the weights, comes with all of them.",
)
flags.DEFINE_integer(
    "k", 100, "How many items a list has, at most; fixed from here on. Capped by the catalogue."
)
flags.DEFINE_enum(
    "ann", None, ["hnsw", "ivf"], "Index for approximate search to build and measure as well."
)
flags.DEFINE_string("data", None, "Dataset directory; the one of the training run when not said.")
flags.DEFINE_integer("step", None, "Step of the checkpoint; the best one when not said.")
flags.DEFINE_string(
    "head", None, "Head whose output is the score, of a model that has several or ranks without."
)
flags.DEFINE_bool(
    "measure", True, "Measure the model on validation and test split for its card, in full."
)

FLAGS = flags.FLAGS


def main() -> None:
    """Writes the artefact and prints what is in it."""
    if not FLAGS.workdir or not FLAGS.output:
        raise UserError("say what to export and where to: --workdir=DIR --output=DIR.")
    check_request(Path(FLAGS.output), FLAGS.format, FLAGS.k, FLAGS.ann)
    manifest = export_run(
        FLAGS.workdir,
        dataset_of(FLAGS.workdir, FLAGS.data),
        FLAGS.output,
        formats=FLAGS.format,
        k=FLAGS.k,
        ann=FLAGS.ann,
        step=FLAGS.step,
        head=FLAGS.head,
        measure=FLAGS.measure,
    )
    for name, told in manifest["files"].items():
        print(f"{told['bytes']:>14,} {name}")
    for told in manifest.get("ann", {}).get("measured", []):
        recall = f"recall@{manifest['k']} {told['recall']:.4f}"
        latency = f"p50 {told['p50_ms']} ms, p99 {told['p99_ms']} ms"
        print(f"{FLAGS.ann} with effort {told['effort']}: {recall}, {latency}")
    print(f"a score is {manifest['score']['means']}")
    print(f"{FLAGS.output}: {manifest['fingerprint'][:12]}, step {manifest['step']}")


if __name__ == "__main__":
    run(main)
