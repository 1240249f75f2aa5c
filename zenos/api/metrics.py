"""Figures for Prometheus.

Counting is plain integers, so that it costs next to nothing; prometheus_client, which takes time
and memory to import, comes in when somebody asks for the text, with a registry of its own.
"""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeVar

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zenos.api.openai_answers import longest
from zenos.api.ports import System
from zenos.core import limits
from zenos.core.resources import Resources
from zenos.core.wire import Chunk, Times

if TYPE_CHECKING:
    from prometheus_client import Metric

T = TypeVar("T")
_BOUNDS_S: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0)


class Histogram:
    """Counts of durations (seconds) up to each bound, and their sum."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus has them."""
        total, made = 0, []
        for bound, count in zip((*map(str, _BOUNDS_S), "+Inf"), self.counts, strict=True):
            total += count
            made.append((bound, float(total)))
        return made


class Metrics:
    """What the API counts."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.durations: dict[str, Histogram] = {}
        self.first_token: dict[str, Histogram] = {}
        self.queue: dict[str, Histogram] = {}
        self.load: dict[str, Histogram] = {}
        self.compute: dict[str, Histogram] = {}
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.generating = 0

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count one answer; `path` is the route's template, so that there are few of them."""
        self.requests[method, path, str(status)] += 1
        self.durations.setdefault(path, Histogram()).observe(seconds)

    async def watching(
        self, model: str, chunks: AsyncGenerator[tuple[int, Chunk], None]
    ) -> AsyncGenerator[tuple[int, Chunk], None]:
        """The same chunks, with their times and tokens counted."""
        start = time.monotonic()
        first = True
        times: dict[int, Times] = {}
        self.generating += 1
        try:
            async with aclosing(chunks):
                async for prompt, chunk in chunks:
                    if first:
                        first = False
                        seconds = time.monotonic() - start
                        self.first_token.setdefault(model, Histogram()).observe(seconds)
                    if chunk.times is not None:
                        times[prompt] = chunk.times
                    if chunk.usage is not None:
                        self.tokens[model, "prompt"] += chunk.usage.prompt_tokens
                        self.tokens[model, "completion"] += chunk.usage.completion_tokens
                    yield prompt, chunk
            self._answered(model, longest(times.values()))
        finally:
            self.generating -= 1

    def _answered(self, model: str, times: Times | None) -> None:
        """A request has got all of its answer."""
        if times is not None:
            self.queue.setdefault(model, Histogram()).observe(times.queue_s)
            self.load.setdefault(model, Histogram()).observe(times.load_s)
            self.compute.setdefault(model, Histogram()).observe(times.compute_s)

    def exposition(self, system: System) -> tuple[bytes, str]:
        """The text and its media type."""
        from prometheus_client import CollectorRegistry, ProcessCollector, exposition

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(self, system))
        ProcessCollector(registry=registry)
        return exposition.generate_latest(registry), exposition.CONTENT_TYPE_LATEST


class _Collector:
    """Reads the system and the counts when Prometheus asks."""

    def __init__(self, metrics: Metrics, system: System) -> None:
        self._metrics = metrics
        self._system = system

    def collect(self) -> Iterator[Metric]:
        yield from self._of_system()
        yield from self._of_requests()

    def _of_system(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        tasks = GaugeMetricFamily(
            "zenos_tasks", "Tasks by kind and state", labels=("kind", "state")
        )
        counts = Counter((t.kind.value, t.state.value) for t in self._system.tasks().values())
        for (kind, state), count in sorted(counts.items()):
            tasks.add_metric((kind, state), count)
        yield tasks
        capacity = GaugeMetricFamily(
            "zenos_node_capacity",
            "What a node may give out: cores, devices, bytes",
            labels=("node", "resource"),
        )
        used = GaugeMetricFamily(
            "zenos_node_used", "What tasks hold of a node", labels=("node", "resource")
        )
        takes = GaugeMetricFamily(
            "zenos_node_takes_work",
            "0 of a node that is cordoned, drained or lost",
            labels=("node",),
        )
        foreign = GaugeMetricFamily(
            "zenos_node_foreign_memory_bytes",
            "What processes outside zenos use of a node's memory",
            labels=("node",),
        )
        held = self._system.used()
        for name, node in self._system.nodes().items():
            _add_resources(capacity, name, node.capacity)
            _add_resources(used, name, held.get(name, Resources()))
            takes.add_metric((name,), int(node.takes_work))
            if node.measured is not None:
                foreign.add_metric((name,), node.measured.memory)
        yield capacity
        yield takes
        yield foreign
        yield used
        replicas = GaugeMetricFamily(
            "zenos_deployment_replicas", "Replicas by deployment", labels=("deployment",)
        )
        for name, deployment in self._system.deployments().items():
            replicas.add_metric((name,), len(deployment.replicas))
        yield replicas
        yield from self._of_topics()
        uptime_s = float(self._system.status().get("uptime_s", 0.0))
        yield GaugeMetricFamily("zenos_uptime_seconds", "Since the daemon's start", uptime_s)

    def _of_topics(self) -> Iterator[Metric]:
        """Of the first topics by name, so that a flood of names makes no flood of series."""
        from prometheus_client.core import GaugeMetricFamily

        messages = GaugeMetricFamily(
            "zenos_messages", "Messages of durable topics", labels=("topic", "state")
        )
        topics = self._system.topics.topics.topics
        for name in sorted(topics)[: limits.TOPICS_MEASURED_MAX]:
            topic = topics[name]
            messages.add_metric((name, "waiting"), len(topic.live) - len(topic.leases))
            messages.add_metric((name, "leased"), len(topic.leases))
            messages.add_metric((name, "dead"), len(topic.dead))
        yield messages

    def _of_requests(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        metrics = self._metrics
        requests = CounterMetricFamily(
            "zenos_http_requests", "HTTP answers", labels=("method", "path", "status")
        )
        for labels, count in metrics.requests.items():
            requests.add_metric(labels, count)
        yield requests
        yield _histograms(
            "zenos_http_request_duration_seconds", "HTTP answers", "path", metrics.durations
        )
        yield _histograms(
            "zenos_first_token_seconds", "From request to first token", "model", metrics.first_token
        )
        for name, text, values in (
            ("queue", "Of answered requests: neither load nor compute", metrics.queue),
            ("load", "Of answered requests: until a replica was ready", metrics.load),
            ("compute", "Of answered requests: in the engine", metrics.compute),
        ):
            yield _histograms(f"zenos_request_{name}_seconds", text, "model", values)
        tokens = CounterMetricFamily("zenos_tokens", "Tokens", labels=("model", "kind"))
        for (model, kind), count in metrics.tokens.items():
            tokens.add_metric((model, kind), count)
        yield tokens
        yield GaugeMetricFamily(
            "zenos_generating", "Generation requests in flight", metrics.generating
        )


def _add_resources(family: Any, node: str, resources: Resources) -> None:
    family.add_metric((node, "cpu"), resources.cpu / 1000)
    family.add_metric((node, "gpu"), resources.gpu / 1000)
    family.add_metric((node, "memory"), resources.memory)
    family.add_metric((node, "gpu_memory"), resources.gpu_memory)


def _histograms(name: str, text: str, label: str, values: dict[str, Histogram]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=(label,))
    for value, histogram in values.items():
        family.add_metric((value,), histogram.buckets(), histogram.sum_s)
    return family


class Metered:
    """Counts every answer, refusals of the gate too; the outermost of zenos' own middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "") or "none"
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.request(method, path, status, time.monotonic() - start)


_METHODS: Final = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"})


def metrics_of(request: Request) -> Metrics:
    """The app's counts."""
    metrics: Metrics = request.app.state.metrics
    return metrics
