"""Flags of scripts that several processes run together, and how they begin and end."""

import contextlib
from collections.abc import Iterator

from absl import flags

from jaxrec.training import join, leave
from jaxrec.training.processes import together
from jaxrec.typing import Stopped

flags.DEFINE_bool(
    "distributed",
    False,
    "This is one of several processes that train together; the cluster (SLURM, Open MPI, GKE, "
    "Cloud TPU) says which. Elsewhere say it with the next three flags instead.",
)
flags.DEFINE_string("coordinator", None, "Address of process 0, HOST:PORT, the same for all.")
flags.DEFINE_integer("num_processes", None, "How many processes train together.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)

FLAGS = flags.FLAGS


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the other processes, when the flags say that there are any.

    Raises:
      UserError: as `join`; when another process has gone. One of several processes that fails does
        not come back from here: it says why and ends, so that the others do not wait for it.
    """
    processes = (FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    if FLAGS.distributed or any(value is not None for value in processes):
        join(*processes)
    try:
        with together():
            yield
    except Stopped:
        raise
    except Exception as error:
        leave(error)
        raise
