"""scripts/recommend.py as a user meets it, and two other models through the same scripts."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxrec.data import Dataset, open_dataset


@pytest.fixture(scope="module")
def dataset(data: Path) -> Dataset:
    return open_dataset(data)


def parse(out: str) -> dict[str, tuple[list[str], list[str]]]:
    """Returns name to (watched, recommended)."""
    lines = out.splitlines()

    def names(line: str) -> list[str]:
        return line.split(":", 1)[1].strip().split(" · ")

    return {lines[i]: (names(lines[i + 1]), names(lines[i + 2])) for i in range(0, len(lines), 3)}


def history_of(dataset: Dataset, user: str) -> list[str]:
    index = dataset.user_index(user)
    return dataset.item_names(dataset.items[dataset.users == index])


def test_users_get_items_that_they_have_not_had(
    scripts: Any, trained: Path, dataset: Dataset
) -> None:
    flags = ("--user=7", "--user=12", "-k", "500", "--shown=3")
    shown = parse(scripts.works("recommend", f"--workdir={trained}", *flags))
    assert list(shown) == ["user 7", "user 12"]
    for user in ("7", "12"):
        watched, recommended = shown[f"user {user}"]
        whole = history_of(dataset, user)
        assert watched == whole[-3:]
        # More were asked for than there are: all that are left come, each once.
        assert sorted(recommended + whole) == sorted(dataset.item_vocabulary["title"])


def test_a_users_history_typed_in_gets_the_same_items(
    scripts: Any, trained: Path, dataset: Dataset
) -> None:
    items = dataset.items[dataset.users == dataset.user_index("7")]
    ids = ",".join(dataset.item_vocabulary["id"].iloc[items - 1])
    flags = ("--user=7", f"--history={ids}", "-k", "60", "--nomask_seen")
    shown = parse(scripts.works("recommend", f"--workdir={trained}", *flags))
    assert shown["user 7"] == shown["your history"]
    # Unmasked, what was watched is recommended as well: these are all items that there are.
    assert set(shown["user 7"][1]) == set(dataset.item_vocabulary["title"])


def test_ids_never_seen_end_in_one_sentence(scripts: Any, trained: Path) -> None:
    said = scripts.fails("recommend", f"--workdir={trained}", "--user=nobody")
    assert "user 'nobody' is not in the vocabulary of 60 users" in said
    said = scripts.fails("recommend", f"--workdir={trained}", "--history=1,none")
    assert "item 'none' is not in the vocabulary of 60 items" in said


@pytest.mark.parametrize("name", [pytest.param("bpr", marks=pytest.mark.slow), "ratings"])
def test_matrix_factorisation_goes_through_the_same_scripts(
    scripts: Any, config_files: dict[str, Path], data: Path, tmp_path: Path, name: str
) -> None:
    workdir = tmp_path / "run"
    flags = (f"--config={config_files[name]}", f"--data={data}", f"--workdir={workdir}")
    out = scripts.works("train", *flags, "--config.training.steps=100")
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    valid = {line["step"]: line for line in lines if "valid/ndcg@10" in line}
    result = json.loads((workdir / "result.json").read_text())
    if name == "ratings":
        assert "rmse " in out
        # The monitored error falls, and its smallest value is the best.
        errors = {step: line["valid/rmse"] for step, line in valid.items()}
        assert result["best_step"] == min(errors, key=errors.__getitem__)
        assert result["valid"]["rmse"] == min(errors.values()) < errors[10]
    else:
        gains = {step: line["valid/ndcg@10"] for step, line in valid.items()}
        assert result["best_step"] == max(gains, key=gains.__getitem__)
    out = scripts.works("evaluate", f"--workdir={workdir}")
    assert "MatrixFactorization" in out and "item-kNN" in out
    if name == "bpr":
        assert len(parse(scripts.works("recommend", f"--workdir={workdir}", "--user=7"))) == 1
        return
    said = scripts.fails("recommend", f"--workdir={workdir}", "--history=1,2")
    assert "cannot read --history. Use --user" in said
