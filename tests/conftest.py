"""Strict switches, and fixtures: functions that make datasets by hand.

Everywhere: eight emulated devices, so that meshes are tested without hardware; no implicit
broadcasting between ranks, which hides mistakes; warnings that the package raises are errors.
"""

import contextlib
import os

# Devices are counted when a backend starts, and a plugin may start one at import.
_DEVICES = "--xla_force_host_platform_device_count=8"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import numpy as np
import pandas as pd
import pytest

from jaxrec.data.dataset import Dataset, Manifest

# Code of our own alone: no implicit mixing of dtypes. Optax's Adam mixes float and int in its bias
# correction, so training as a whole cannot be held to it.
_PURE = ("layers", "losses", "metrics", "models", "objectives", "ops", "optim", "sampling")
_STEPS = (
    *("test_every_placement.py", "test_host.py", "test_lookups.py", "test_sharded_step.py"),
    *("test_step.py", "test_wrappers.py"),
)
# Benchmarks look at compiled programs; many devices and one sum in other orders, and further apart
# in programs that are not optimised.
_OPTIMISED = ("benchmarks", "distillation")


# Why a test may be skipped in CI. Any other reason fails the run: what nobody sees is not tested.
_MAY_SKIP = (
    "Spark needs Java",
    "an optional extra",  # pyspark, which `make spark` and nightly install
    "../shared",
    "beside the checkout",
    "memory forgets, and says so",
    "promtool is not here",
    "no browser is installed",
    "no Chromium is here",
    "redis-server is not installed",
    "packages cannot be had here",
)


@pytest.hookimpl(tryfirst=True)  # before cases that are slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seen: dict[str, int] = {}
    for item in items:
        grid = item.get_closest_marker("grid")
        if grid is not None:
            test = item.nodeid.partition("[")[0]
            seen[test] = seen.get(test, 0) + 1
            if seen[test] > grid.kwargs.get("quick", 1):
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    terminal: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or hasattr(session.config, "workerinput") or not terminal:
        return
    reasons = {str(report.longrepr[2]) for report in terminal.stats.get("skipped", [])}
    unexpected = sorted(r for r in reasons if not any(known in r for known in _MAY_SKIP))
    if unexpected:
        terminal.write_line(f"skipped for reasons that CI does not expect: {unexpected}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error:::jaxrec")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # A first call compiles, and the machine may be busy: time says nothing of a property.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled programs are kept, for all workers and for the scripts that they start."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session", autouse=True)
def _kept_compilations(compiled: Path) -> None:
    """Compiles a program once a session, however many functions and files make the same one.

    Tests run many tiny programs once or twice, so the compiler does not optimise them, but for
    those of benchmarks. `JAX_DISABLE_MOST_OPTIMIZATIONS` of scripts does the same.
    """
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(autouse=True)
def _switches(request: pytest.FixtureRequest) -> Iterator[None]:
    area = request.path.relative_to(Path(__file__).parent).parts[0]
    strict = area in _PURE or request.path.name in _STEPS
    jax.config.update("jax_disable_most_optimizations", area not in _OPTIMISED)
    with jax.numpy_dtype_promotion("strict") if strict else contextlib.nullcontext():
        yield
    jax.config.update("jax_disable_most_optimizations", True)


def _dataset_of(
    events: list[tuple[int, int, int]],
    *,
    num_items: int,
    num_users: int | None = None,
    times: list[int] | None = None,
    labels: list[float] | None = None,
) -> Dataset:
    """A dataset from (user, item, split) events, sorted by user and then time."""
    users, items, split = np.array(events, np.int32).reshape(-1, 3).T
    count = num_users or int(users.max())
    return Dataset(
        manifest=Manifest(
            num_users=count,
            num_items=num_items,
            num_events=len(users),
            split={"name": "by_hand"},
            columns={},
            fingerprint="",
            user_fingerprint="",
            item_fingerprint="",
            sources=[],
            report=[],
        ),
        users=users,
        items=items,
        times=np.arange(len(users)) if times is None else np.array(times, np.int64),
        split=split.astype(np.uint8),
        labels=None if labels is None else np.array(labels, np.float32),
        user_vocabulary=pd.DataFrame({"id": [f"u{i}" for i in range(1, count + 1)]}),
        item_vocabulary=pd.DataFrame({"id": [f"i{i}" for i in range(1, num_items + 1)]}),
    )


def _random_dataset(
    seed: int, *, num_users: int, num_items: int, mean_length: int, num_targets: int = 1
) -> Dataset:
    """Random histories; the last `num_targets` events are for test, those before for validation.

    A user whose history is shorter has fewer of them, or none.
    """
    random = np.random.default_rng(seed)
    lengths = 1 + random.poisson(mean_length - 1, num_users)
    users = np.repeat(np.arange(1, num_users + 1), lengths)
    popularity = random.permutation(1 / np.arange(1, num_items + 1))
    items = 1 + random.choice(num_items, len(users), p=popularity / popularity.sum())
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(users)) - 1
    split = np.where(left < num_targets, 2, np.where(left < 2 * num_targets, 1, 0))
    events = np.stack([users, items, split], axis=1)
    return _dataset_of(
        [tuple(e) for e in events.tolist()], num_items=num_items, num_users=num_users
    )


@pytest.fixture(scope="session")
def dataset_of() -> Callable[..., Dataset]:
    return _dataset_of


@pytest.fixture(scope="session")
def random_dataset() -> Callable[..., Dataset]:
    return _random_dataset
