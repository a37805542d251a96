"""Overrides are typed, errors name the closest field, and saving loses nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec import config as configs
from jaxrec.data import PairData, SequenceData
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import BCE, FullSoftmax, SquaredError
from jaxrec.optim import OptimizerConfig
from jaxrec.training import ExperimentConfig, TrainingConfig
from jaxrec.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    depth: int = 2
    pair: tuple[int, str] = (1, "a")

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise ValueError(f"depth must not be negative; got {self.depth}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = Inner()
    name: str = "x"
    flag: bool = False
    sizes: tuple[int, ...] = (1, 2)
    words: tuple[str, ...] = ()
    kind: Literal["none", "some", 3] = "some"
    limit: int | None = None
    label: str | None = None
    either: int | float = 1
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    anything: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Required:
    value: int


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("inner.rate", "1e-3", 0.001),
        ("inner.rate", "2", 2.0),
        ("inner.rate", "-0.25", -0.25),
        ("inner.depth", "7", 7),
        ("inner.pair", "(4, 'b')", (4, "b")),
        ("name", "word", "word"),
        ("name", "10", "10"),
        ("name", "none", "none"),
        ("name", "true", "true"),
        ("name", "'quoted'", "quoted"),
        ("flag", "true", True),
        ("flag", "False", False),
        ("sizes", "10,20", (10, 20)),
        ("sizes", "10", (10,)),
        ("sizes", "10,20,30", (10, 20, 30)),
        ("sizes", "[5]", (5,)),
        ("words", "blocks/1", ("blocks/1",)),
        ("words", "blocks/1,output_norm", ("blocks/1", "output_norm")),
        ("words", "*/kernel, items", ("*/kernel", "items")),
        ("words", "('a','b')", ("a", "b")),
        ("sizes", "()", ()),
        ("kind", "none", "none"),
        ("kind", "3", 3),
        ("limit", "none", None),
        ("limit", "5", 5),
        ("label", "none", None),
        ("label", "5", "5"),
        ("extra", "{'a': 1}", {"a": 1}),
        ("anything", "3", 3),
    ],
)
def test_text_becomes_the_fields_type(path: str, text: str, expected: Any) -> None:
    value: Any = configs.override(Outer(limit=1, label="l"), path, text)
    for key in path.split("."):
        value = getattr(value, key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("inner.depth", "2.0"),
        ("inner.depth", "true"),
        ("inner.depth", "many"),
        ("inner.depth", ""),
        ("inner.rate", "none"),
        ("inner.rate", "1" + "0" * 400),
        ("inner.rate", "{[]: 1}"),
        ("inner.rate", "(" * 500),
        ("inner.pair", "(1, 2)"),
        ("inner.pair", "(1, 'a', 3)"),
        ("inner.pair", "(1,)"),
        ("inner.pair", "4,b"),
        ("flag", "1"),
        ("sizes", "1,x"),
        ("sizes", "1,2.5"),
        ("kind", "3.0"),
        ("kind", "other"),
        ("flag", "yes"),
        ("limit", "1.5"),
    ],
)
def test_a_value_of_another_type_is_refused(path: str, text: str) -> None:
    with pytest.raises(UserError, match=f"config.{path} wants"):
        configs.override(Outer(), path, text)


def test_an_override_changes_nothing_else() -> None:
    config = Outer(sizes=(9,))
    changed = configs.override(config, "inner.rate", "0.1")
    assert changed == dataclasses.replace(config, inner=Inner(rate=0.1))
    assert config == Outer(sizes=(9,))


@pytest.mark.parametrize(
    ("path", "closest"),
    [
        ("optimizer.learningrate", "learning_rate"),
        ("optimiser.learning_rate", "optimizer"),
        ("training.batchsize", "batch_size"),
        ("model.num_head", "num_heads"),
    ],
)
def test_a_misspelt_name_brings_the_closest_one(path: str, closest: str) -> None:
    config = ExperimentConfig(data=SequenceData(), model=sasrec.Config(), objective=FullSoftmax())
    with pytest.raises(UserError, match=f"Did you mean '{closest}'"):
        configs.override(config, path, "1")


def test_a_group_cannot_be_set_and_names_its_fields() -> None:
    with pytest.raises(UserError, match="config.inner is a group.*rate, depth, pair"):
        configs.override(Outer(), "inner", "1")


def test_nothing_lies_below_a_value() -> None:
    with pytest.raises(UserError, match="nothing lies below 'inner.rate'"):
        configs.override(Outer(), "inner.rate.low", "1")


def test_what_a_dataclass_refuses_is_told_with_the_path() -> None:
    with pytest.raises(UserError, match="config.inner.depth=-1: depth must not be negative"):
        configs.override(Outer(), "inner.depth", "-1")


@pytest.mark.parametrize(
    "config",
    [
        Outer(inner=Inner(rate=1e-7), sizes=(), limit=4, label="é", extra={"a": [1, {"b": None}]}),
        ExperimentConfig(
            data=SequenceData(buckets=(3, 9)),
            model=sasrec.Config(block="ligr"),
            objective=BCE(calibration=0.3),
        ),
        ExperimentConfig(
            data=PairData(),
            model=matrix_factorization.Config(global_mean=3.5),
            objective=SquaredError(l2=0.1),
            optimizer=OptimizerConfig(name="adagrad"),
            training=TrainingConfig(epochs=3),
        ),
    ],
    ids=["by_hand", "sasrec", "matrix_factorization"],
)
def test_a_round_trip_through_a_file_returns_the_same_config(config: Any, tmp_path: Path) -> None:
    configs.save(config, tmp_path / "config.json")
    loaded = configs.load(tmp_path / "config.json")
    if isinstance(config, Outer):  # JSON has no tuples and a config has no lists
        config = dataclasses.replace(config, extra={"a": (1, {"b": None})})
    assert loaded == config


def _values(hint: Any) -> st.SearchStrategy[Any]:
    finite = st.floats(allow_nan=False, allow_infinity=False)
    return {
        "rate": finite,
        "depth": st.integers(0, 2**70),
        "name": st.text(),
        "flag": st.booleans(),
        "sizes": st.lists(st.integers()).map(tuple),
        "kind": st.sampled_from(["none", "some", 3]),
        "limit": st.none() | st.integers(),
        "label": st.none() | st.text(),
    }[hint]


_inner = st.builds(Inner, rate=_values("rate"), depth=_values("depth"))
_names = ("name", "flag", "sizes", "kind", "limit", "label")
_outer = st.builds(Outer, inner=_inner, **{name: _values(name) for name in _names})


@given(_outer)
def test_any_config_survives_json(config: Outer) -> None:
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))) == config


@given(st.sampled_from(["inner.rate", "inner.depth", "flag", "sizes", "limit"]), st.data())
def test_a_printed_value_overrides_to_itself(path: str, data: st.DataObject) -> None:
    name = path.split(".")[-1]
    wanted = data.draw(_values(name))
    value: Any = configs.override(Outer(), path, str(wanted))
    for key in path.split("."):
        value = getattr(value, key)
    assert value == wanted


@given(st.sampled_from([f.name for f in dataclasses.fields(Outer)] + ["inner.rate"]), st.text())
def test_any_text_is_taken_or_refused_in_one_sentence(path: str, text: str) -> None:
    try:
        configs.override(Outer(), path, text)
    except UserError as error:
        assert f"config.{path}" in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ('{"type": "nowhere.Config"}', "not installed"),
        ('{"type": "jaxrec.config.override"}', "not a config class"),
        ('{"type": "jaxrec.optim.OptimizerConfig", "beta": 1}', "no field 'beta'"),
        ('{"type": "jaxrec.optim.OptimizerConfig", "learning_rate": -1.0}', "learning_rate"),
        ('{"type": "jaxrec.training.ExperimentConfig"}', "ExperimentConfig"),
    ],
)
def test_a_damaged_file_is_told_in_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        configs.load(tmp_path / "config.json")


def test_bytes_that_are_no_text_are_told_as_damage(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UserError, match="damaged"):
        configs.load(tmp_path / "config.json")


def test_an_absent_file_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        configs.load(tmp_path / "config.json")
