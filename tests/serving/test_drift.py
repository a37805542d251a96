"""PSI and KS by hand and against SciPy, and the watch on requests."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.export import Artefact
from jaxrec.serving.drift import Drift, ks, psi

FEW = st.lists(st.integers(0, 9), min_size=2, max_size=60).map(sorted)


def snapshot_of(values: np.ndarray) -> dict[str, list[float]]:
    edges = np.unique(np.quantile(values, np.arange(1, 10) / 10))
    bins = np.searchsorted(edges, values, side="left")
    counts = np.bincount(bins, minlength=len(edges) + 1)
    sample = np.quantile(values, (np.arange(512) + 0.5) / 512)
    return {
        "edges": edges.tolist(),
        "shares": (counts / len(values)).tolist(),
        "sample": sample.tolist(),
    }


def watch(feature: str, told: Mapping[str, object], window: int = 10_000) -> Drift:
    return Drift({feature: told}, window)


def test_psi_is_the_sum_written_out() -> None:
    value = psi(np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.25, 0.5]))
    expected = (
        (0.25 - 0.5) * math.log(0.25 / 0.5)
        + (0.25 - 0.3) * math.log(0.25 / 0.3)
        + (0.5 - 0.2) * math.log(0.5 / 0.2)
    )
    assert value == pytest.approx(expected, rel=1e-12)


def test_psi_of_an_empty_bin_is_finite() -> None:
    value = psi(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    assert value == pytest.approx(0.5 * math.log(2) + 0.4999 * math.log(5000), rel=1e-12)


def test_psi_without_change_is_as_small_as_said() -> None:
    random = np.random.default_rng(0)
    shares = np.full(10, 0.1)
    values = [psi(shares, random.multinomial(2_000, shares) / 2_000) for _ in range(300)]
    assert np.mean(values) == pytest.approx(9 / 2_000, rel=0.1)


@given(FEW, FEW)
def test_ks_is_scipys(first: list[int], second: list[int]) -> None:
    statistic, p = ks(np.array(first), np.array(second))
    reference = scipy.stats.ks_2samp(first, second, method="asymp")
    assert statistic == pytest.approx(reference.statistic, abs=1e-12)
    effective = len(first) * len(second) / (len(first) + len(second))
    limit = scipy.special.kolmogorov(math.sqrt(effective) * statistic)
    assert p == pytest.approx(limit, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05, 0.1, 0.3])
def test_the_p_value_of_large_samples_is_close_to_the_exact_one(shift: float) -> None:
    random = np.random.default_rng(3)
    first, second = np.sort(random.normal(size=512)), np.sort(random.normal(shift, size=10_000))
    statistic, p = ks(first, second)
    exact = scipy.stats.ks_2samp(first, second, method="exact")
    assert statistic == pytest.approx(exact.statistic, abs=1e-12)
    assert p == pytest.approx(exact.pvalue, abs=0.025)


def test_ks_of_nothing_says_nothing() -> None:
    assert ks(np.zeros(0), np.ones(3)) == (0.0, 1.0)


def test_requests_like_training_are_no_drift_and_others_are() -> None:
    random = np.random.default_rng(1)
    drift = watch("top_score", snapshot_of(random.normal(size=20_000)), window=5_000)
    for value in random.normal(5, size=3_000):  # older than the window by the end
        drift.observe("top_score", value)
    for value in random.normal(size=5_000):
        drift.observe("top_score", value)
    same = drift.report()["top_score"]
    assert same["count"] == 5_000
    assert same["psi"] < 0.01
    assert same["p"] > 0.01
    for value in random.normal(0.6, size=5_000):
        drift.observe("top_score", value)
    moved = drift.report()["top_score"]
    # Normals of distance 0.6 are 2 Φ(0.3) - 1 apart.
    assert moved["ks"] == pytest.approx(2 * scipy.stats.norm.cdf(0.3) - 1, abs=0.04)
    assert moved["psi"] > 0.2
    assert moved["p"] < 1e-9


def test_counts_with_ties_are_no_drift() -> None:
    random = np.random.default_rng(2)
    drift = watch("history_length", snapshot_of(random.poisson(3, 20_000)))
    for value in random.poisson(3, 4_000):
        drift.observe("history_length", value)
    report = drift.report()["history_length"]
    assert report["psi"] < 0.02
    assert report["p"] > 0.01


def test_a_feature_that_was_constant_in_training_notices_any_other_value() -> None:
    told = {"edges": [0.01, 0.1], "shares": [1.0, 0.0, 0.0], "sample": [0.0]}
    drift = watch("unknown_share", told)
    for _ in range(900):
        drift.observe("unknown_share", 0.0)
    assert drift.report()["unknown_share"]["psi"] == pytest.approx(0, abs=1e-3)
    for _ in range(100):
        drift.observe("unknown_share", 0.25)
    assert drift.report()["unknown_share"]["psi"] > 0.2


def test_a_value_on_an_edge_is_in_the_bin_below() -> None:
    drift = watch("x", {"edges": [1.0, 2.0], "shares": [0.2, 0.3, 0.5], "sample": [0.5, 1.5, 2.5]})
    drift.observe("x", 0.5)
    for value in (1.0, 1.5, 2.0, 9.0):
        drift.observe("x", value)
    want = psi(np.array([0.2, 0.3, 0.5]), np.array([2, 2, 1]) / 5)
    assert drift.report()["x"]["psi"] == pytest.approx(want)


def test_nothing_observed_or_nothing_known_is_no_drift() -> None:
    nothing = {"psi": 0.0, "ks": 0.0, "p": 1.0, "count": 0}
    drift = watch("x", {"edges": [1.0], "shares": [0.5, 0.5], "sample": [0.0, 2.0]})
    assert drift.features == ("x",)
    assert drift.report() == {"x": nothing}
    drift = watch("x", {"edges": [], "shares": [1.0], "sample": []})
    drift.observe("x", 5.0)
    assert drift.report() == {"x": nothing | {"count": 1}}


def test_what_an_artefact_was_made_from_is_no_drift(sasrec: Artefact) -> None:
    """The exporter and the watch must put a value that is an edge into the same bin."""
    drift = Drift(sasrec.snapshot)
    for name, told in sasrec.snapshot.items():
        for value in told["sample"]:
            drift.observe(name, value)
    for name, found in drift.report().items():
        assert found["psi"] < 1e-9 and found["ks"] == 0 and found["p"] == 1, name
