"""Shared by the benchmarks: timing, peak memory, and one JSON line a measurement."""

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax


def seconds_of(work: Callable[[], Any], repeats: int, warmup: int = 2) -> float:
    """Returns the median seconds of calls of `work`, which returns arrays to wait for."""
    for _ in range(warmup):
        jax.block_until_ready(work())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_mib() -> float:
    """Returns the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def emit(name: str, figures: dict[str, Any]) -> None:
    """Prints one JSON object: the name, the figures rounded, the machine."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
    machine = {
        "cpus": os.cpu_count(),
        "cpu": _cpu(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **{package: version(package) for package in ("jax", "flax", "optax", "numpy")},
    }
    print(json.dumps({"name": name, **rounded, "machine": machine}), flush=True)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
