"""Keeping the memory that a step frees, for the next step."""

import ctypes
import sys

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory instead of giving it back to the system.

    On a CPU, XLA allocates a step's temporaries anew each time. Large ones are mapped and unmapped,
    and the kernel clears every page again: about a third of the time of a SASRec step
    (`benchmarks/training_step.py` measures both ways).

    Call it once, before the first computation: what threads have set up by then stays as it is. It
    concerns the whole process, whose resident size then stays near its peak, and does nothing where
    the C library is not glibc. The scripts call it; `import jaxrec` does not.

    Returns:
      Whether it was set.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    # Never map; never trim; one arena, because only the main one can grow without limit.
    values = [(_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1), (_TOP_PAD, 64 << 20)]
    return all([mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in values])
