"""A config bound to a dataset: the functions that training, evaluation and serving share."""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.data.batches import fields_read
from jaxrec.data.dataset import Dataset
from jaxrec.evaluation import (
    Evaluation,
    Requests,
    RetrieverRecommender,
    evaluate,
    padded_width,
    task_metrics,
)
from jaxrec.functional import Functional, functional_of
from jaxrec.objectives.tasks import head_outputs
from jaxrec.paths import flatten, select
from jaxrec.sharding import AXIS_RULES, Layout, mesh_of
from jaxrec.training.config import ExperimentConfig
from jaxrec.training.host import Slices, host_tables, to_host
from jaxrec.training.known import known_rows
from jaxrec.training.planning import Plan, make_plan
from jaxrec.training.state import TrainState, abstract_state, init_state
from jaxrec.training.step import step_kinds
from jaxrec.training.tables import TableUse, tables_of
from jaxrec.typing import Array, Batch, Params, UserError

_NONE: Mapping[str, str] = types.MappingProxyType({})
_BLOCK_ROWS = 2**20  # of a table on the host that go to the device together to be ranked


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config whose model has the dataset's counts, with the model as pure functions.

    Attributes:
      config: the fitted config.
      dataset: what it is trained and measured on.
      model: (init, apply, bind) of the model.
    """

    config: ExperimentConfig
    dataset: Dataset
    model: Functional

    @classmethod
    def of(cls, config: ExperimentConfig, dataset: Dataset) -> "Experiment":
        """Fits the config to the dataset. Raises UserError when it was set to another one."""
        fitted = dataclasses.replace(config, model=config.model.fit(dataset.manifest))
        return cls(fitted, dataset, functional_of(fitted.model))

    @functools.cached_property
    def tables(self) -> dict[str, tuple[str, ...]]:
        """The batch fields that index each table of the model."""
        return {name: use.fields for name, use in self._uses.items()}

    @functools.cached_property
    def catalogue(self) -> tuple[str, ...]:
        """Names of the tables that hold the vectors of items to choose from."""
        return tuple(name for name, use in self._uses.items() if use.is_catalogue)

    @functools.cached_property
    def _uses(self) -> dict[str, TableUse]:
        return tables_of(self.model)

    @property
    def state_options(self) -> dict[str, Any]:
        """What `init_state` and `abstract_state` want to know of the config."""
        training = self.config.training
        kept = {"average": training.average > 0, "table_dtype": training.table_dtype}
        return kept | {"trained": self.trained}

    @functools.cached_property
    def trained(self) -> frozenset[str] | None:
        """Paths of the parameters that are trained; None means all of them.

        Raises:
          UserError: when `training.trained` names what the model does not have.
        """
        patterns, frozen = self.config.training.trained, self.model.frozen
        if not patterns and not frozen:
            return None
        there = flatten(self.model.shapes)
        named = {"head": self.catalogue}
        spelt = [path for pattern in patterns for path in named.get(pattern, (pattern,))]
        chosen = select(spelt or ["*"], there, option="config.training.trained") - frozen
        if not chosen:
            raise UserError(
                f"config.training.trained={patterns} leaves nothing to train: the model holds all "
                f"of it fixed. Name others, such as {min(there.keys() - frozen, default=None)!r}."
            )
        return chosen

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """Returns the optimiser for a run of so many steps."""
        return self.config.optimizer.build(steps, self.model.layers)

    def plan(
        self, optimizer: optax.GradientTransformation, mesh: Mesh, steps: Mapping[str, str] = _NONE
    ) -> Plan:
        """Returns where everything goes on these devices, and how tables are updated.

        Args:
          steps: what `step_kinds` says, when that is to be told.

        Raises:
          UserError: when it does not fit.
        """
        shapes = abstract_state(self.model, optimizer, **self.state_options)
        catalogue = self.catalogue if self.config.objective.whole_catalogue else ()
        return make_plan(shapes, self.config.mesh, mesh, catalogue=catalogue, steps=steps)

    def step_kinds(self, batches: Any, statistics: Any) -> dict[str, str]:
        """Returns how a step updates each table, by its batches; see `jaxrec.training.step`."""
        training = self.config.training
        return step_kinds(
            self.model,
            self.config.objective,
            batches,
            statistics,
            capacity=training.capacity,
            accumulate=training.accumulate,
        )

    def born(
        self, optimizer: optax.GradientTransformation, mesh: Mesh, layout: Layout
    ) -> TrainState:
        """Returns the state before the first step, each array where the layout of a plan has it."""
        seed = self.config.training.seed
        if not layout.on_host:
            where: dict[str, Any] = {"mesh": mesh, "layout": layout}
            return init_state(self.model, optimizer, seed, **self.state_options, **where)
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            state = init_state(self.model, optimizer, seed, **self.state_options)
        return to_host(state, layout.on_host)

    def _jitted(
        self,
        method: str | Callable[..., Any],
        mesh: Mesh | None,
        out: tuple[str | None, ...] = (),
    ) -> Any:
        """Returns a method of the model, jitted and kept; with a mesh, its result split.

        Args:
          method: its name, or a function of the module and what it is given.
        """
        key = (method, mesh, out)
        if key not in self._kept:

            def apply(params: Params, *arguments: Any) -> Any:
                spread = arguments if mesh is None else _spread(arguments, mesh)
                module = self.model.bind(params)
                if isinstance(method, str):
                    return getattr(module, method)(*spread)
                return method(module, *spread)

            where = None if mesh is None else NamedSharding(mesh, PartitionSpec(*out))
            self._kept[key] = jax.jit(apply, out_shardings=where)
        return self._kept[key]

    @functools.cached_property
    def _kept(self) -> dict[Any, Any]:
        return {}

    def measuring(self, *, ks: tuple[int, ...] = (), mask_seen: bool | None = None) -> "Experiment":
        """Returns the experiment with other cut-offs or another mask; () and None leave them."""
        evaluation = self.config.evaluation
        if ks:
            monitor = evaluation.monitor
            if "@" in monitor and int(monitor.partition("@")[2]) not in ks:
                monitor = f"{monitor.partition('@')[0]}@{ks[0]}"
            evaluation = dataclasses.replace(evaluation, ks=ks, monitor=monitor)
        if mask_seen is not None:
            evaluation = dataclasses.replace(evaluation, mask_seen=mask_seen)
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, evaluation=evaluation)
        )

    def recommender(self, params: Params) -> RetrieverRecommender:
        """Returns the model with these parameters as a recommender of what it knows."""
        known = known_rows(self, params)
        by_row = "users" in fields_read(self.config.data)
        return RetrieverRecommender(
            known_items=None if known["item"][1:].all() else known["item"],
            known_users=known["user"] if by_row else None,
            user_vectors=functools.partial(self.user_vectors, params),
            item_blocks=functools.partial(self._item_blocks, params),
            make_batch=self._request_batch,
            config=self.config.evaluation,
        )

    def _request_batch(self, requests: Requests, rows: np.ndarray) -> Batch:
        data = self.config.data
        # Users with histories of like length share a batch, so short ones make short rows.
        longest = int(requests.history_lengths[rows].max())
        width = min(data.max_len, padded_width(longest, smallest=8, factor=2))
        batch: Batch = data.requests(requests.users[rows], requests.padded_history(width, rows))
        return batch

    def user_vectors(self, params: Params, batch: Batch) -> jax.Array:
        """Returns (B, D), one vector a row, without dropout; jitted, wherever the tables are."""
        params = self._on_device(params, batch)
        return self._jitted("user_vectors", mesh_of(params))(params, batch)

    def item_vectors(self, params: Params, ids: Array) -> jax.Array:
        """Returns (B, D) for item indices (B,); jitted, wherever the tables are."""
        params = self._on_device(params, Batch(positives=ids))
        return self._jitted("item_vectors", mesh_of(params))(params, ids)

    def _on_device(self, params: Params, batch: Batch) -> Params:
        """Returns what a device wants of tables on the host for a batch."""
        tables = {name: self.tables.get(name, ()) for name in host_tables(params)}
        return Slices.of(batch, tables).bound(params) if tables else params

    def _item_blocks(self, params: Params) -> Iterator[jax.Array]:
        mesh, on_host = mesh_of(params), host_tables(params)
        name = next((name for name in self.catalogue if name in on_host), None)
        if name is None:
            params = Slices({}, {}).take(params)
            yield self._jitted("item_vectors", mesh, self._split_items(params, mesh))(params)
            return
        table = params[name]["table"]
        for start in range(0, len(table), _BLOCK_ROWS):
            rows = {
                key: leaf[start : start + _BLOCK_ROWS] if isinstance(leaf, np.ndarray) else leaf
                for key, leaf in params[name].items()
            }
            block = Slices({}, {}).take(params) | {name: rows}
            yield self._jitted("item_vectors", None)(block)

    def _split_items(self, params: Params, mesh: Mesh | None) -> tuple[str | None, ...]:
        """Returns ("model",) when vectors of items can stay on the devices of their rows."""
        if mesh is None:
            return ()
        rows = jax.eval_shape(self._jitted("item_vectors", None), params).shape[0]
        return ("model",) if rows % mesh.shape["model"] == 0 else ()

    def predict(self, params: Params, users: Array, items: Array) -> jax.Array:
        """Returns (B,) scores of pairs of (B,) users and (B,) items, for models that know users."""
        batch = self.config.data.requests(users, np.zeros((len(users), 1), np.int32))
        vectors = self.user_vectors(params, batch)
        return jax.numpy.sum(vectors * self.item_vectors(params, items), axis=-1)

    def evaluate(self, params: Params, split: str, *, intervals: bool = True) -> Evaluation:
        """Measures parameters on "valid" or "test"."""
        evaluation = self.config.evaluation
        if not intervals:
            evaluation = dataclasses.replace(evaluation, bootstrap_samples=0)
        tasks = getattr(self.config.objective, "tasks", ())
        recommender = self.recommender(params)
        measured = evaluate(
            recommender,
            self.dataset,
            split,
            evaluation,
            predict_ratings=functools.partial(self.predict, params),
            known_items=recommender.known_items,
        )
        if not tasks:
            return measured
        outputs = functools.partial(self._head_outputs, params)
        values = task_metrics(tasks, outputs, self.dataset, split, evaluation.batch_size)
        return dataclasses.replace(measured, metrics=measured.metrics | values)

    def _head_outputs(
        self, params: Params, requests: Requests, rows: np.ndarray, items: np.ndarray
    ) -> dict[str, jax.Array]:
        """Returns (B, outputs) by head, for requests and an item for each."""
        batch = self._request_batch(requests, rows).replace(positives=items)
        params = self._on_device(params, batch)
        return self._jitted(self._apply_heads, mesh_of(params))(params, batch)

    @functools.cached_property
    def _apply_heads(self) -> Callable[[Any, Batch], dict[str, jax.Array]]:
        def apply(module: Any, batch: Batch) -> dict[str, jax.Array]:
            users = module.user_vectors(batch.replace(positives=None))
            items = module.item_vectors(batch.positives)
            return {
                task.head: head_outputs(module, task.head, users, items if task.sees_item else None)
                for task in self.config.objective.tasks
            }

        return apply


def _spread[T](batch: T, mesh: Mesh) -> T:
    """Returns arrays of a batch with their rows split over the devices, if they divide."""
    where = NamedSharding(mesh, PartitionSpec(*AXIS_RULES["batch"]))
    divides = all(len(leaf) % mesh.size == 0 for leaf in jax.tree.leaves(batch))
    return jax.lax.with_sharding_constraint(batch, where) if divides else batch
