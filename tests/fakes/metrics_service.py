"""A service whose live traffic follows the clock, with a metrics page over a real socket.

The page is made by the client library that vLLM and many others are made with. What the page does wrong is
set from outside: it hangs, drips, fails, lies, starts anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from polythrottle.clock import Clock

EDGES_S = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0)


class MetricsService:
    """Queries arrive evenly; `draw` gives each one's latency in seconds, None where it fails."""

    def __init__(
        self,
        clock: Clock,
        rate_per_s: float,
        draw: Callable[[], float | None],
        *,
        prefix: str = "vllm:",
        edges_s: Sequence[float] = EDGES_S,
        models: Sequence[str] = ("llama",),
    ) -> None:
        self.clock = clock
        self.rate_per_s = rate_per_s
        self.draw = draw
        self.page: Callable[[], bytes] | None = None
        """Instead of the true one."""
        self.status = 200
        self.hangs = threading.Event()
        self.released = threading.Event()
        self.n_scrapes = 0
        self._prefix, self._edges_s, self._models = prefix, edges_s, models
        self._lock = threading.Lock()
        self._due_s = clock.now()
        self.restart()

    def restart(self) -> None:
        """All counters begin anew."""
        registry, prefix = CollectorRegistry(), self._prefix
        labels = ["model_name"]
        self._registry = registry
        self._e2e = Histogram(
            f"{prefix}e2e_request_latency_seconds", "e2e", labels, registry=registry, buckets=self._edges_s
        )
        self._ttft = Histogram(
            f"{prefix}time_to_first_token_seconds", "ttft", labels, registry=registry, buckets=self._edges_s
        )
        self._itl = Histogram(
            f"{prefix}inter_token_latency_seconds", "itl", labels, registry=registry, buckets=self._edges_s
        )
        self._good = Counter(
            f"{prefix}request_success", "finished", [*labels, "finished_reason"], registry=registry
        )
        for model in self._models:
            for histogram in (self._e2e, self._ttft, self._itl):
                histogram.labels(model)
            for reason in ("stop", "abort"):
                self._good.labels(model, reason)

    def text(self) -> bytes:
        """The page as of now."""
        with self._lock:
            while self._due_s <= self.clock.now():
                self._due_s += 1.0 / self.rate_per_s
                for model in self._models:
                    self._serve(model)
            return generate_latest(self._registry)

    def _serve(self, model: str) -> None:
        latency_s = self.draw()
        if latency_s is None:
            self._good.labels(model, "abort").inc()
            return
        self._good.labels(model, "stop").inc()
        self._e2e.labels(model).observe(latency_s)
        self._ttft.labels(model).observe(latency_s / 4)
        for _ in range(3):
            self._itl.labels(model).observe(latency_s / 8)


@contextmanager
def listening(service: MetricsService) -> Iterator[str]:
    """The service's address, while it listens."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.n_scrapes += 1
            if service.hangs.is_set():
                service.released.wait(30)
                return
            body = service.text() if service.page is None else service.page()
            self.send_response(service.status)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        service.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
