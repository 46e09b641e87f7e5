"""What there is to measure, in the text format that Prometheus reads."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from restmcts.engines import Engines
from restmcts.serve.desk import Desk
from restmcts.types import Tree

KIND = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)
"""seconds that the buckets of a histogram end at"""
GONE = 499
"""the status, for counting, of a request whose client went away"""


@dataclass(slots=True)
class Histogram:
    """How often something took how long."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Its samples: buckets count all that is below their bound."""
        inner, below = labels.strip("{}"), 0
        comma = "," if inner else ""
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            below += count
            yield f'{name}_bucket{{{inner}{comma}le="{bound}"}} {below}'
        yield f"{name}_sum{labels} {self.total:.6f}"
        yield f"{name}_count{labels} {below}"


class Gauges:
    """Counts what is served. `lines` is what /metrics says."""

    def __init__(self, desk: Desk, engines: Engines) -> None:
        self.desk = desk
        self.engines = engines
        self.requests: Counter[tuple[str, int]] = Counter()
        """by method (empty where a request named none that there is) and status"""
        self.stops: Counter[tuple[str, str]] = Counter()
        """by method and why the search ended"""
        self.seconds: dict[str, Histogram] = {}
        """from a request's arrival to the end of its answer, by method; of those that were answered"""
        self.failed_in_a_row = 0
        """searches that ended because an engine failed, since the last one that did not"""

    def served(self, method: str, status: int, seconds: float) -> None:
        """Count a request that is over."""
        self.requests[method, status] += 1
        if status == 200:
            self.seconds.setdefault(method, Histogram()).add(seconds)

    def searched(self, tree: Tree) -> None:
        """Count a search that came to its end."""
        self.stops[tree.method, tree.stop or "none"] += 1
        self.failed_in_a_row = self.failed_in_a_row + 1 if tree.result is None and tree.failures else 0

    def failed(self) -> None:
        """Count a search that an engine's failure ended."""
        self.failed_in_a_row += 1

    def text(self) -> str:
        """All of it."""
        return "\n".join(self.lines()) + "\n"

    def lines(self) -> Iterator[str]:
        yield from _metric("requests_total", "counter", "Requests for a completion, by method and HTTP status.")
        for (method, status), count in sorted(self.requests.items()):
            yield f"restmcts_requests_total{_labels(method=method, status=str(status))} {count}"
        yield from _metric("searches_total", "counter", "Searches that ended, by method and why.")
        for (method, stop), times in sorted(self.stops.items()):
            yield f"restmcts_searches_total{_labels(method=method, stop=stop)} {times}"
        yield from _metric("request_seconds", "histogram", "From a request's arrival to the end of its answer.")
        for method, histogram in sorted(self.seconds.items()):
            yield from histogram.lines("restmcts_request_seconds", _labels(method=method))
        for name, value, about in (
            ("searches_open", self.desk.open, "Searches under way."),
            ("requests_waiting", self.desk.waiting, "Requests that wait for a place."),
            ("places", self.desk.places, "Searches that may be open at once."),
        ):
            yield from _metric(name, "gauge", about)
            yield f"restmcts_{name} {value}"
        cost = self.desk.drive.account.count
        for name, total, about in (
            ("policy_tokens_total", cost.policy_tokens, "Tokens that the policy generated."),
            ("prompt_tokens_total", cost.prompt_tokens, "Prompt tokens that the policy was given."),
            ("cached_tokens_total", cost.cached_tokens, "Of these, those from the prefix cache."),
            ("value_tokens_total", cost.value_tokens, "Tokens that the value model was given."),
            ("engine_requests_total", cost.requests, "Requests to both models."),
            ("policy_busy_seconds_total", self.engines.policy.busy_seconds, "Seconds in which the policy had work."),
            ("value_busy_seconds_total", self._value_busy(), "Seconds in which the value model had work."),
        ):
            yield from _metric(name, "counter", about)
            yield f"restmcts_{name} {total}"

    def _value_busy(self) -> float:
        return 0.0 if self.engines.value is None else self.engines.value.busy_seconds


def _metric(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP restmcts_{name} {about}"
    yield f"# TYPE restmcts_{name} {kind}"


def _labels(**labels: str) -> str:
    def safe(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    said: Mapping[str, str] = {name: safe(value) for name, value in labels.items()}
    return "{" + ",".join(f'{name}="{value}"' for name, value in said.items()) + "}"
