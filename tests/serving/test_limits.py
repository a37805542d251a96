"""Token buckets against a simulation in exact fractions."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.serving.limits import Limits

# Numbers that binary floating point holds exactly, and so do their sums.
steps = st.lists(st.integers(0, 40).map(lambda n: n / 16), max_size=60)
rates = st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0, 8.0])


class Bucket:
    """Tokens that are counted one by one."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate, self.size = Fraction(rate), max(Fraction(1), Fraction(rate))
        self.tokens, self.now = self.size, Fraction(now)

    def take(self, now: float) -> Fraction:
        self.tokens = min(self.size, self.tokens + (Fraction(now) - self.now) * self.rate)
        self.now = Fraction(now)
        if self.tokens >= 1:
            self.tokens -= 1
            return Fraction(0)
        return (1 - self.tokens) / self.rate


@given(rate=rates, steps=steps, own=st.none() | rates)
def test_it_is_the_bucket_of_the_simulation(
    rate: float, steps: list[float], own: float | None
) -> None:
    limits, bucket, now = Limits(rate), Bucket(own or rate, 1024.0), 1024.0
    for step in steps:
        now += step
        assert limits.take("a", now, rate=own) == bucket.take(now)


@given(rate=st.floats(0.01, 1000), now=st.floats(0, 1e7), number=st.integers(1, 40))
def test_who_waits_as_long_as_told_may_go(rate: float, now: float, number: int) -> None:
    limits = Limits(rate)
    for _ in range(number):
        if wait := limits.take("a", now):
            assert 0 < wait <= 1 / rate + 1e-6
            now += wait
            assert limits.take("a", now) == 0


def test_clients_have_buckets_of_their_own() -> None:
    limits = Limits(1.0)
    assert [limits.take(who, 5.0) for who in ("a", "b", "a", "b")] == [0, 0, 1, 1]


def test_no_rate_is_no_limit_but_for_those_who_have_their_own() -> None:
    limits = Limits(None)
    assert [limits.take("a", 0.0) for _ in range(1000)] == [0] * 1000
    assert [limits.take("b", 0.0, rate=2.0) for _ in range(3)] == [0, 0, 0.5]


def test_who_asked_longest_ago_is_forgotten_first() -> None:
    limits = Limits(0.001, most_clients=3)
    for who in ("a", "b", "c"):
        assert limits.take(who, 0.0) == 0
    assert limits.take("d", 0.0) == 0
    assert limits.take("a", 0.0) == 0  # forgotten, and now it takes the place of b
    assert [limits.take(who, 0.0) == pytest.approx(1000) for who in ("a", "c", "d")] == [True] * 3
    assert limits.take("b", 0.0) == 0
