"""The exposition says what was counted, as Prometheus's own parser reads it."""

import threading

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jaxrec.serving.drift import Drift
from jaxrec.serving.metrics import MOST_CHILDREN, Metrics
from jaxrec.serving.served import Served

FINGERPRINT = "0123abcd" * 8
FEATURES = {
    name: {"edges": [1.0], "shares": [0.5, 0.5], "sample": [0.5, 1.5]}
    for name in ("history_length", "unknown_share", "top_score", "mean_score", "popularity")
}


def served(fingerprint: str = FINGERPRINT) -> Served:
    return Served(
        name="sasrec",
        fingerprint=fingerprint,
        popularity=np.array([0, 0, 3, 4, 500_000]),
        drift=Drift(FEATURES),
    )


def read(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Sample values by name and label values in the order of label names."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_requests_fall_into_buckets_by_route_and_status() -> None:
    metrics = Metrics()
    for seconds in (0.0009, 0.004, 0.004, 9.0):
        metrics.request("/v1/recommend", 200, seconds)
    metrics.request("/v1/recommend", 503, 0.1)
    found = read(metrics)
    within = {
        le: found["jaxrec_request_seconds_bucket", le, "/v1/recommend", "200"]
        for le in ("0.001", "0.0025", "0.005", "2.5", "+Inf")
    }
    assert within == {"0.001": 1, "0.0025": 1, "0.005": 3, "2.5": 3, "+Inf": 4}
    assert found["jaxrec_request_seconds_sum", "/v1/recommend", "200"] == pytest.approx(9.0089)
    assert found["jaxrec_request_seconds_count", "/v1/recommend", "503"] == 1


def test_counters_count() -> None:
    metrics = Metrics()
    metrics.rejected("overloaded")
    metrics.rejected("overloaded")
    metrics.compiled("warmup", 12)
    metrics.ids("item", 10, 3)
    metrics.ids("item", 5, 0)
    metrics.reload("refused")
    metrics.audit_lost.inc(7)
    metrics.stage("compute", 0.0002)
    metrics.batch_size.observe(3)
    metrics.queue_length.set(4)
    metrics.shadow_overlap.observe(0.25)
    metrics.ready.set(1)
    found = read(metrics)
    assert found["jaxrec_rejected_total", "overloaded"] == 2
    assert found["jaxrec_compilations_total", "warmup"] == 12
    assert found["jaxrec_compilations_total", "serving"] == 0
    assert found["jaxrec_ids_total", "item"] == 15
    assert found["jaxrec_unknown_ids_total", "item"] == 3
    assert found["jaxrec_reloads_total", "refused"] == 1
    assert found["jaxrec_audit_lost_total",] == 7
    assert found["jaxrec_stage_seconds_bucket", "0.0001", "compute"] == 0
    assert found["jaxrec_stage_seconds_bucket", "0.00025", "compute"] == 1
    assert found["jaxrec_batch_size_bucket", "2.0"] == 0
    assert found["jaxrec_batch_size_bucket", "4.0"] == 1
    assert found["jaxrec_queue_length",] == 4
    assert found["jaxrec_shadow_overlap_bucket", "0.3"] == 1
    assert found["jaxrec_ready",] == 1


def test_what_a_model_gives_out_is_shown_by_items_and_popularity() -> None:
    metrics, model = Metrics(), served()
    metrics.show_models({"primary": model})
    model.gave(np.array([1, 2, 4], np.int32))
    model.gave(np.array([2], np.int32))
    found = read(metrics)
    assert found["jaxrec_model_info", FINGERPRINT, "0123abcd", "sasrec", "primary"] == 1
    assert found["jaxrec_catalogue_items", "0123abcd"] == 4
    assert found["jaxrec_served_items", "0123abcd"] == 3
    bucket = {
        le: found["jaxrec_served_popularity_bucket", le, "0123abcd"]
        for le in ("0.0", "1.0", "3.0", "100000.0", "+Inf")
    }
    assert bucket == {"0.0": 1, "1.0": 1, "3.0": 3, "100000.0": 3, "+Inf": 4}
    assert found["jaxrec_served_popularity_sum", "0123abcd"] == 0 + 3 + 500_000 + 3


def test_answers_are_watched_for_drift() -> None:
    metrics, model = Metrics(), served()
    metrics.show_models({"primary": model})
    scores = np.arange(12, 0, -1, dtype=np.float32)
    items = np.array([2] * 10 + [1, 4], np.int32)
    model.answered(history_length=7, unknown_share=0.5, items=items, scores=scores)
    model.answered(history_length=0, unknown_share=0.0, items=items[:0], scores=scores[:0])
    windows = {name: model.drift._windows[name].values().tolist() for name in FEATURES}
    assert windows == {
        "history_length": [7, 0],
        "unknown_share": [0.5, 0],
        "top_score": [12],
        "mean_score": [7.5],
        "popularity": [pytest.approx(np.log(4))],
    }
    found = read(metrics)
    assert found["jaxrec_drift", "history_length", "0123abcd", "count"] == 2
    # The value 12 lies above the edge 1, where half of training is.
    expected = (1 - 0.5) * np.log(1 / 0.5) + (1e-4 - 0.5) * np.log(1e-4 / 0.5)
    assert found["jaxrec_drift", "top_score", "0123abcd", "psi"] == pytest.approx(expected)


def test_models_change_their_part_and_go() -> None:
    metrics, first, second = Metrics(), served(), served("ffff0000" * 8)
    metrics.show_models({"primary": first, "candidate": second})
    metrics.show_models({"primary": second})
    names = [key for key in read(metrics) if key[0] == "jaxrec_model_info"]
    assert names == [("jaxrec_model_info", "ffff0000" * 8, "ffff0000", "sasrec", "primary")]


def test_one_model_in_both_parts_is_shown_once_in_all_else() -> None:
    metrics, model = Metrics(), served()
    metrics.show_models({"primary": model, "candidate": model})
    text = metrics.exposition().decode()
    assert text.count("jaxrec_model_info{") == 2
    assert text.count("jaxrec_catalogue_items{") == 1


def test_feedback_is_booked_on_models_that_were_here_and_no_others() -> None:
    metrics, model = Metrics(), served()
    metrics.show_models({"primary": model})
    metrics.impression(model, "summer")
    metrics.impression(model, None)
    metrics.feedback("0123abcd", "click")
    metrics.show_models({})
    metrics.feedback("0123abcd", "click")
    metrics.feedback("deadbeef", "click")
    found = read(metrics)
    assert found["jaxrec_impressions_total", "summer", "0123abcd"] == 1
    assert found["jaxrec_impressions_total", "", "0123abcd"] == 1
    assert found["jaxrec_feedback_total", "0123abcd", "click"] == 2
    assert found["jaxrec_feedback_total", "other", "click"] == 1
    assert ("jaxrec_feedback_total", "deadbeef", "click") not in found


def test_labels_that_clients_choose_do_not_grow_without_bound() -> None:
    metrics = Metrics()
    for number in range(3 * MOST_CHILDREN):
        metrics.feedback("deadbeef", f"type {number}")
    counts = {key[2]: value for key, value in read(metrics).items() if "feedback" in key[0]}
    assert len(counts) == MOST_CHILDREN + 1
    assert counts["other"] == 2 * MOST_CHILDREN


def test_servers_in_one_process_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.rejected("overloaded")
    assert ("jaxrec_rejected_total", "overloaded") not in read(second)


def test_reading_while_serving_loses_nothing() -> None:
    metrics, model = Metrics(), served()
    metrics.show_models({"primary": model})
    items = np.array([1, 2], np.int32)

    def work() -> None:
        for _ in range(1_000):
            model.gave(items)
            metrics.request("/v1/recommend", 200, 0.001)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        read(metrics)
    found = read(metrics)
    assert found["jaxrec_served_popularity_count", "0123abcd"] == 6_000
    assert found["jaxrec_request_seconds_count", "/v1/recommend", "200"] == 3_000


def test_the_process_is_measured_too() -> None:
    found = read(Metrics())
    assert found["process_resident_memory_bytes",] > 1e6
    assert any(name[0] == "python_gc_collections_total" for name in found)
