"""scripts/recommend.py in this process: users and items that no event trained are unknown."""

import functools
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from absl import flags

from jaxrec.data import Dataset, PairData, SequenceData, prepare
from jaxrec.evaluation import EvaluationConfig
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import BPR, FullSoftmax
from jaxrec.training import Experiment, ExperimentConfig, save_trained
from jaxrec.typing import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """As of a shop whose user 42 and item 99 came after the training split had ended."""
    folder = tmp_path_factory.mktemp("cold")
    rows = [(user, 10 + (user + n) % 7, 100 * user + n) for user in range(1, 8) for n in range(5)]
    rows += [(42, 99, 850), (42, 11, 860), (3, 99, 910), (42, 12, 920)]
    lines = ["user_id,item_id,timestamp", *(f"{u},{i},{t}" for u, i, t in rows)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    options: dict[str, Any] = {"split": "temporal", "valid_from": "800", "test_from": "900"}
    made = prepare(
        folder / "log.csv",
        folder / "data",
        user_column="user_id",
        item_column="item_id",
        time_column="timestamp",
        **options,
    )
    return folder / "data", made


def run_of(dataset: tuple[Path, Dataset], workdir: Path, kind: str) -> Path:
    path, data = dataset
    model: Any = matrix_factorization.Config(dim=3)
    if kind == "sasrec":
        model = sasrec.Config(max_len=4, dim=4, num_blocks=1, num_heads=1, hidden=4)
    config = ExperimentConfig(
        data=PairData() if kind == "mf" else SequenceData(max_len=4),
        model=model,
        objective=BPR(num_negatives=1) if kind == "mf" else FullSoftmax(),
        evaluation=EvaluationConfig(batch_size=4),
    )
    experiment = Experiment.of(config, data)
    save_trained(experiment, experiment.model.init(jax.random.key(0)), workdir, data=path)
    return workdir


@pytest.fixture
def recommend(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., str]:
    """Calls the script's main with flags of its own; returns what it printed."""
    kinds = ("string", "multi_string", "list", "integer", "bool")
    defines = {f"DEFINE_{kind}": getattr(flags, f"DEFINE_{kind}") for kind in kinds}
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def call(*given: str) -> str:
        own = flags.FlagValues()
        monkeypatch.setattr(flags, "FLAGS", own)
        for name, define in defines.items():
            monkeypatch.setattr(flags, name, functools.partial(define, flag_values=own))
        script = runpy.run_path(str(SCRIPTS / "recommend.py"))
        own(["recommend", *given])
        script["main"]()
        return str(capsys.readouterr().out)

    return call


def test_a_user_without_training_events_is_unknown_to_a_model_of_users(
    dataset: Any, recommend: Any, tmp_path: Path
) -> None:
    workdir = f"--workdir={run_of(dataset, tmp_path / 'run', 'mf')}"
    with pytest.raises(UserError, match="user 42 has no training event, so the model knows"):
        recommend(workdir, "--user=42")


def test_items_without_training_events_are_not_recommended(
    dataset: Any, recommend: Any, tmp_path: Path
) -> None:
    workdir = f"--workdir={run_of(dataset, tmp_path / 'run', 'mf')}"
    told = recommend(workdir, "--user=3.0", "--k=50", "--nomask_seen")
    listed = told.split("recommended:")[1].split("·")
    assert sorted(int(item) for item in listed) == list(range(10, 17))


def test_items_that_were_never_trained_are_no_history(
    dataset: Any, recommend: Any, tmp_path: Path
) -> None:
    workdir = f"--workdir={run_of(dataset, tmp_path / 'run', 'sasrec')}"
    with_it = recommend(workdir, "--history=11,99,12", "--k=3").split("recommended:")[1]
    assert with_it == recommend(workdir, "--history=11,12.0", "--k=3").split("recommended:")[1]
    with pytest.raises(UserError, match="knows no item of the history of your history"):
        recommend(workdir, "--history=99")
