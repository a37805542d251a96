"""Windows keep the newest numbers."""

import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.serving.window import Window

NUMBERS = st.integers(0, 99)


@given(st.integers(1, 7), st.lists(NUMBERS | st.lists(NUMBERS, max_size=20), max_size=12))
def test_the_newest_numbers_are_kept(size: int, steps: list[int | list[int]]) -> None:
    window, everything = Window(size, np.int64), []
    for step in steps:
        if isinstance(step, int):
            window.add(step)
            everything.append(step)
        else:
            window.extend(np.array(step, np.int64))
            everything += step
        assert sorted(window.values()) == sorted(everything[-size:])
        assert len(window) == min(size, len(everything))


def test_what_is_read_does_not_change_afterwards() -> None:
    window = Window(2, np.float64)
    window.add(1.5)
    before = window.values()
    window.extend(np.array([2.0, 3.0]))
    assert before.tolist() == [1.5]


def test_threads_lose_nothing() -> None:
    window = Window(40_000, np.int64)

    def work() -> None:
        for value in range(5_000):
            window.add(value)
            window.extend(np.array([value]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.bincount(window.values()).tolist() == [8] * 5_000
