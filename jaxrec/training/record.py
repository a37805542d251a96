"""How a run went so far: saved with each checkpoint, and beside them after each validation.

A checkpoint is saved before it is validated, so that a process that is killed in a validation has
lost nothing. What the validation found is then written to validated.json in the workdir.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrec.config import write_whole
from jaxrec.typing import UserError


@dataclasses.dataclass
class Record:
    """How a run went so far.

    Attributes:
      measure: what `best_value` is a value of, such as {"monitor": "ndcg@10", "mask_seen": True}.
      best_step, best_value: the best validation so far.
      misses: validations since then.
      validated: step of the last validation.
      loss_sum, loss_examples: losses times examples, and examples, since the last line of
        metrics.jsonl.
      examples, seconds, steps: what throughput is made of; evaluation and compilation left out.
      wall_s: seconds of all the processes that worked on the run.
    """

    measure: dict[str, Any]
    best_step: int | None = None
    best_value: float | None = None
    misses: int = 0
    validated: int = 0
    loss_sum: float = 0.0
    loss_examples: float = 0.0
    examples: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    wall_s: float = 0.0

    def note(self, step: int, value: float, *, higher_is_better: bool) -> None:
        """Notes the value of a validation, and whether it is the best."""
        best, self.validated = self.best_value, step
        better = best is None or (value > best if higher_is_better else value < best)
        if better:
            self.best_step, self.best_value, self.misses = step, value, 0
        else:
            self.misses += 1

    def forget_best(self, measure: dict[str, Any]) -> None:
        """Begins again with another measure, whose values do not compare with those before."""
        self.measure, self.best_step, self.best_value, self.misses = measure, None, None, 0


def path_of(workdir: str | Path) -> Path:
    """Returns where a workdir holds what its last validation found."""
    return Path(workdir) / "validated.json"


def begin_record(workdir: Path, step: int, record: Record) -> None:
    """Replaces what a run left that went further, or of which no checkpoint is there any more."""
    if step:
        write_record(workdir, record)
    else:
        path_of(workdir).unlink(missing_ok=True)


def write_record(workdir: Path, record: Record) -> None:
    """Writes what the validation of a checkpoint found, whole."""
    text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
    write_whole(path_of(workdir), text)


def read_record(workdir: Path, step: int, meta: Mapping[str, Any]) -> Record:
    """Returns how a run went up to a checkpoint, its validation included if there was one.

    Args:
      workdir: of the run.
      step: of the checkpoint.
      meta: what the checkpoint says.

    Raises:
      UserError: for a checkpoint of an earlier version.
    """
    if "record" not in meta:
        raise UserError(
            f"the checkpoint of step {step} was written by an earlier version of jaxrec, which "
            "drew other random numbers. Finish the run with that version, or choose another "
            "--workdir."
        )
    told = meta["record"]
    later = _written(workdir)
    return Record(**(later if later and later["validated"] == step else told))


def best_step(workdir: str | Path, step: int, meta: Mapping[str, Any]) -> int | None:
    """Returns the best step up to a checkpoint; arguments are those of `read_record`."""
    later = _written(workdir)
    found = later if later and later["validated"] == step else meta
    return found.get("best_step")


def _written(workdir: str | Path) -> dict[str, Any] | None:
    path = path_of(workdir)
    if not path.exists():
        return None
    try:
        written: dict[str, Any] = json.loads(path.read_text())
        return written if "validated" in written else None
    except (ValueError, TypeError):
        raise UserError(
            f"{path} is damaged. Remove it: the last checkpoint is then validated again."
        ) from None
