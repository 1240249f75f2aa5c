"""A virtual router and virtual replicas: they tell the kernel what the real ones tell it.

The kernel hears of a request as from workers/router.py (`Used`, and `Demand` where no replica is
ready), and of a replica as from its worker. A replica loads, answers so many requests at a time,
and lets others wait in order. Told to stop, it answers what it was sent, and is killed after the
grace time. What had no token yet when its replica ended goes to another one.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from typing import Final, NamedTuple

import msgspec

from zenos.core import events as ev
from zenos.core import limits
from zenos.core.task import Outcome, State, Task
from zenos.kernel.state import KernelState
from zenos.simulate.report import Served, quantile
from zenos.simulate.requests import MODEL, Asked, Load, Replicas

DEPLOY: Final = -1  # the number of that request to the kernel: jobs have the others


class _Request(msgspec.Struct, gc=False):
    """One on its way. flight: which attempt, counted; first_s: when its first token comes."""

    asked: Asked
    flight: int = 0
    replica: str = ""
    first_s: float = math.inf
    over: bool = False


class _Replica(msgspec.Struct):
    """A worker: what it answers, and what waits in it for a slot."""

    generation: int
    since_s: float
    active: dict[int, _Request] = {}  # by flight
    line: deque[_Request] = msgspec.field(default_factory=deque)
    ending: bool = False

    @property
    def sent(self) -> int:
        return len(self.active) + len(self.line)


class _Loaded(NamedTuple):
    task: str
    generation: int


class _Landed(NamedTuple):
    """The last token of that flight has come."""

    task: str
    flight: int


class _Ends(NamedTuple):
    """The worker is gone, whatever it was about to answer."""

    task: str
    generation: int


class Serving:
    """Requests for one deployment. `next_s`: when something happens next; then call `due`."""

    def __init__(self, load: Load, replicas: Replicas) -> None:
        self._spec = replicas
        self._deployment = replicas.deployment()
        self._arrivals = load.arrivals()
        self._next = next(self._arrivals, None)
        self._coming: list[tuple[float, int, _Loaded | _Landed | _Ends]] = []
        self._order = itertools.count()
        self._deadlines: deque[_Request] = deque()  # as they came: they all have as much time
        self._waiting: deque[_Request] = deque()  # for a replica; those that are over are skipped
        self._replicas: dict[str, _Replica] = {}
        self._in_flight = 0
        self._unsent = 0  # of those, how many wait for a replica
        self._says: list[ev.Event] = []
        self._told = (0, 0)
        self._now = 0.0
        self.arrived = 0
        self.late = self.refused = self.cut = self.loads = 0
        self.first_token_s: list[float] = []
        self.replica_wait_s = 0.0  # the longest
        self.held: list[tuple[float, float]] = []  # from when to when a replica was there
        self.last_s = 0.0  # when the last request was over

    def deploy(self) -> ev.Deploy:
        """What its owner says at the beginning."""
        return ev.Deploy(request=DEPLOY, spec=self._deployment)

    @property
    def done(self) -> bool:
        """Whether every request has come and is over."""
        return self._next is None and not self._in_flight

    @property
    def next_s(self) -> float:
        if self._says or self._told != self._counts:
            return self._now
        at = self._coming[0][0] if self._coming else math.inf
        if self._next is not None:
            at = min(at, self._next.at_s)
        while self._deadlines and self._deadlines[0].over:
            self._deadlines.popleft()
        if self._deadlines:
            at = min(at, self._deadlines[0].asked.at_s + self._spec.timeout_s)
        return at

    def due(self, state: KernelState, now: float) -> list[ev.Event]:
        """What the kernel hears by now."""
        self._now = now
        while self._coming and self._coming[0][0] <= now:
            what = heapq.heappop(self._coming)[2]
            match what:
                case _Loaded():
                    self._loaded(what)
                case _Landed():
                    self._landed(what, now)
                case _Ends():
                    self._ended(what.task, what.generation, now)
        while self._next is not None and self._next.at_s <= now:
            self._arrive(self._next, state, now)
            self._next = next(self._arrivals, None)
        while self._deadlines and self._deadlines[0].asked.at_s + self._spec.timeout_s <= now:
            self._expire(self._deadlines.popleft(), now)
        says, self._says = self._says, []
        if self._told != self._counts:
            self._told = in_flight, waiting = self._counts
            says.insert(0, ev.Used(name=MODEL, in_flight=in_flight, waiting=waiting))
        return says

    def settle(self, state: KernelState, now: float) -> None:
        """After each step: requests that wait go to replicas that are ready by now."""
        self._now = now
        while self._unsent:
            replica = self._least_loaded(state)
            if replica is None:
                break
            request = self._waiting.popleft()
            if not request.over:
                self._unsent -= 1
                self._send(request, replica, now)

    # -- what the kernel says

    def start(self, task: Task, now: float) -> None:
        """A replica begins to load."""
        self.loads += 1
        self._replicas[task.id] = _Replica(task.generation, now)
        self._says.append(ev.WorkerStarted(task=task.id, generation=task.generation, pid=1))
        self._put(now + self._spec.load_s, _Loaded(task.id, task.generation))

    def stop(self, task: str, generation: int, grace_s: float, now: float) -> None:
        """A replica is to end: now where nothing was sent to it, else when that is answered."""
        replica = self._replicas.get(task)
        if replica is None or replica.generation != generation:
            return
        replica.ending = True
        self._put(now + grace_s if replica.sent else now, _Ends(task, generation))

    # -- requests

    def _arrive(self, asked: Asked, state: KernelState, now: float) -> None:
        self.arrived += 1
        room = limits.REQUESTS_WAITING_MAX + self._spec.slots * self._spec.max_replicas
        if self._in_flight >= room:
            self.refused += 1
            return
        request = _Request(asked)
        self._in_flight += 1
        self._deadlines.append(request)
        replica = self._least_loaded(state)
        if replica is not None:
            self._send(request, replica, now)
        else:
            self._wait(request)
            self._says.append(ev.Demand(name=MODEL, spec=self._deployment))

    def _wait(self, request: _Request) -> None:
        request.replica, request.first_s = "", math.inf
        self._unsent += 1
        self._waiting.append(request)

    def _send(self, request: _Request, name: str, now: float) -> None:
        self.replica_wait_s = max(self.replica_wait_s, now - request.asked.at_s)
        request.replica = name
        request.flight = next(self._order)
        self._replicas[name].line.append(request)
        self._fill(name, now)

    def _fill(self, name: str, now: float) -> None:
        """Requests that wait in a replica get its free slots; one that is to end ends with them."""
        replica = self._replicas[name]
        while replica.line and len(replica.active) < self._spec.slots:
            request = replica.line.popleft()
            replica.active[request.flight] = request
            request.first_s = now + request.asked.prompt / self._spec.prompt_rate
            ends_s = request.first_s + request.asked.output / self._spec.output_rate
            self._put(ends_s, _Landed(name, request.flight))
        if replica.ending and not replica.sent:
            self._put(now, _Ends(name, replica.generation))

    def _landed(self, what: _Landed, now: float) -> None:
        replica = self._replicas.get(what.task)
        request = replica.active.pop(what.flight, None) if replica else None
        if request is None:
            return  # it was over before
        self.first_token_s.append(request.first_s - request.asked.at_s)
        self._over(request, now)
        self._fill(what.task, now)

    def _expire(self, request: _Request, now: float) -> None:
        """Its time is up: whoever has it lets it go."""
        if request.over:
            return
        self.late += 1
        self._over(request, now)
        replica = self._replicas.get(request.replica)
        if replica is None:
            self._unsent -= 1
            return
        if replica.active.pop(request.flight, None) is None:
            replica.line.remove(request)
        self._fill(request.replica, now)

    def _over(self, request: _Request, now: float) -> None:
        request.over = True
        self._in_flight -= 1
        self.last_s = max(self.last_s, now)

    @property
    def _counts(self) -> tuple[int, int]:
        """What the router tells: how many there are, and how many of them wait for a replica."""
        return self._in_flight, self._unsent

    # -- replicas

    def _loaded(self, what: _Loaded) -> None:
        replica = self._replicas.get(what.task)
        if replica is not None and replica.generation == what.generation and not replica.ending:
            self._says.append(ev.WorkerReady(task=what.task, generation=what.generation))

    def _ended(self, name: str, generation: int, now: float) -> None:
        """Whose first token has come fails; the others wait for another replica, as new ones do."""
        replica = self._replicas.get(name)
        if replica is None or replica.generation != generation:
            return
        del self._replicas[name]
        outcome = Outcome(exit_code=0)
        self._says.append(ev.WorkerExited(task=name, generation=generation, outcome=outcome))
        self.held.append((replica.since_s, now))
        for request in (*replica.active.values(), *replica.line):
            if request.first_s <= now:
                self.cut += 1
                self._over(request, now)
            else:
                self._wait(request)

    def _least_loaded(self, state: KernelState) -> str | None:
        """Of those that can answer, as in workers/router.py."""
        ready = [name for name in self._replicas if _can_answer(state.tasks.get(name))]
        return min(ready, key=lambda name: self._replicas[name].sent, default=None)

    def _put(self, at: float, what: _Loaded | _Landed | _Ends) -> None:
        heapq.heappush(self._coming, (at, next(self._order), what))

    def served(self) -> Served:
        """What it came to, once it is done."""
        there = [(replica.since_s, math.inf) for replica in self._replicas.values()]
        held_s = sum(max(0.0, min(to, self.last_s) - since) for since, to in self.held + there)
        waits = self.first_token_s
        return Served(
            arrived=self.arrived,
            answered=len(waits),
            late=self.late,
            refused=self.refused,
            cut=self.cut,
            first_token_median_s=quantile(waits, 0.5) if waits else None,
            first_token_p99_s=quantile(waits, 0.99) if waits else None,
            first_token_longest_s=max(waits, default=None),
            replica_wait_longest_s=self.replica_wait_s,
            cold_starts=self.loads,
            replicas_mean=held_s / self.last_s if self.last_s else 0.0,
        )


def _can_answer(task: Task | None) -> bool:
    return task is not None and task.ready and task.state is State.RUNNING and not task.stopping
