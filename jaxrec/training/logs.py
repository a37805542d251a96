"""What a run tells: metrics.jsonl, TensorBoard scalars, and a progress bar or plain lines."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboardX
import tqdm

from jaxrec.config import write_whole


class MetricsLog:
    """Appends JSON lines to metrics.jsonl and scalars to TensorBoard event files.

    Opening it at a step drops what a killed run may have left, as it will be written again: later
    lines and, unless that step is `validated`, its validation.
    """

    def __init__(self, workdir: Path, *, step: int, validated: bool = True):
        self.path = workdir / "metrics.jsonl"
        kept = [
            line
            for line in read_metrics(self.path)
            if line["step"] < step + (validated or not any(name[:6] == "valid/" for name in line))
        ]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(self.path, text)
        self._file = self.path.open("a")
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1 if step else None
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line, {"step": step, **values}."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            # TensorBoard takes no @ in a name.
            self._board.add_scalar(name.replace("@", "_at_"), value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class Progress:
    """A live bar on a terminal, a plain line now and then elsewhere; nothing when quiet."""

    def __init__(self, total: int, start: int, *, quiet: bool):
        self._quiet, self._total = quiet, total
        self._origin: tuple[int, float] | None = None
        self._bar = None
        if not quiet and sys.stderr.isatty():
            # Some terminals have no size, and tqdm would draw nothing on them.
            sized = os.get_terminal_size(sys.stderr.fileno()).columns > 0
            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                unit="step",
                ncols=None if sized else 80,
                nrows=None if sized else 24,
                dynamic_ncols=sized,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def update(self, step: int, loss: float, examples_per_s: float) -> None:
        """Shows where the run is."""
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_postfix_str(f"loss {loss:.4f}, {examples_per_s:,.0f} examples/s")
        elif not self._quiet:
            text = f"step {step:,}/{self._total:,}  loss {loss:.4f}"
            if self._origin is None:
                # The first step of a process compiles, so it says nothing about speed.
                self._origin = (step, time.monotonic())
            else:
                first, begun = self._origin
                eta = (self._total - step) * (time.monotonic() - begun) / max(1, step - first)
                text += f"  {examples_per_s:,.0f} examples/s  {eta:,.0f} s left"
            print(text, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
