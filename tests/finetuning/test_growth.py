"""Growth: rows, slots and scores move by original id; new rows start as they should."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from jaxrec.finetuning import Grown, Growth, grow, open_source
from jaxrec.functional import functional_of
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import MeshConfig
from jaxrec.training import Experiment, load_trained
from jaxrec.training.checkpoints import open_checkpoint
from jaxrec.training.state import abstract_state
from jaxrec.training.trained import load_config
from jaxrec.typing import UserError

ITEMS, USERS = [f"i{n}" for n in range(40)], [f"u{n}" for n in range(24)]  # of `catalogue_of`
HOST = MeshConfig(tables="host", replicate_below=0)
ROWS, COLUMNS = (MeshConfig(data=2, model=4, tables=how) for how in ("row", "column"))
PERMUTED = [ITEMS[i] for i in np.random.default_rng(0).permutation(40)]
CATALOGUES = {
    "permuted": (PERMUTED, USERS[::-1]),
    "larger": (["new1", *PERMUTED, "new2", "new3"], ["v1", *USERS[::-1], "v2"]),
    "smaller": (PERMUTED[:25], USERS[3:20]),
    "other": ([*PERMUTED[5:30], "new1", "new2"], [*USERS[:5], "v1"]),
}


@pytest.fixture
def grown(
    source_of: Any, catalogue_of: Any, config_of: Any, born: Any
) -> Callable[..., tuple[Experiment, Grown]]:
    def make(
        name: str,
        items: list[str],
        users: list[str] = USERS,
        *,
        source: Path | None = None,
        metadata: dict[str, Any] | None = None,
        growth: Growth | None = None,
        step: int | None = None,
        **changes: Any,
    ) -> tuple[Experiment, Grown]:
        data = catalogue_of(items, users, seed=1, metadata=metadata)
        experiment = Experiment.of(config_of(name, **changes), data)
        with open_source(source or source_of(name), data, step=step) as opened:
            return experiment, grow(opened, experiment, born(experiment), growth)

    return make


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree in the host's memory, by path."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in flat}


def vectors(
    experiment: Experiment, params: Any, items: list[str], users: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of these items and of users with histories of them, by original id."""
    dataset = experiment.dataset
    known = [dataset.item_index(item) for item in items]
    rows = np.array([known[i : i + 6] for i in range(8)], np.int32)
    rows[3:, :2] = 0
    indices = np.array([dataset.user_index(user) for user in users[:8]], np.int32)
    batch = experiment.config.data.requests(indices, rows)
    found = experiment.item_vectors(params, np.array(known, np.int32))
    return np.array(found), np.array(experiment.user_vectors(params, batch))


@pytest.mark.grid(quick=4)
@pytest.mark.parametrize("catalogue", CATALOGUES)
@pytest.mark.parametrize("name", ["tied", "untied", "pairs"])
def test_scores_of_old_items_and_users_are_unchanged_to_the_bit(
    name: str, catalogue: str, grown: Any, source_of: Any, catalogue_of: Any
) -> None:
    items, users = CATALOGUES[catalogue]
    experiment, (state, report) = grown(name, items, users)
    old, params, _ = load_trained(source_of(name), catalogue_of())
    both = [i for i in ITEMS if i in items], [u for u in USERS if u in users]
    if len(both[1]) < 8:
        both = both[0], (both[1] * 8)[:8]
    before, after = vectors(old, params, *both), vectors(experiment, state.used, *both)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(state.step) == 0
    moved = report.tables["items"]
    new = len([i for i in items if i.startswith("new")])
    assert (moved.moved, moved.new) == (len(both[0]), new)
    assert moved.dropped == 40 - len(both[0])
    assert report.fresh == report.left == ()


def state_of(source: Path) -> Any:
    """All of the best checkpoint, read without what is tested here."""
    with open_checkpoint(source) as (checkpoints, step):
        config = load_config(source)
        model, optimizer = functional_of(config.model), config.optimizer.build(9)
        like = abstract_state(model, optimizer, average=config.training.average > 0)
        return checkpoints.restore(step, like)


@pytest.mark.grid
@pytest.mark.parametrize("name", ["tied", "untied", "pairs"])
def test_slots_stand_beside_their_rows(
    name: str, grown: Any, source_of: Any, config_of: Any, born: Any
) -> None:
    items, users = CATALOGUES["other"]
    experiment, (state, report) = grown(name, items, users)
    before, after = leaves(state_of(source_of(name)).optimizer), leaves(state.optimizer)
    fresh = leaves(born(experiment).optimizer)
    assert before.keys() == after.keys()
    for path, values in after.items():
        if "['table']" in path:
            old, new = (USERS, users) if "'users'" in path else (ITEMS, items)
            for row, identity in enumerate(["", *new]):
                expected = fresh[path][row]
                if identity in ["", *old]:
                    expected = before[path][["", *old].index(identity)]
                np.testing.assert_array_equal(values[row], expected)
        elif path == max(after):  # the count of the schedule, which the run has anew
            assert path.endswith("count") and values == 0
        else:
            np.testing.assert_array_equal(values, before[path])
    kept, anew = report.slots
    assert (kept, anew) == (len(after) - 1, 0)
    assert any(np.abs(values).sum() > 0 for path, values in after.items() if "table" in path)


def test_slots_move_past_a_clip_and_stay_away_when_told_or_of_another_kind(
    grown: Any, born: Any, source_of: Any
) -> None:
    clipped = OptimizerConfig(learning_rate=1e-2, clip_norm=1.0, weight_decay=0.1)
    _, (state, report) = grown("tied", ITEMS, optimizer=clipped)
    before = state_of(source_of("tied")).optimizer[0]
    assert isinstance(state.optimizer[1], type(before))
    for one, other in zip(
        jax.tree.leaves(before), jax.tree.leaves(state.optimizer[1]), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert report.slots[1] == 0
    lion = OptimizerConfig(name="lion")
    for growth, changes in ((Growth(keep_slots=False), {}), (None, {"optimizer": lion})):
        experiment, (state, report) = grown("tied", ITEMS, growth=growth, **changes)
        assert report.slots[0] == 0 < report.slots[1]
        fresh = leaves(born(experiment).optimizer)
        for path, values in leaves(state.optimizer).items():
            np.testing.assert_array_equal(values, fresh[path])


@pytest.mark.slow
def test_parameters_start_from_the_average_of_a_source_that_has_one(
    grown: Any, source_of: Any, catalogue_of: Any
) -> None:
    source = source_of("tied", average=0.9)
    _, params, _ = load_trained(source, catalogue_of())
    expected = leaves(params)
    for average in (0.0, 0.5):
        _, (state, _) = grown("tied", PERMUTED, source=source, average=average)
        found = leaves(state.used)
        assert leaves(state.average).keys() == (expected.keys() if average else set())
        table = "['items']['table']"
        rows = [0, *(1 + ITEMS.index(item) for item in PERMUTED)]
        np.testing.assert_array_equal(found.pop(table), expected[table][rows])
        for path, values in found.items():
            np.testing.assert_array_equal(values, expected[path])
        assert np.any(expected[table] != np.array(state_of(source).params["items"]["table"]))


def test_bfloat16_tables_take_float32_rows_and_keep_float32_slots(grown: Any) -> None:
    _, (whole, _) = grown("untied", PERMUTED)
    _, (half, _) = grown("untied", PERMUTED, table_dtype="bfloat16")
    table = half.params["items"]["table"]
    assert table.dtype == "bfloat16"
    np.testing.assert_array_equal(table, whole.params["items"]["table"].astype("bfloat16"))
    for one, other in zip(*(jax.tree.leaves(s.optimizer) for s in (whole, half)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.grid
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("pairs", None, ROWS),
        ("pairs", ROWS, HOST),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("pairs", ROWS, None),
                ("pairs", COLUMNS, ROWS),
                ("pairs", None, COLUMNS),
                ("pairs", HOST, None),
                ("untied", None, ROWS),
                ("untied", ROWS, None),
                ("untied", None, HOST),
            )
        ),
    ],
)
def test_a_source_on_some_devices_gives_what_it_gives_on_others(
    name: str, before: MeshConfig | None, after: MeshConfig | None, grown: Any, source_of: Any
) -> None:
    items, users = CATALOGUES["larger"]
    source = source_of(name, mesh=before)
    _, (alone, _) = grown(name, items, users, source=source)
    _, (state, _) = grown(name, items, users, source=source, mesh=after or MeshConfig())
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        if after is HOST and "table" in jax.tree_util.keystr(keys):
            assert isinstance(leaf, np.ndarray) and leaf.flags.writeable
        elif after is not None and after is not HOST:
            assert len(leaf.sharding.device_set) == 8
    found = leaves(state)
    for path, expected in leaves(alone).items():
        rows = len(expected) if expected.ndim else None
        values = found[path][:rows] if rows else found[path]
        np.testing.assert_array_equal(values, expected)
        if rows and path.startswith(".params"):
            assert not found[path][rows:].any()  # rows that make parts of a table equal


def test_random_rows_are_those_that_the_model_was_born_with(grown: Any, born: Any) -> None:
    items = ["new1", *PERMUTED[:30], "new2"]
    experiment, (state, report) = grown("untied", items, growth=Growth(new_rows="random"))
    fresh = born(experiment).params
    for table in ("items", "outputs"):
        rows = np.array(state.params[table]["table"])[[1, 32]]
        np.testing.assert_array_equal(rows, np.array(fresh[table]["table"])[[1, 32]])
    assert report.tables["items"].unknown == 0


def test_mean_rows_are_the_mean_of_all_old_ones_and_noise_sets_them_apart(
    grown: Any, source_of: Any
) -> None:
    items, users = ["new1", *PERMUTED[:30], "new2"], ["v1", *USERS]
    old = state_of(source_of("pairs")).params
    _, (state, _) = grown("pairs", items, users, growth=Growth(new_rows="mean"))
    for table, places in (("items", [1, 32]), ("users", [1])):
        mean = np.array(old[table]["table"])[1:].astype(np.float64).mean(axis=0)
        for row in places:
            found = np.array(state.params[table]["table"])[row]
            np.testing.assert_allclose(found, mean, rtol=1e-6)
    noisy = Growth(new_rows="mean", noise=0.5)
    tables = [
        np.array(grown("pairs", items, users, growth=g)[1].state.params["items"]["table"])
        for g in (noisy, noisy, dataclasses.replace(noisy, seed=1))
    ]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert np.all(tables[0][[1, 32]] != tables[2][[1, 32]])
    assert np.all(tables[0][1] != tables[0][32])
    rows = np.array(old["items"]["table"])[1:]
    spread = (rows - rows.mean(axis=0)).std()
    assert 0.1 < (tables[0][[1, 32]] - rows.mean(axis=0)).std() / spread < 0.9


def test_neighbours_rows_are_means_of_what_occurs_around(
    grown: Any, source_of: Any, catalogue_of: Any
) -> None:
    items = PERMUTED[:40]
    popular = np.argsort(-catalogue_of(items, seed=1).item_counts[1:], kind="stable")
    items[popular[0]], items[popular[3]] = "new1", "new2"
    experiment, (state, report) = grown("tied", items, growth=Growth(window=2))
    old = np.array(state_of(source_of("tied")).params["items"]["table"])
    data = experiment.dataset
    for name in ("new1", "new2"):
        new = data.item_index(name)
        around: list[int] = []
        for user in range(1, data.num_users + 1):
            here = (data.users == user) & (data.split == 0)
            history = data.items[here].tolist()
            for place, item in enumerate(history):
                if item == new:
                    around += history[max(0, place - 2) : place] + history[place + 1 : place + 3]
        known = [items[i - 1] for i in around if not items[i - 1].startswith("new")]
        assert len(known) > len(set(known)) > 2  # some occur more often, and count more
        rows = old[[1 + ITEMS.index(item) for item in known]]
        found = np.array(state.params["items"]["table"])[new]
        np.testing.assert_allclose(found, rows.mean(axis=0), rtol=1e-5, atol=1e-7)
    assert report.tables["items"].unknown == 0


def test_content_rows_are_weighted_means_of_the_nearest(
    grown: Any, source_of: Any, config_of: Any, catalogue_of: Any, tmp_path: Path
) -> None:
    """By hand: item i of the source has the genre of its number modulo 10, and a vector."""
    from jaxrec.training import train

    genres = [f"g{n % 10}" for n in range(40)]
    plain = catalogue_of(metadata={"genres": genres, "title": [f"t{n}" for n in range(40)]})
    train(config_of("tied"), plain, tmp_path / "genres", quiet=True)
    items = ["new1", *PERMUTED, "new2", "new3"]
    metadata = {
        "genres": ["g3", *(f"g{int(i[1:]) % 10}" for i in PERMUTED), "g1|g2", None],
        "title": [f"other{n}" for n in range(43)],
    }
    growth = Growth(new_rows="content", nearest=8)
    _, (state, report) = grown(
        "tied", items, source=tmp_path / "genres", metadata=metadata, growth=growth
    )
    old = np.array(state_of(tmp_path / "genres").params["items"]["table"])
    found = np.array(state.params["items"]["table"])
    np.testing.assert_allclose(found[1], old[[4, 14, 24, 34]].mean(axis=0), rtol=1e-5)
    eight = old[[2, 12, 22, 32, 3, 13, 23, 33]]
    np.testing.assert_allclose(found[42], eight.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found[43], old[1:].mean(axis=0), rtol=1e-5)
    assert report.tables["items"].unknown == 1


def test_arrays_are_read_once_and_the_source_is_left_alone(
    grown: Any, source_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of("pairs")
    before = hashes(source)
    from jaxrec.training.checkpoints import SKIP, Checkpoints

    read: list[int] = []
    restore = Checkpoints.restore

    def counted(self: Checkpoints, step: int, like: Any = None) -> Any:
        flat = [np.shape(leaf) for leaf in jax.tree.leaves(like) if leaf is not SKIP]
        read.append(sum(len(shape) == 2 for shape in flat))
        return restore(self, step, like)

    monkeypatch.setattr(Checkpoints, "restore", counted)
    items, users = CATALOGUES["other"]
    grown("pairs", items, users)
    assert max(read) == 1 and sum(read) == 2 * 3  # two tables and two moments of each, one by one
    assert hashes(source) == before


def hashes(directory: Path) -> dict[Path, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_checkpoint_of_another_family_is_refused_by_the_first_difference(
    grown: Any, source_of: Any
) -> None:
    with pytest.raises(UserError, match="another family.*first difference is 'blocks/0/attention"):
        grown("tied", ITEMS, source=source_of("pairs"))
    with pytest.raises(UserError, match="another family.*nothing but"):
        grown("pairs", ITEMS, source=source_of("tied"))
    wider = matrix_factorization.Config(dim=8)
    with pytest.raises(UserError, match=r"its 'items/table' has rows of shape \(8,\).*--config"):
        grown("pairs", ITEMS, model=wider)
    hidden = sasrec.Config(max_len=6, dim=8, num_blocks=1, num_heads=1, hidden=16)
    with pytest.raises(UserError, match="its 'blocks/0/feed_forward/.*has the shape"):
        grown("tied", ITEMS, model=hidden)


def test_what_only_one_model_has_starts_fresh_or_is_left(grown: Any, born: Any) -> None:
    deeper = sasrec.Config(max_len=6, dim=8, num_blocks=2, num_heads=1, hidden=8, tied=False)
    experiment, (state, report) = grown("tied", ITEMS, model=deeper)
    fresh = born(experiment).params
    assert {path.split("/")[0] for path in report.fresh} == {"blocks", "outputs"}
    assert all(path.startswith(("blocks/1/", "outputs/")) for path in report.fresh)
    for one, other in zip(
        jax.tree.leaves(state.params["blocks"]["1"]),
        jax.tree.leaves(fresh["blocks"]["1"]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert "parameters start fresh: " in str(report)


def test_a_source_without_a_checkpoint_or_vocabulary_says_what_to_do(
    grown: Any, source_of: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has no checkpoint yet. Train first"):
        grown("tied", ITEMS, source=tmp_path)
    with pytest.raises(UserError, match="no checkpoint of step 99; it has"):
        grown("tied", ITEMS, step=99)
    copy = shutil.copytree(source_of("tied"), tmp_path / "copy")
    file = copy / "vocabularies" / "item.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="item.parquet is damaged"):
        grown("tied", ITEMS, source=copy)
    pd.DataFrame({"id": ITEMS[::-1]}).to_parquet(file)
    with pytest.raises(UserError, match="not the vocabulary that the checkpoint was trained with"):
        grown("tied", ITEMS, source=copy)
    file.unlink()
    with pytest.raises(UserError, match="does not exist.*scripts/train.py once more"):
        grown("tied", ITEMS, source=copy)


def test_ids_that_are_equal_as_text_are_refused(grown: Any, source_of: Any, tmp_path: Path) -> None:
    for twice in ([7, "7"], ["new", "new"], ["new", None]):
        with pytest.raises(UserError, match=r"the dataset's item vocabulary has the id .* twice"):
            grown("tied", [*ITEMS, *twice])


def test_content_without_metadata_in_common_names_what_there_is(grown: Any) -> None:
    with pytest.raises(UserError, match=r"the source has none, the dataset \['genres'\]"):
        grown(
            "tied",
            [*ITEMS, "new"],
            metadata={"genres": ["a"] * 41},
            growth=Growth(new_rows="content"),
        )


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="new_rows='nearby' is not known"):
        Growth(new_rows="nearby")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="nearest and window from 1"):
        Growth(nearest=0)
