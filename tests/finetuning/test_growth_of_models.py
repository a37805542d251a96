"""Growing from what other parts make: models with content, and models saved without slots."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxrec.data import Dataset, write_content
from jaxrec.data.content import read_content
from jaxrec.finetuning import finetune, grow, open_source
from jaxrec.models import WithContent, sasrec
from jaxrec.paths import flatten
from jaxrec.training import Experiment, load_trained, save_trained, train

TRUNK = sasrec.Config(max_len=6, dim=8, num_blocks=1, num_heads=1, hidden=8)


@pytest.mark.grid
@pytest.mark.parametrize("id_vectors", [True, False])
def test_content_is_that_of_the_new_catalogue(
    id_vectors: bool,
    catalogue_of: Callable[..., Dataset],
    config_of: Any,
    born: Any,
    tmp_path: Path,
) -> None:
    items = [f"i{n}" for n in range(40)]
    others = [*items[5:30][::-1], "new1", "new2"]
    datasets, configs = {}, {}
    for name, ids in (("old", items), ("new", others)):
        kinds = {"kind": [f"k{sum(map(ord, i)) % 7}|all" for i in ids]}
        datasets[name] = catalogue_of(ids, metadata=kinds)
        write_content(datasets[name], tmp_path / f"{name}-content", ["kind"], hashed_width=16)
        where = str(tmp_path / f"{name}-content")
        model = WithContent(model=TRUNK, content=where, id_vectors=id_vectors)
        configs[name] = config_of("tied", model=model)
    train(configs["old"], datasets["old"], tmp_path / "run", quiet=True)
    experiment = Experiment.of(configs["new"], datasets["new"])
    with open_source(tmp_path / "run", datasets["new"]) as source:
        grown = grow(source, experiment, born(experiment))
    old, params, _ = load_trained(tmp_path / "run", datasets["old"])
    given = "items/table_content" if id_vectors else "items/table"
    flat, content = flatten(grown.state.params), read_content(tmp_path / "new-content")[0]
    np.testing.assert_array_equal(flat[given], content)
    np.testing.assert_array_equal(flat["items/projection"], flatten(params)["items/projection"])
    both = others[:25]
    vectors = [
        one.item_vectors(tree, np.array([one.dataset.item_index(i) for i in both], np.int32))
        for one, tree in ((old, params), (experiment, grown.state.params))
    ]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    if id_vectors:
        assert grown.report.tables["items"].moved == 25
    assert given not in grown.report.taken
    assert grown.report.fresh == ()


def test_a_model_that_was_saved_alone_is_a_source(
    catalogue_of: Callable[..., Dataset], config_of: Any, source_of: Any, tmp_path: Path
) -> None:
    data = catalogue_of()
    experiment, params, step = load_trained(source_of(), data)
    save_trained(experiment, params, tmp_path / "alone", step=step)
    result = finetune(
        tmp_path / "alone",
        data,
        tmp_path / "tuned",
        config=config_of("tied", steps=2),
        accept_worse=True,
        quiet=True,
    )
    before = experiment.evaluate(params, "test").metrics["ndcg@10"]
    np.testing.assert_allclose(result["comparison"]["old"], before)
    assert result["steps"] == 2
    with open_source(tmp_path / "alone", data) as source:
        assert not source.slots
        assert source.parameters.keys() == flatten(jax.device_get(params)).keys()
