"""What is asked of the models that are served, as far as it decides who is loaded. Not stored."""

from __future__ import annotations


class Asking:
    """Requests and replicas, as the router and the workers tell of them.

    By deployment: in_flight, requests; unanswered, those of them that wait for a replica, and
    asked_at, since when some do; used_at, the time of the last one; unloaded, whose replicas have
    given way, or were idle for too long, and are not loaded again yet. By task: ready_at, when a
    replica became ready. Times in kernel seconds.
    """

    def __init__(self) -> None:
        self.in_flight: dict[str, int] = {}
        self.unanswered: dict[str, int] = {}
        self.asked_at: dict[str, float] = {}
        self.used_at: dict[str, float] = {}
        self.unloaded: set[str] = set()
        self.ready_at: dict[str, float] = {}

    def forget(self, name: str) -> None:
        """A deployment is gone."""
        for known in (self.in_flight, self.unanswered, self.asked_at, self.used_at):
            known.pop(name, None)
        self.unloaded.discard(name)
