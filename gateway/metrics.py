"""What the server counts and times, for Prometheus. Names follow vLLM's, under `gemmule:`.

Knows model names and numbers only. Fed by `service` and `guard`; read by GET /metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gateway.residency import Loaded
from gateway.types import GenerationUsage

TIME_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_BUCKETS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """One set of collectors in a registry of its own, so that tests can have many."""

    def __init__(self, loaded: Callable[[], Iterable[Loaded]] = tuple) -> None:
        self.registry = CollectorRegistry()
        self._loaded = loaded
        model = ("model",)
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of finished requests", model)
        self._cached = self._counter("prompt_tokens_cached", "Prompt tokens found in a prefix cache", model)
        self._generated = self._counter("generation_tokens", "Tokens generated", model)
        self._success = self._counter("request_success", "Choices that finished", ("model", "reason"))
        self._failed = self._counter("request_failure", "Requests that broke off", model)
        self._first = self._histogram("time_to_first_token_seconds", "From request to first token", model)
        self._whole = self._histogram("e2e_request_latency_seconds", "From request to last token", model)
        self._waited = self._histogram("request_queue_time_seconds", "Waiting for the model", model)
        self._sizes = self._histogram("request_prompt_tokens", "Prompt lengths", model, TOKEN_BUCKETS)
        self._lengths = self._histogram("request_generation_tokens", "Reply lengths", model, TOKEN_BUCKETS)
        self._http = self._counter("http_requests", "Responses by path and status", ("path", "status"))
        self._memory = self._gauge("model_memory_bytes", "Memory of a loaded model", model)
        self._users = self._gauge("num_requests_running", "Requests a model serves or queues", model)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"gemmule:{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"gemmule:{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...] = TIME_BUCKETS
    ) -> Histogram:
        return Histogram(f"gemmule:{name}", text, labels, registry=self.registry, buckets=buckets)

    def first_token(self, model: str, started_ns: int) -> None:
        """The first token of a choice arrived; `started_ns` is of the monotonic clock."""
        self._first.labels(model).observe((time.monotonic_ns() - started_ns) / 1e9)

    def finished(self, model: str, reason: str, usage: GenerationUsage) -> None:
        """A choice is complete."""
        self._success.labels(model, reason).inc()
        self._prompt.labels(model).inc(usage.engine.prompt)
        self._cached.labels(model).inc(usage.engine.cached)
        self._generated.labels(model).inc(usage.engine.generated)
        self._whole.labels(model).observe(usage.total_ns / 1e9)
        self._waited.labels(model).observe(usage.load_ns / 1e9)
        self._sizes.labels(model).observe(usage.engine.prompt)
        self._lengths.labels(model).observe(usage.engine.generated)

    def failed(self, model: str) -> None:
        """A running request broke off."""
        self._failed.labels(model).inc()

    def answered(self, path: str, status: int) -> None:
        """A response began; `path` is the route's pattern, never what a stranger wrote."""
        self._http.labels(path, str(status)).inc()

    def render(self) -> bytes:
        """The text format."""
        self._memory.clear()
        self._users.clear()
        counted: set[str] = set()
        for row in self._loaded():
            if row.key not in counted:  # one runner's memory, under the name of its base
                self._memory.labels(row.name).inc(row.memory_bytes)
            counted.add(row.key)
            self._users.labels(row.name).inc(row.users)
        return generate_latest(self.registry)
