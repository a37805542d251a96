"""Batches built and sent to the device ahead of the step that wants them."""

import queue
import threading
from collections.abc import Callable, Generator


def prefetch[T](make: Callable[[int], T], start: int, stop: int, *, ahead: int = 2) -> Generator[T]:
    """Yields make(start) .. make(stop - 1), made by a thread up to `ahead` items early.

    An exception in `make` is raised where its item would have come. Closing the iterator stops the
    thread.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        for index in range(start, stop):
            try:
                entry: tuple[T | None, BaseException | None] = (make(index), None)
            except BaseException as error:
                put((None, error))
                return
            if not put(entry):
                return

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            item, error = ready.get()
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
