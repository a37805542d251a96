"""Whether what a model is exported to answers alike."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data import Dataset, PairData, SequenceData
from jaxrec.export import load_artefact
from jaxrec.export.run import export_run
from jaxrec.objectives import FullSoftmax
from jaxrec.testing.report import Checked
from jaxrec.training import Experiment, ExperimentConfig, save_trained
from jaxrec.typing import Params

NAME = "StableHLO and ONNX agree"
_WANTED = ("flatbuffers", "onnx", "onnxruntime")
_LENGTH = 5


def check_formats(
    config: Any, params: Params, report: Checked, dataset: Dataset, *, knows_users: bool
) -> None:
    """Exports a model and compares what its programs answer, where the extras are installed.

    Args:
      config: fitted to the dataset.
      params: its parameters.
      knows_users: whether it recommends to users by their index, and not from histories.
    """
    missing = [name for name in _WANTED if importlib.util.find_spec(name) is None]
    if missing:
        report.skipped.append(f"{NAME}: without {', '.join(missing)} (pip install jaxrec[onnx])")
        return
    import onnxruntime

    length = min(_LENGTH, config.max_len or _LENGTH) if hasattr(config, "max_len") else _LENGTH
    experiment = Experiment.of(
        ExperimentConfig(
            data=PairData() if knows_users else SequenceData(max_len=length),
            model=config,
            objective=FullSoftmax(),
        ),
        dataset,
    )
    with tempfile.TemporaryDirectory() as directory:
        run, output = Path(directory) / "run", Path(directory) / "artefact"
        save_trained(experiment, params, run)
        options: dict[str, Any] = {"formats": ("stablehlo", "onnx"), "measure": False}
        export_run(run, dataset, output, k=5, **options)
        artefact = load_artefact(output)
        session = onnxruntime.InferenceSession(output / "score.onnx")
        ids = np.arange(1, 1 + 3 * length, dtype=np.int32).reshape(3, length)
        ids[1, :2] = 0
        shown = {"users": np.array([1, 4, 6], np.int32)} if knows_users else {"history": ids}
        items = np.tile(np.arange(1, dataset.num_items + 1, dtype=np.int32), (3, 1))
        (scores,) = session.run(None, {**shown, "items": items})
        report.require_equal(NAME, scores, artefact.score(items, **shown), 1e-2)
