"""What every script does around its work: flags, errors as one sentence, exit codes."""

import errno
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType

from absl import app, flags, logging

from jaxrec.memory import keep_freed_memory
from jaxrec.typing import Stopped, UserError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_DIRECTORY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


def run(main: Callable[[], None], *, verbosity: int = logging.FATAL) -> None:
    """Parses the flags, runs `main` and exits: 0 only on success, 130 on Ctrl-C, 143 on SIGTERM.

    Mistakes of the user and a disk that takes no more end in one sentence on stderr and exit code
    1. Anything else is a defect and keeps its traceback.

    Args:
      main: the work.
      verbosity: what the log tells unless the flag of this name says otherwise. Orbax and JAX tell
        every step of their work at INFO, and a full disk at ERROR from each of a dozen threads;
        what matters of it arrives here as an exception.
    """
    signal.signal(signal.SIGTERM, _stop)
    sys.unraisablehook = _without_echoes
    # When the disk is full, what Orbax had begun to write is dropped, and Python would tell of it.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    keep_freed_memory()
    app.run(lambda argv: sys.exit(_guard(main, argv, verbosity)))


def _guard(main: Callable[[], None], argv: list[str], verbosity: int) -> int:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(verbosity)
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}. Flags are written --name=value.")
        main()
    except UserError as error:
        return _say(str(error))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        _say("interrupted.")
        return 130
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in _DISK:
            return _say(
                f"the disk is full or over its limit{where}. Free some space and run again."
            )
        if error.errno in _ACCESS:
            return _say(f"{error.strerror}{where}. Choose a place that you may use.")
        if error.errno in _NO_DIRECTORY:
            return _say(f"{error.strerror}{where}. Choose a directory.")
        if error.errno is None and "requested and" in str(error):  # NumPy, of a write cut short
            return _say(f"a file could not be written whole ({error}). Is the disk full?")
        raise
    return 0


def _say(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 1


def _without_echoes(unraisable: "sys.UnraisableHookArgs") -> None:
    # Once a write has failed, TensorStore calls back into Orbax's event loop for each write that
    # was under way beside it, and prints that the loop has gone.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _stop(signum: int, frame: FrameType | None) -> None:
    # An exception, and not the default sudden death, so that half-written files are removed.
    sys.exit(128 + signum)
