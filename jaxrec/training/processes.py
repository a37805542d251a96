"""Several processes as one run: how they meet, who speaks, and when all of them stop."""

import contextlib
import re
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from jaxrec.training.signals import sigterm
from jaxrec.typing import UserError

_HEARTBEAT_S = 20
_MEET_S = 50


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Makes this process one of several that train together; before any computation.

    Without arguments the cluster's environment says who is who: SLURM, Open MPI, GKE, Cloud TPU.

    Args:
      coordinator: host:port of process 0, the same for all.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      UserError: when the arguments do not fit together, no cluster is found, or the others do not
        come within a minute.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and any(value is None for value in given):
        raise UserError(
            "several processes want --coordinator=HOST:PORT, --num_processes=N and --process_id=I, "
            f"all three; got {coordinator}, {num_processes} and {process_id}."
        )
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator} is no address. Write HOST:PORT.")
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise UserError(
            f"--process_id={process_id} must be from 0 to {num_processes - 1}, as there are "
            f"--num_processes={num_processes}."
        )
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=num_processes,
            process_id=process_id,
            initialization_timeout=_MEET_S,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
            shutdown_timeout_seconds=_HEARTBEAT_S,
        )
    except ValueError as error:
        raise UserError(
            f"no cluster was found ({error}). Say where the processes meet: --coordinator=HOST:PORT"
            " --num_processes=N --process_id=I."
        ) from None
    except RuntimeError as error:
        raise UserError(
            f"the processes did not meet at {coordinator or 'the coordinator'} within {_MEET_S} s "
            f"({str(error).splitlines()[0][:200]}). Start all of them, with the same --coordinator "
            "and --num_processes, and see that process 0 can be reached."
        ) from None


def is_first() -> bool:
    """Returns whether this process writes logs and results for all."""
    return jax.process_index() == 0


class Stop:
    """Whether the run was told to stop; with several processes, all learn of it at one step."""

    def __init__(self, event: threading.Event):
        self._event = event

    def at(self, step: int) -> bool:
        """Returns whether to stop after this step; asked by every process after every step."""
        if jax.process_count() == 1:
            return self._event.is_set()
        if multihost_utils.reached_preemption_sync_point(step):
            self._event.set()
        return self._event.is_set()

    def __bool__(self) -> bool:
        return self._event.is_set()


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Stop]:
    """Gives a `Stop` that SIGTERM, to any of the processes, sets."""
    if jax.process_count() == 1:
        with sigterm() as event:
            yield Stop(event)
    else:  # JAX listens, and agrees with the others on a step
        yield Stop(threading.Event())
