"""What is asked of the models that are served, as far as it decides who is loaded. Not stored."""

from __future__ import annotations

import math
from typing import Any

from zenos.core.specs import DeploymentSpec


class Asking:
    """Requests and replicas, as the router and the workers tell of them.

    By deployment: in_flight, requests; unanswered, those of them that wait for a replica, and
    asked_at, since when some do; used_at, the time of the last one; needed_at, when a first, a
    second, … replica was needed last; unloaded, whose replicas have given way, or were idle for too
    long, and are not loaded again yet. By task: ready_at, when a replica became ready. Times in
    kernel seconds.
    """

    def __init__(self) -> None:
        self.in_flight: dict[str, int] = {}
        self.unanswered: dict[str, int] = {}
        self.asked_at: dict[str, float] = {}
        self.used_at: dict[str, float] = {}
        self.needed_at: dict[str, list[float]] = {}
        self.unloaded: set[str] = set()
        self.ready_at: dict[str, float] = {}

    def count(self, name: str, in_flight: int, spec: DeploymentSpec, now: float) -> None:
        """So many requests are in flight from now on."""
        most = max(self.in_flight.get(name, 0), in_flight)
        needed = min(math.ceil(most / spec.slots), spec.max_replicas)
        self.needed_at.setdefault(name, [])[:needed] = [now] * needed
        self.in_flight[name] = in_flight
        self.used_at[name] = now

    def further(self, name: str) -> list[float]:
        """When a second, a third, … replica was needed last: the later ones never later."""
        return self.needed_at.get(name, [])[1:]

    def forget(self, name: str) -> None:
        """A deployment is gone."""
        known: dict[str, Any]
        for known in (
            self.in_flight,
            self.unanswered,
            self.asked_at,
            self.used_at,
            self.needed_at,
        ):
            known.pop(name, None)
        self.unloaded.discard(name)
