"""Candidates for the place of a trained model: what each method of compression makes of it."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrec.compression.pruning import prune_and_train, start_from, widths_of
from jaxrec.compression.quantized import QuantizationAware, Quantized, quantize
from jaxrec.data import Taught
from jaxrec.distillation import Distillation
from jaxrec.objectives import BCE, BPR, FullSoftmax, InBatchSoftmax, SampledSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.paths import flatten
from jaxrec.training import Experiment, ExperimentConfig, load_trained, train
from jaxrec.typing import Params, UserError

# How smaller models are taught; what was measured for it is in docs/compression.md.
_TAUGHT, _AUGMENT, _LESS_DROPOUT = 0.5, 0.2, 0.2
_OF_FINE_TUNING = ("l2_to_start", "layer_decay", "unfreeze_every")
_RANKING = (FullSoftmax, SampledSoftmax, InBatchSoftmax, BCE, BPR)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model that may take the source's place.

    Attributes:
      name: what was done, such as "int4 group 32".
      experiment: its config is that of a model as any other.
      params: as `experiment.model` takes them.
    """

    name: str
    experiment: Experiment
    params: Params


@dataclasses.dataclass(frozen=True)
class Source:
    """What is to be compressed, and what methods may use.

    Attributes:
      experiment, params: the trained model.
      workdir: its run, which teaches smaller models.
      work: directory for runs of methods that train; a search that was cut off and is called again
        goes on from what is there.
      training_share: how long such a run is, in lengths of the source's own.
      quiet: no progress of such runs on stderr.
    """

    experiment: Experiment
    params: Params
    workdir: Path
    work: Path
    training_share: float = 0.5
    quiet: bool = True

    def of(self, name: str, model: Any, params: Params) -> Candidate:
        """Returns a candidate with another model config."""
        config = dataclasses.replace(self.experiment.config, model=model)
        return Candidate(name, Experiment.of(config, self.experiment.dataset), params)

    def quantised(self, name: str, **options: Any) -> Candidate:
        """Returns the source with its parameters quantised; options as `Quantized`."""
        config = Quantized(model=_plain(self.experiment.config.model), **options)
        return self.of(name, config, quantize(self.params, config))

    @property
    def table_width(self) -> int:
        """The greatest number that divides the width of every table."""
        flat, tables = flatten(self.params), self.experiment.tables
        return math.gcd(*(flat[f"{name}/table"].shape[1] for name in tables))

    def smaller(self, name: str, counts: Mapping[str, int]) -> Iterator[Candidate]:
        """Gives the source with smaller counts, trained; and the same as int8."""
        experiment, params = prune_and_train(
            self.taught,
            self.params,
            counts,
            self.work / name.replace(" ", "_"),
            quiet=self.quiet,
        )
        yield Candidate(name, experiment, params)
        trained = dataclasses.replace(self, experiment=experiment, params=params)
        yield trained.quantised(f"{name}, int8", tables="int8")

    @property
    def shorter(self) -> ExperimentConfig:
        """The config with a training of `training_share` of its length, and of all parameters.

        What a fine-tuned source did to stay near its own source has no part in it.
        """
        config = self.experiment.config
        plain = OptimizerConfig()
        optimizer = dataclasses.replace(
            config.optimizer,
            **{name: getattr(plain, name) for name in _OF_FINE_TUNING},
        )
        config = dataclasses.replace(config, optimizer=optimizer)
        length = "steps" if config.training.steps else "epochs"
        value = max(1, round(getattr(config.training, length) * self.training_share))
        training = dataclasses.replace(config.training, trained=(), **{length: value})
        return dataclasses.replace(config, training=training)

    @property
    def taught(self) -> Experiment:
        """The experiment as smaller models are trained: for a shorter time, by the source.

        A model whose objective does not rank items has no teacher. One that has gets less dropout,
        as it is smaller and the teacher's labels are soft.
        """
        config = self.shorter
        objective, data = config.objective, config.data
        if isinstance(objective, Distillation):
            objective = objective.objective
        if isinstance(data, Taught):
            data = data.data
        if isinstance(objective, _RANKING):
            taught = Distillation(
                objective=objective,
                teacher=str(self.workdir.absolute()),
                weight=_TAUGHT,
                augment=_AUGMENT,
                top_k=0 if objective.whole_catalogue else 50,
            )
            config = dataclasses.replace(
                config, objective=taught, data=data, model=_with_less_dropout(config.model)
            )
        return dataclasses.replace(self.experiment, config=config)


def _with_less_dropout(model: Any) -> Any:
    rates = {
        field.name: _LESS_DROPOUT * getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name.endswith("dropout")
    }
    return dataclasses.replace(model, **rates)


def _int8(source: Source) -> Iterator[Candidate]:
    yield source.quantised("int8", tables="int8")


def _int4(source: Source) -> Iterator[Candidate]:
    yield source.quantised("int4", tables="int4")
    width = source.table_width
    for group in (width // 2, width // 4):
        if group > 1 and width % group == 0:
            yield source.quantised(f"int4 group {group}", tables="int4", group=group)


def _qat(source: Source) -> Iterator[Candidate]:
    """int4, after training that knows of it."""
    model = source.experiment.config.model
    aware = QuantizationAware(model=_plain(model), bits=4)
    config = dataclasses.replace(source.shorter, model=aware)
    workdir, dataset = source.work / "qat", source.experiment.dataset
    train(config, dataset, workdir, start=start_from(source.params), quiet=source.quiet)
    _, params, _ = load_trained(workdir, dataset)
    stored = aware.quantized()
    yield source.of("int4, trained for it", stored, quantize(params, stored))


def _plain(model: Any) -> Any:
    """Returns the config whose parameters are floats: the same ones."""
    return model.model if isinstance(model, QuantizationAware) else model


def _pq(source: Source) -> Iterator[Candidate]:
    width = source.table_width
    for parts in (width // 2, width // 4, width // 8):
        if parts >= 1 and width % parts == 0:
            yield source.quantised(f"pq {parts} parts", tables="pq", pq_parts=parts)


def _prune(source: Source) -> Iterator[Candidate]:
    """Half of the heads and hidden units; half of the width as well; and both as int8."""
    model = source.experiment.config.model
    half = _halved(model, keep=("num_blocks",))
    inside = {field: count for field, count in half.items() if field != "dim"}
    if inside:
        yield from source.smaller("prune blocks", inside)
    yield from source.smaller("prune all", half)


def _distil(source: Source) -> Iterator[Candidate]:
    """A student with half of everything, blocks included; and as int8."""
    yield from source.smaller("student", _halved(source.experiment.config.model))


def _halved(model: Any, keep: tuple[str, ...] = ()) -> dict[str, int]:
    fields = [field for field in widths_of(model) if field not in keep]
    return {field: max(1, getattr(model, field) // 2) for field in fields}


METHODS: dict[str, Callable[[Source], Iterator[Candidate]]] = {
    "int8": _int8,
    "int4": _int4,
    "pq": _pq,
    "qat": _qat,
    "prune": _prune,
    "distil": _distil,
}


def check_methods(model: Any, methods: Sequence[str]) -> None:
    """Refuses what `candidates` would refuse, before anything is measured or trained.

    Raises:
      UserError: for no method or one that is not among `METHODS`, a model that is quantised
        already, or one that cannot be made smaller.
    """
    if not methods:
        raise UserError(f"say at least one method. There are: {', '.join(METHODS)}.")
    for name in methods:
        if name not in METHODS:
            raise UserError(f"no method {name!r}. There are: {', '.join(METHODS)}.")
    if isinstance(model, Quantized):
        raise UserError("the model is quantised already. Compress the run that it was made from.")
    if {"prune", "distil"} & set(methods):
        widths_of(model)


def candidates(source: Source, methods: Sequence[str]) -> Iterator[Candidate]:
    """Gives the candidates of some methods, made one after the other.

    Raises:
      UserError: as `check_methods`.
    """
    check_methods(source.experiment.config.model, methods)
    for name in methods:
        yield from METHODS[name](source)
