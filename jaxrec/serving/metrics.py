"""What the server measures of itself, for Prometheus.

Every name begins with `jaxrec_`; docs/operations.md says what to do about each, and a test holds
alerts and dashboard to the names that are here. Labels take few values: routes are templates,
models are the first 8 digits of a fingerprint, and what clients write is cut off (`_Children`).
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import prometheus_client
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from jaxrec.serving.served import POPULARITY_BUCKETS, Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
# Stages are parts of a request, of which most are short.
STAGE_SECONDS = (0.0001, 0.00025, 0.0005, *SECONDS[:9])
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SHARES = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
MOST_CHILDREN = 200

type Stage = Literal["parse", "state", "queue", "compute", "rules", "respond"]
type Phase = Literal["warmup", "serving"]
type Kind = Literal["item", "user"]


class Metrics:
    """All metrics of one server, in a registry of their own.

    Metrics without labels are attributes, to be used as prometheus_client has them; those with
    labels are methods. All may be called from any thread.

    Attributes:
      batch_size: histogram of the requests in each batch that was computed.
      queue_length: gauge of the requests that wait for a batch.
      ready: gauge, 1 while /readyz says yes.
      shadow_overlap: histogram of the share of a primary's list that the shadowed model has too.
      audit_lost: counter of lines that the audit log did not get written.
    """

    def __init__(self) -> None:
        registry = self.registry = _Registry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self.batch_size = histogram("jaxrec_batch_size", "Requests in a batch.", BATCH_SIZES)
        self.queue_length = gauge("jaxrec_queue_length", "Requests that wait for a batch.")
        self.ready = gauge("jaxrec_ready", "1 while the server is ready for requests.")
        self.shadow_overlap = histogram(
            "jaxrec_shadow_overlap", "Share of a list that the shadowed model has too.", SHARES
        )
        self._refused = gauge(
            "jaxrec_refused", "1 while a changed file is refused and the old one holds.", "file"
        )
        self.audit_lost = counter("jaxrec_audit_lost_total", "Lines the audit log lost.")
        self._request_seconds = _Children(
            histogram("jaxrec_request_seconds", "Whole requests.", SECONDS, "route", "status")
        )
        self._stage_seconds = _Children(
            histogram("jaxrec_stage_seconds", "Parts of requests.", STAGE_SECONDS, "stage")
        )
        self._rejected = _Children(
            counter("jaxrec_rejected_total", "Requests refused unseen, by reason.", "reason")
        )
        self._compilations = _Children(
            counter("jaxrec_compilations_total", "Compiled programs; none in serving.", "phase")
        )
        self._ids = _Children(counter("jaxrec_ids_total", "Ids in requests.", "kind"))
        self._unknown_ids = _Children(
            counter("jaxrec_unknown_ids_total", "Ids that the model does not know.", "kind")
        )
        self._impressions = _Children(
            counter("jaxrec_impressions_total", "Lists given out.", "model", "experiment")
        )
        self._feedback = _Children(
            counter("jaxrec_feedback_total", "Events on lists given out.", "model", "type")
        )
        self._reloads = _Children(
            counter("jaxrec_reloads_total", "Artefacts that were to be loaded.", "result")
        )
        self._models = _Models()
        self._make_children()
        registry.register(self._models)
        prometheus_client.ProcessCollector(registry=registry)
        prometheus_client.PlatformCollector(registry=registry)
        prometheus_client.GCCollector(registry=registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts a finished request; `route` is the path's template, such as "/v1/recommend"."""
        self._request_seconds[route, status].observe(seconds)

    def stage(self, stage: Stage, seconds: float) -> None:
        """Counts the time that one request spent in one stage."""
        self._stage_seconds[(stage,)].observe(seconds)

    def rejected(self, reason: str) -> None:
        """Counts a request that was refused by its limits: "overloaded", "rate_limited", …"""
        self._rejected[(reason,)].inc()

    def compiled(self, phase: Phase, programs: int = 1) -> None:
        """Counts compilations; any while serving makes requests wait, and is a defect."""
        self._compilations[(phase,)].inc(programs)

    def ids(self, kind: Kind, total: int, unknown: int) -> None:
        """Counts the ids of a request, and those among them that the model does not know."""
        self._ids[(kind,)].inc(total)
        if unknown:
            self._unknown_ids[(kind,)].inc(unknown)

    def reload(self, result: Literal["swapped", "refused", "rolled_back"]) -> None:
        """Counts how loading another artefact ended."""
        self._reloads[(result,)].inc()

    def refused(self, file: Literal["artefact", "rules", "keys"], why: str | None) -> None:
        """Shows whether a changed file of a kind is refused now."""
        self._refused.labels(file).set(0 if why is None else 1)

    def show_models(self, models: Mapping[str, Served]) -> None:
        """Shows the models that serve now, by variant ("primary", "candidate"), and no others.

        Feedback on lists of earlier ones still counts.
        """
        self._models.show(models)

    def impression(self, served: Served, experiment: str | None) -> None:
        """Counts a list given out, in an experiment or in none."""
        self._impressions[served.model, experiment or ""].inc()

    def feedback(self, model: str, type: str) -> None:
        """Counts an event on a list given out.

        Args:
          model: the first part of the request_id; one that was never here is counted as "other",
            since clients can write anything.
          type: the event's type.
        """
        self._feedback[model if self._models.knew(model) else "other", type].inc()

    def exposition(self) -> bytes:
        """Returns everything in Prometheus's text format, of type `CONTENT_TYPE`.

        Takes milliseconds, as it computes drift: call it in a thread.
        """
        return prometheus_client.generate_latest(self.registry)

    def _make_children(self) -> None:
        """Makes what alerts look at, as a rate is unknown between nothing and the first count."""
        for phase in ("warmup", "serving"):
            self._compilations[(phase,)]
        for result in ("swapped", "refused", "rolled_back"):
            self._reloads[(result,)]
        for file in ("artefact", "rules", "keys"):
            self._refused.labels(file)
        for kind in ("item", "user"):
            self._ids[(kind,)], self._unknown_ids[(kind,)]


class _Registry(CollectorRegistry):
    """A registry without the times at which metrics were made, a series more for each of them."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            kept = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            metric.samples = kept
            yield metric


class _Children[T: (Counter, Histogram)](dict[tuple[object, ...], T]):
    """The children of a metric by their labels, as prometheus_client's own look-up takes longer.

    Past `MOST_CHILDREN` of them, all others are one, each of whose labels is "other".
    """

    def __init__(self, metric: T) -> None:
        self._metric: T = metric

    def __missing__(self, labels: tuple[object, ...]) -> T:
        if len(self) >= MOST_CHILDREN:
            return self._metric.labels(*("other" for _ in labels))
        child = self[labels] = self._metric.labels(*labels)
        return child


class _Models(Collector):
    """Metrics that are computed from what is known of each model, when they are read."""

    def __init__(self) -> None:
        self._serving: dict[str, Served] = {}
        self._known: set[str] = set()

    def show(self, models: Mapping[str, Served]) -> None:
        self._known.update(served.model for served in models.values())
        self._serving = dict(models)

    def knew(self, model: str) -> bool:
        return model in self._known

    def describe(self) -> Iterator[Metric]:
        return self._families({})

    def collect(self) -> Iterator[Metric]:
        return self._families(self._serving)

    def _families(self, serving: Mapping[str, Served]) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "jaxrec_model_info",
            "Models in use; always 1.",
            labels=("name", "fingerprint", "model", "variant"),
        )
        catalogue = GaugeMetricFamily(
            "jaxrec_catalogue_items", "Items that a model knows.", labels=("model",)
        )
        items = GaugeMetricFamily(
            "jaxrec_served_items", "Different items among the newest given out.", labels=("model",)
        )
        popularity = HistogramMetricFamily(
            "jaxrec_served_popularity",
            "Training events of each item given out.",
            labels=("model",),
        )
        drift = GaugeMetricFamily(
            "jaxrec_drift",
            "How far requests are from training.",
            labels=("model", "feature", "statistic"),
        )
        for variant, served in serving.items():
            info.add_metric([served.name, served.fingerprint, served.model, variant], 1)
        for served in {served.model: served for served in serving.values()}.values():
            label = [served.model]
            catalogue.add_metric(label, served.catalogue_items)
            items.add_metric(label, served.distinct_items())
            counts, total = served.popularity()
            popularity.add_metric(label, _buckets(counts), total)
            for feature, statistics in served.drift.report().items():
                for statistic, value in statistics.items():
                    drift.add_metric([*label, feature, statistic], value)
        yield from (info, catalogue, items, popularity, drift)


def _buckets(counts: np.ndarray) -> list[tuple[str, float]]:
    bounds = [*(str(float(bound)) for bound in POPULARITY_BUCKETS), "+Inf"]
    return list(zip(bounds, np.cumsum(counts).tolist(), strict=True))
