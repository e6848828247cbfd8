"""What a server counts, in the text format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Measured:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("retroflow_requests", "Answered requests.", ["path", "status"], registry=registry)
        self._prompt_tokens = Counter("retroflow_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._tokens = Counter("retroflow_generated_tokens", "Generated tokens.", registry=registry)
        self._running = Gauge("retroflow_running", "Texts that are computed together.", registry=registry)
        self._waiting = Gauge("retroflow_waiting", "Texts that wait.", registry=registry)
        self._step_seconds = Histogram(
            "retroflow_step_seconds", "Time of one token of all running texts.", registry=registry
        )
        self._request_seconds = Histogram(
            "retroflow_request_seconds",
            "Time to an answer, or to the first text of a stream.",
            ["path"],
            registry=registry,
        )

    def step(self, running: int, waiting: int, seconds: float) -> None:
        """Record the time of one token of every running text."""
        self._running.set(running)
        self._waiting.set(waiting)
        self._step_seconds.observe(seconds)

    def tokens(self, count: int) -> None:
        """Count tokens that are about to be generated."""
        self._tokens.inc(count)

    def prompt(self, tokens: int) -> None:
        """Count a prompt."""
        self._prompt_tokens.inc(tokens)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(path, str(status)).inc()
        self._request_seconds.labels(path).observe(seconds)

    def idle(self) -> None:
        """Say that nothing runs or waits."""
        self._running.set(0)
        self._waiting.set(0)

    def text(self) -> bytes:
        """Return all numbers."""
        return generate_latest(self._registry)
