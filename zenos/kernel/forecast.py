"""The schedule ahead: the kernel's own code, run on under a virtual clock from a picture.

Workers are virtual: they start and save at once, run for as long as their tasks are expected to,
and succeed. Nobody submits, cancels, pauses or asks a model anything more.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Final, Literal

from msgspec.structs import replace

from zenos.core import events as ev
from zenos.core import limits
from zenos.core.actions import Action, PauseWorker, ResumeWorker, StartWorker, StopWorker
from zenos.core.outlook import Picture, Plan, Segment
from zenos.core.task import Kind, Outcome, State, Task
from zenos.kernel import supervision
from zenos.kernel.rebuilt import build

Ends = Literal["finished", "gives way", "paused", "stopped", "open"]
NOTES: Final = [
    "run times are expectations: the user's word, what tasks like it took, or a default",
    "not in it: work still to come, requests to models, failures, the time to start and to save",
]


class Forecast:
    """What a kernel decides from a picture on, when all goes as expected."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.kernel = build(picture)
        self.now = picture.now
        self.segments: list[Segment] = []
        self.starts: dict[str, float] = {}  # and goings on, the first of each
        self.steps = 0
        self._wake = picture.now
        self._order = itertools.count()
        # With the stay of the worker that an end is of: 0 where it is no end.
        self._coming: list[tuple[float, int, ev.Event, int]] = []
        self._left: dict[str, float] = {}  # seconds that a task has still to run
        self._open: dict[str, list[Segment]] = {}
        self._stays: dict[str, int] = {}  # by task; the end of an older one is void
        self._set_out()
        for task_id in sorted(self.kernel.state.holding):
            self._take_over(self.kernel.state.tasks[task_id])

    def _set_out(self) -> None:
        """Requests in flight are taken to be answered: nobody asks any more."""
        state = self.kernel.state
        state.asking.in_flight = dict.fromkeys(state.asking.in_flight, 0)
        state.asking.unanswered, state.asking.asked_at = {}, {}

    # -- running

    def run(self, until_s: float, enough: Callable[[], bool]) -> bool:
        """Until nothing is expected any more, and no further than `until_s` seconds ahead.

        enough: looked at after each step. Whether it came to the end of all that is to come.
        """
        end = self.picture.now + until_s
        while self.steps < limits.FORECAST_STEPS_MAX and not enough():
            at = self._at()
            if math.isinf(at) or at > end:
                self.now = max(self.now, min(end, at))
                return math.isinf(at)
            self.now = max(self.now, at)
            self._step(self._due())
        return False

    def _at(self) -> float:
        """When the kernel is to be called next."""
        return min(self._coming[0][0] if self._coming else math.inf, self._wake)

    def plan(self, *, complete: bool) -> Plan:
        """What has come out."""
        still = [
            replace(segment, end=max(self.now, segment.start))
            for parts in self._open.values()
            for segment in parts
        ]
        segments = sorted([*self.segments, *still], key=lambda s: (s.node, s.start, s.task))
        state = self.kernel.state
        never = [
            task.id
            for task in self.picture.tasks
            if task.state is State.QUEUED and task.id not in self.starts
        ]
        nodes = [pool.node for pool in state.resources.pools.values()]
        notes = list(NOTES)
        if not complete:
            notes.append("it ends before all work does: it was looked no further")
        return Plan(
            at=self.picture.now,
            until=max([segment.end for segment in segments], default=self.now),
            segments=segments,
            nodes=nodes,
            never=never,
            left_out=self.picture.left_out,
            complete=complete,
            notes=notes,
        )

    # -- the virtual workers

    def _step(self, events: list[ev.Event]) -> None:
        self.steps += 1
        _, actions, self._wake = self.kernel.step(events, self.now)
        for action in actions:
            self._perform(action)

    def _due(self) -> list[ev.Event]:
        found: list[ev.Event] = []
        while self._coming and self._coming[0][0] <= self.now:
            _, _, event, stay = heapq.heappop(self._coming)
            if isinstance(event, ev.WorkerExited):
                if self._stays.get(event.task) != stay:
                    continue
                self._close(event.task, _how(event.outcome))
            found.append(event)
        return found

    def _put(self, at: float, event: ev.Event, stay: int = 0) -> None:
        heapq.heappush(self._coming, (at, next(self._order), event, stay))

    def _take_over(self, task: Task) -> None:
        """A worker that is there already, in whatever state."""
        ran = replace(task, ran_s=supervision.ran_s(task, self.now))
        self._left[task.id] = self.kernel.state.estimates.expected_s(ran)
        self._begin(task, task.running or task.started or self.now, begun=True)
        if task.stopping:
            self._exit(task, self.now, save=supervision.saves(task))
        elif task.state is State.STARTING:
            self._started(task)
        elif task.state in (State.PAUSING, State.PAUSED):
            if task.state is State.PAUSING:
                self._put(self.now, ev.WorkerPaused(task=task.id, generation=task.generation))
            self._close(task.id, "paused")
        else:
            self._works(task)

    def _perform(self, action: Action) -> None:
        match action:
            case StartWorker(task=task):
                if task.id not in self._left:
                    self._left[task.id] = self.kernel.state.estimates.expected_s(task)
                self.starts.setdefault(task.id, self.now)
                self._begin(task, self.now)
                self._started(task)
            case StopWorker(task=name, save=save):
                self._exit(self.kernel.state.tasks[name], self.now, save=save)
            case PauseWorker(task=name, generation=generation):
                self._put(self.now, ev.WorkerPaused(task=name, generation=generation))
                self._next_stay(name)
                self._close(name, "paused")
            case ResumeWorker(task=name):
                self._resumed(self.kernel.state.tasks[name])
            case _:
                pass

    def _started(self, task: Task) -> None:
        self._put(self.now, ev.WorkerStarted(task=task.id, generation=task.generation, pid=1))
        self._works(task)

    def _works(self, task: Task) -> None:
        if task.kind is Kind.SERVE:
            if not task.ready:
                self._put(self.now, ev.WorkerReady(task=task.id, generation=task.generation))
            return
        self._exit(task, self.now + self._left[task.id], code=0)

    def _resumed(self, task: Task) -> None:
        if task.id in self._open:
            return  # its pause was given up: it has run on
        self.starts.setdefault(task.id, self.now)
        self._begin(task, self.now)
        self._works(task)

    def _exit(self, task: Task, at: float, *, save: bool = False, code: int | None = None) -> None:
        """Let this stay of its worker end: as it is asked to, or with a code."""
        asked = Outcome(exit_code=supervision.EXIT_SUSPENDED) if save else Outcome(signal=15)
        outcome = asked if code is None else Outcome(exit_code=code)
        event = ev.WorkerExited(task=task.id, generation=task.generation, outcome=outcome)
        self._put(at, event, self._next_stay(task.id))

    def _next_stay(self, task_id: str) -> int:
        self._stays[task_id] = self._stays.get(task_id, 0) + 1
        return self._stays[task_id]

    # -- what is drawn

    def _begin(self, task: Task, at: float, *, begun: bool = False) -> None:
        held = task.allocation
        whole = [(held.node if held is not None else "", task.granted)]
        gang = [(part.node, part.resources) for part in held.parts] if held is not None else []
        self._open[task.id] = [
            Segment(
                task=task.id,
                label=task.label,
                kind=task.kind,
                user=task.principal.user,
                priority=task.spec.priority,
                node=node,
                resources=resources,
                start=at,
                end=at,
                ends="open",
                begun=begun,
            )
            for node, resources in (gang if len(gang) > 1 else whole)
        ]

    def _close(self, task_id: str, ends: Ends) -> None:
        parts = self._open.pop(task_id, None)
        if parts is None:
            return
        worked_s = self.now - max(parts[0].start, self.picture.now)
        self._left[task_id] = max(self._left[task_id] - worked_s, 1e-3)
        self.segments += [replace(segment, end=self.now, ends=ends) for segment in parts]


def _how(outcome: Outcome) -> Ends:
    if outcome.signal is not None:
        return "stopped"
    return "gives way" if outcome.exit_code == supervision.EXIT_SUSPENDED else "finished"
