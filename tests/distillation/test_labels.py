"""Labels on disk: what the teacher says at each event, whoever the student is."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxrec.data import Dataset, PairData, SequenceData, Taught
from jaxrec.data.taught import Labels
from jaxrec.data.training_events import training_events
from jaxrec.distillation import Distillation, labels, write_labels
from jaxrec.functional import functional
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import BPR, FullSoftmax
from jaxrec.objectives.base import features_of
from jaxrec.training import ExperimentConfig, load_trained, train
from jaxrec.typing import Batch, UserError

LAST = SequenceData(max_len=8, targets="last", buckets=())
STUDENT = sasrec.Config(max_len=8, dim=4, num_blocks=1, num_heads=1, hidden=8)


@pytest.fixture(scope="session")
def written(dataset: Dataset, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("labels") / "sasrec"
    write_labels(teacher, dataset, output, k=6, shard_events=50, quiet=True)
    return output


@pytest.fixture(scope="session")
def of_factors(dataset: Dataset, factors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("labels") / "factors"
    write_labels(factors, dataset, output, k=6, quiet=True)
    return output


def test_labels_are_the_best_items_after_the_events_before(
    dataset: Dataset, teacher: Path, written: Path
) -> None:
    experiment, params, _ = load_trained(teacher, dataset)
    catalogue = np.asarray(experiment.model.apply(params, method="item_vectors"))
    events, found, checked = training_events(dataset), Labels.open(written, dataset), 0
    assert len(found.items) == -(-len(events.items) // 50)
    for user in range(1, dataset.num_users + 1):
        first, count = events.starts[user], events.counts[user]
        items, scores = found.at(first + np.arange(count))
        assert (items[0] == 0).all()
        for place in range(1, count):
            history = np.zeros((1, 8), np.int32)
            history[0, 8 - place :] = events.items[first : first + place]
            vector = experiment.user_vectors(params, Batch(history=history))
            every = (np.asarray(vector) @ catalogue.T)[0, 1:]
            best = np.argsort(-every, kind="stable")[:6]
            np.testing.assert_array_equal(items[place], best + 1)
            np.testing.assert_allclose(
                scores[place], every[best] - every[best[0]], rtol=1e-3, atol=1e-4
            )
            checked += 1
    assert checked > 100


def test_a_teacher_that_knows_users_has_labels_for_first_events_too(
    dataset: Dataset, factors: Path, of_factors: Path
) -> None:
    experiment, params, _ = load_trained(factors, dataset)
    users = np.arange(1, dataset.num_users + 1)
    vectors = np.asarray(experiment.user_vectors(params, Batch(users=users)))
    every = vectors @ np.asarray(experiment.model.apply(params, method="item_vectors")).T
    every[:, ~dataset.trained["item"]] = -np.inf  # of these a teacher has learned nothing
    best = 1 + np.argsort(-every[:, 1:], axis=1, kind="stable")[:, :6]
    events, found = training_events(dataset), Labels.open(of_factors, dataset)
    for user in users:
        items, _ = found.at(events.starts[user] + np.arange(events.counts[user]))
        np.testing.assert_array_equal(items, np.broadcast_to(best[user - 1], items.shape))


@pytest.mark.grid
@pytest.mark.parametrize("data", [LAST, SequenceData(max_len=8)], ids=["last", "packed"])
def test_labels_from_files_teach_what_the_teacher_itself_does(
    data: SequenceData, dataset: Dataset, teacher: Path, written: Path
) -> None:
    # Histories are shorter than a window, so the student's batches show the teacher all of them,
    # and at the last target of each the positions are those of serving.
    model = functional(STUDENT.fit(dataset.manifest).build)
    params, found = model.init(jax.random.key(0)), []
    cases: list[tuple[Any, str]] = [(data, str(teacher))]
    cases.append((Taught(data=data, labels=str(written)), ""))
    for shown, name in cases:
        objective = Distillation(objective=FullSoftmax(), teacher=name, top_k=5)
        batch = shown.batches(dataset, 16, 0).batch(0)
        drawn = objective.draw(batch, objective.statistics(dataset), jax.random.key(0))
        found.append((drawn, objective.loss(model.bind(params), drawn, None)[0]))
    (online, wanted), (cached, loss) = found
    where = np.asarray(online.where)
    if data.targets == "packed":
        where = where & (np.diff(online.segments, axis=1, append=0) != 0)
    assert where.sum() > 10
    np.testing.assert_array_equal(online.candidates[where], cached.candidates[where])
    scores = [np.asarray(features_of(b)["teacher_scores"])[where] for b in (online, cached)]
    np.testing.assert_allclose(
        scores[0] - scores[0][:, :1], scores[1], rtol=1e-3, atol=1e-4
    )  # float16
    if data.targets == "last":
        np.testing.assert_allclose(loss, wanted, rtol=1e-4)


def test_batches_with_labels_are_the_same_batches_and_parts_equal_the_whole(
    dataset: Dataset, written: Path
) -> None:
    plain, taught = LAST, Taught(data=LAST, labels=str(written))
    one, other = plain.batches(dataset, 8, 0), taught.batches(dataset, 8, 0)
    assert one.steps_per_epoch == other.steps_per_epoch
    assert taught.max_len == 8
    for step in range(one.steps_per_epoch):
        whole = other.batch(step)
        np.testing.assert_array_equal(one.batch(step).history, whole.history)
        halves = [other.batch(step, slice(i, i + 4)) for i in (0, 4)]
        for name, values in features_of(whole).items():
            parts = [features_of(half)[name] for half in halves]
            np.testing.assert_array_equal(np.concatenate(parts), values)
            assert (values[~whole.where] == 0).all()


@pytest.mark.slow
def test_any_teacher_teaches_any_student(
    dataset: Dataset,
    written: Path,
    of_factors: Path,
    tmp_path: Path,
    config_of: Callable[..., ExperimentConfig],
) -> None:
    cases: dict[str, tuple[Any, Any, Any, Path]] = {
        "sequences": (SequenceData(max_len=8), STUDENT, FullSoftmax(), of_factors),
        "pairs": (PairData(), matrix_factorization.Config(dim=3), BPR(), written),
    }
    for name, (data, model, objective, directory) in cases.items():
        config = config_of(
            Taught(data=data, labels=str(directory)),
            model,
            Distillation(objective=objective, weight=0.9, top_k=6),
        )
        result = train(config, dataset, tmp_path / name, quiet=True)
        experiment, params, _ = load_trained(tmp_path / name, dataset)
        assert experiment.config.data == config.data
        again = experiment.evaluate(params, "valid", intervals=False)
        assert again.metrics == result["valid"]


def test_writing_goes_on_where_it_stopped(
    dataset: Dataset,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made: list[int] = []
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    write_labels(teacher, dataset, whole, k=6, shard_events=50, quiet=True)
    label = labels._label

    def counted(shard: np.ndarray, *arguments: Any, **options: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(int(shard[0]))
        return label(shard, *arguments, **options)

    monkeypatch.setattr(labels, "_label", counted)
    with pytest.raises(KeyboardInterrupt):
        write_labels(teacher, dataset, parts, k=6, shard_events=50)
    assert made == [0, 50]
    with pytest.raises(UserError, match=r"items-00002-of-.* is missing or damaged"):
        Labels.open(parts, dataset)
    monkeypatch.setattr(labels, "_label", label)
    write_labels(teacher, dataset, parts, k=6, shard_events=50)
    for file in sorted(whole.glob("*.npy")):
        assert (parts / file.name).read_bytes() == file.read_bytes()
    assert "labels: 1 of 7 files" in capsys.readouterr().err


def test_other_labels_in_the_same_place_are_refused(
    dataset: Dataset, teacher: Path, factors: Path, written: Path
) -> None:
    with pytest.raises(UserError, match="num_labels=6 and these would have num_labels=7"):
        write_labels(teacher, dataset, written, k=7, shard_events=50, quiet=True)
    with pytest.raises(UserError, match="holds labels with teacher="):
        write_labels(factors, dataset, written, k=6, shard_events=50, quiet=True)


def test_labels_of_another_dataset_are_refused(dataset: Dataset, written: Path) -> None:
    manifest = dataclasses.replace(dataset.manifest, fingerprint="another")
    other = dataclasses.replace(dataset, manifest=manifest)
    with pytest.raises(UserError, match="are of another dataset"):
        Labels.open(written, other)
    with pytest.raises(UserError, match="holds no labels"):
        Labels.open(written / "nothing", dataset)
    assert json.loads((written / "labels.json").read_text())["num_labels"] == 6


def test_more_labels_than_there_are_are_refused(dataset: Dataset, written: Path) -> None:
    objective = Distillation(objective=FullSoftmax(), top_k=9)
    batch = Taught(data=LAST, labels=str(written)).batches(dataset, 4, 0).batch(0)
    with pytest.raises(UserError, match=r"top_k=9 and the labels hold 6"):
        objective.draw(batch, objective.statistics(dataset), jax.random.key(0))
