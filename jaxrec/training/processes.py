"""Several processes as one run: how they meet, who speaks, and when all of them stop."""

import contextlib
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from jaxrec.training.signals import sigterm
from jaxrec.typing import UserError

_HEARTBEAT_S = 20
_MEET_S = 45


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
      UserError: when the arguments do not fit together or no cluster is found. When the others do
        not come within a minute, the process says so and ends with exit code 1.
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
    # JAX aborts with a stack trace when its own limit is reached, so there is an earlier one.
    where = coordinator or "the coordinator"
    impatience = threading.Timer(_MEET_S, _give_up, [where])
    impatience.daemon = True
    impatience.start()
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=num_processes,
            process_id=process_id,
            initialization_timeout=2 * _MEET_S,
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
            f"this process could not join the others at {where} "
            f"({str(error).splitlines()[0][:200]}). Call it before any computation, once."
        ) from None
    finally:
        impatience.cancel()


def _give_up(where: str) -> None:
    print(
        f"error: the processes did not meet at {where} within {_MEET_S} s. Start all of them, with "
        "the same --coordinator and --num_processes and each with its own --process_id, and see "
        "that process 0 runs and can be reached.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Turns what is raised when another process has gone into one sentence."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not another_has_gone(error):
            raise
        raise gone(error) from None


def another_has_gone(error: Exception) -> bool:
    """Returns whether an error, of a computation or a checkpoint, means a missing process."""
    # An exchange that broke is found by whoever waits for it first, a checkpoint included.
    words = r"barrier|heartbeat|coordination service|gloo|connection (reset|closed)"
    if isinstance(error, jax.errors.JaxRuntimeError):
        words += r"|nccl|connection|peer"
    return jax.process_count() > 1 and re.search(words, str(error).lower()) is not None


def gone(error: Exception) -> UserError:
    """Returns what to say then."""
    return UserError(
        "another process of the run has gone, or cannot be reached any more "
        f"({str(error).splitlines()[0][:150]}). Look at its output, then start all processes "
        "again: they go on from the last whole checkpoint."
    )


def leave(error: Exception) -> None:
    """Says the error and ends this process when it is one of several: they would wait for it.

    The others learn of it within half a minute, and end with a sentence. What is no mistake of the
    user keeps its traceback. An ordinary exit would wait for the others in JAX's shutdown, and
    JAX aborts all of them when they do not come.
    """
    if jax.process_count() > 1:
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def is_first() -> bool:
    """Returns whether this process writes logs and results for all."""
    return jax.process_index() == 0


def meet(where: str) -> None:
    """Waits until all processes are here; a process that is alone goes on."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


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
