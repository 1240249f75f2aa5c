"""A pool's decisions, as a pure state machine: what happened and the time in, what to do out.

No I/O, no clock, no locks; pool.py is the effects around it. A thread is `queued`, `running` on a
lane, or `delayed` (it failed, and waits for its next try). It ends once: `End` is its last word.

    queued → running → ended          running → delayed → queued          any → ended (cancelled)

A lane is `opening`, `idle`, `busy`, or `stopping`: what ran on it has been told to stop, and the
lane is held until that is over. An attempt that was stopped for its time has its next try after
that, so that no two attempts of one thread ever run at once.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import Literal

import msgspec

from zenos.core import limits
from zenos.core.thread_views import LaneState, ThreadState
from zenos.threads.policy import Policy, Waiter, Waiting

Outcome = Literal["succeeded", "failed", "cancelled", "timeout", "died", "broken"]


class Submit(msgspec.Struct, frozen=True, kw_only=True):
    """A thread to run. group: whose time on lanes is counted together; retries: after the first."""

    thread: int
    group: int = 0
    priority: int = limits.PRIORITY_NORMAL
    expected_s: float = 0.0
    retries: int = 0
    backoff_s: float = 0.0
    timeout_s: float = math.inf


class Ready(msgspec.Struct, frozen=True):
    """A lane that was opened can run threads."""

    lane: int


class Done(msgspec.Struct, frozen=True):
    """What ran on a lane has ended well."""

    lane: int


class Failed(msgspec.Struct, frozen=True):
    """What ran on a lane has raised. retry: one of the errors that are tried again."""

    lane: int
    retry: bool = False


class Died(msgspec.Struct, frozen=True):
    """A lane is gone, with what ran on it; or it could not be opened.

    unstarted: it was gone before what it was to run had begun, which so isn't counted as a try.
    """

    lane: int
    unstarted: bool = False


class Cancel(msgspec.Struct, frozen=True):
    """Nobody wants a thread's result any more."""

    thread: int


class Resize(msgspec.Struct, frozen=True):
    """Have so many lanes, one at least."""

    lanes: int


class Close(msgspec.Struct, frozen=True):
    """No thread comes any more; lanes end when the last thread has. cancel: all threads now."""

    cancel: bool = False


Event = Submit | Ready | Done | Failed | Died | Cancel | Resize | Close


class Open(msgspec.Struct, frozen=True):
    """Start a lane; answered by Ready or Died."""

    lane: int


class Shut(msgspec.Struct, frozen=True):
    """End a lane; nothing runs on it. Not answered."""

    lane: int


class Run(msgspec.Struct, frozen=True):
    """Run a thread on a lane; answered by Done, Failed or Died."""

    lane: int
    thread: int


class Stop(msgspec.Struct, frozen=True):
    """Tell what runs on a lane that it should end; answered as Run is."""

    lane: int


class Kill(msgspec.Struct, frozen=True):
    """End a lane that has been told to stop and hasn't; answered by Died."""

    lane: int


class End(msgspec.Struct, frozen=True):
    """A thread has ended."""

    thread: int
    outcome: Outcome


Action = Open | Shut | Run | Stop | Kill | End


class Thread(msgspec.Struct):
    """A thread that hasn't ended. Times in seconds; attempts: begun so far."""

    request: Submit
    order: int
    submitted: float
    state: ThreadState = "queued"
    attempts: int = 0
    unstarted: int = 0
    lane: int | None = None
    began: float = 0.0


class Lane(msgspec.Struct):
    """A lane. thread: what it runs, or None when that was given up and is only waited for."""

    id: int
    state: LaneState = "opening"
    thread: int | None = None
    began: float = 0.0
    deadline: float = math.inf  # of what runs; once it was told to stop, of the lane


class Group(msgspec.Struct):
    """Threads whose time counts together. Seconds on lanes of those that ended; who runs now."""

    ended_s: float = 0.0
    runs: int = 0
    running: int = 0
    began_sum: float = 0.0
    live: int = 0

    def attained_s(self, now: float) -> float:
        return self.ended_s + self.running * now - self.began_sum


class Counts(msgspec.Struct):
    """What became of threads, and of lanes, since the pool began."""

    submitted: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    lanes_died: int = 0


class Machine:
    """`step` is the whole interface, beside looking.

    killable: lanes can be killed `grace_s` after they were told to stop. A thread that runs on
    another one ends for its caller at once all the same; the lane is held until it lets go.
    """

    def __init__(
        self,
        lanes: int,
        *,
        policy: Policy = "fifo",
        killable: bool = False,
        grace_s: float = limits.THREAD_GRACE_S,
        ageing: float = 25.0,
    ) -> None:
        self.wanted = max(1, lanes)
        self.threads: dict[int, Thread] = {}
        self.lanes: dict[int, Lane] = {}
        self.counts = Counts()
        self.closing = False
        self.broken = False
        self.waiting = Waiting(policy, ageing, self._attained_s)
        self._killable = killable
        self._grace_s = grace_s
        self._delayed: list[tuple[float, int]] = []
        self._groups: dict[int, Group] = {}
        self._orders = 0
        self._lane_ids = 0
        self._failed_starts = 0
        self._open_at = -math.inf  # no lane is opened before
        self._now = -math.inf
        self._actions: list[Action] = []

    def step(self, events: Iterable[Event], now: float) -> tuple[list[Action], float]:
        """What to do, in that order, and when to call again without an event.

        1. Events, in their order. So a thread that ends at its deadline has ended in time.
        2. What was to happen by now: attempts run out of time, lanes that don't stop are killed,
           delayed threads are queued again.
        3. Lanes are opened up to the number wanted, and idle ones beyond it are shut. Those that
           run something end after it. Closing, with no thread left, none is wanted.
        4. Idle lanes get threads, by the policy.
        """
        self._now = now = max(now, self._now)
        self._actions = []
        for event in events:  # 1
            self._handle(event)
        self._expire(now)  # 2
        self._fit(now)  # 3
        self._assign(now)  # 4
        return self._actions, self._wake(now)

    @property
    def finished(self) -> bool:
        """Closed, with nothing left that was begun."""
        return self.closing and not self.threads and not self.lanes

    def contention(self) -> float:
        """The share of the lanes that are taken, 0 to 1."""
        taken = sum(lane.state in ("busy", "stopping") for lane in self.lanes.values())
        return min(1.0, taken / self.wanted)

    # -- 1, events

    def _handle(self, event: Event) -> None:
        match event:
            case Submit():
                self._submit(event)
            case Cancel():
                self._cancel(event.thread)
            case Resize():
                self.wanted = max(1, event.lanes)
            case Close():
                self.closing = True
                if event.cancel:
                    for thread in list(self.threads):
                        self._cancel(thread)
            case Ready() | Done() | Failed() | Died():
                lane = self.lanes.get(event.lane)
                if lane is not None:  # else it was shut meanwhile
                    self._of_lane(event, lane)

    def _submit(self, request: Submit) -> None:
        self._orders += 1
        self.counts.submitted += 1
        thread = Thread(request=request, order=self._orders, submitted=self._now)
        self.threads[request.thread] = thread
        self._groups.setdefault(request.group, Group()).live += 1
        if self.broken:
            self._end(thread, "broken")
        elif self.closing:
            self._end(thread, "cancelled")
        else:
            self._queue(thread)

    def _cancel(self, number: int) -> None:
        thread = self.threads.get(number)
        if thread is None:
            return
        if thread.lane is not None:
            self._give_up(self.lanes[thread.lane])
        self._end(thread, "cancelled")

    def _of_lane(self, event: Ready | Done | Failed | Died, lane: Lane) -> None:
        thread = None if lane.thread is None else self.threads[lane.thread]
        stopped = lane.state == "stopping"
        if isinstance(event, Ready):
            if lane.state == "opening":
                self._failed_starts = 0
                lane.state = "idle"
            return
        if isinstance(event, Died):
            self._bury(lane)
        self._release(lane)
        if thread is None:
            return
        if stopped:  # for its time, and it has a try left
            self._again(thread)
        elif self._is_unstarted(event, thread):
            thread.attempts -= 1
            thread.unstarted += 1
            self._queue(thread)
        elif isinstance(event, Done):
            self._end(thread, "succeeded")
        elif self._may_retry(thread) and (isinstance(event, Died) or event.retry):
            self._again(thread)
        else:
            self._end(thread, "died" if isinstance(event, Died) else "failed")

    def _is_unstarted(self, event: Event, thread: Thread) -> bool:
        """Whether its lane died before it; not for ever, since something may kill them all."""
        return (
            isinstance(event, Died)
            and event.unstarted
            and thread.unstarted < limits.LANE_STARTS_FAILED_MAX
        )

    def _bury(self, lane: Lane) -> None:
        """A lane is gone. One that can't even be started is tried again a little later."""
        del self.lanes[lane.id]
        if lane.state != "opening":
            self.counts.lanes_died += 1
            return
        self._failed_starts += 1
        self._open_at = self._now + limits.LANE_RESTART_S
        if self._failed_starts >= limits.LANE_STARTS_FAILED_MAX and not self.lanes:
            self.broken = True
            for thread in list(self.threads.values()):
                self._end(thread, "broken")

    # -- threads

    def _queue(self, thread: Thread) -> None:
        request = thread.request
        group = self._groups[request.group]
        learned = group.ended_s / group.runs if group.runs else limits.THREAD_EXPECTED_S
        thread.state = "queued"
        self.waiting.push(
            Waiter(
                order=thread.order,
                thread=request.thread,
                group=request.group,
                priority=request.priority,
                queued=thread.submitted,
                expected_s=request.expected_s or learned,
            )
        )

    def _may_retry(self, thread: Thread) -> bool:
        return thread.attempts <= thread.request.retries

    def _again(self, thread: Thread) -> None:
        """Its next try, after its backoff, doubled with each attempt."""
        self.counts.retried += 1
        wait_s = thread.request.backoff_s * 2.0 ** min(thread.attempts - 1, 60)
        thread.state = "delayed"
        due = self._now + min(wait_s, limits.THREAD_BACKOFF_S_MAX)
        heapq.heappush(self._delayed, (due, thread.request.thread))

    def _end(self, thread: Thread, outcome: Outcome) -> None:
        number, request = thread.request.thread, thread.request
        del self.threads[number]
        self.waiting.discard(number)
        group = self._groups[request.group]
        group.live -= 1
        if group.live == 0 and group.running == 0:
            del self._groups[request.group]
        if outcome == "succeeded":
            self.counts.succeeded += 1
        elif outcome == "cancelled":
            self.counts.cancelled += 1
        else:
            self.counts.failed += 1
        self._actions.append(End(number, outcome))

    # -- lanes

    def _release(self, lane: Lane) -> None:
        """What ran on a lane is over."""
        if lane.thread is not None:
            self._detach(lane)
        if lane.state in ("busy", "stopping"):
            lane.state, lane.deadline = "idle", math.inf

    def _detach(self, lane: Lane) -> None:
        """The thread on a lane is no longer that lane's; its time there counts."""
        assert lane.thread is not None  # noqa: S101
        thread = self.threads[lane.thread]
        lane.thread = thread.lane = None
        group = self._groups[thread.request.group]
        group.running -= 1
        group.began_sum -= lane.began
        group.ended_s += self._now - lane.began
        group.runs += 1
        if group.running == 0:
            group.began_sum = 0.0  # rounding doesn't add up

    def _give_up(self, lane: Lane) -> None:
        """Stop what runs on a lane, and no longer know whose it is."""
        self._detach(lane)
        self._stop(lane)

    def _stop(self, lane: Lane) -> None:
        if lane.state != "stopping":
            lane.state = "stopping"
            lane.deadline = self._now + self._grace_s if self._killable else math.inf
            self._actions.append(Stop(lane.id))

    # -- 2, time

    def _expire(self, now: float) -> None:
        for lane in list(self.lanes.values()):
            if lane.deadline > now:
                continue
            if lane.state == "stopping":
                lane.deadline = math.inf
                self._actions.append(Kill(lane.id))
            elif lane.thread is not None:
                thread = self.threads[lane.thread]
                if self._may_retry(thread):
                    self._stop(lane)
                else:
                    self._give_up(lane)
                    self._end(thread, "timeout")
        while self._delayed and self._delayed[0][0] <= now:
            _, number = heapq.heappop(self._delayed)
            delayed = self.threads.get(number)
            if delayed is not None and delayed.state == "delayed":
                self._queue(delayed)

    def _wake(self, now: float) -> float:
        wake = min((lane.deadline for lane in self.lanes.values()), default=math.inf)
        while self._delayed and self._delayed[0][1] not in self.threads:
            heapq.heappop(self._delayed)  # cancelled meanwhile
        if self._delayed:
            wake = min(wake, self._delayed[0][0])
        if self._missing() > 0:
            wake = min(wake, self._open_at)
        return wake

    # -- 3, 4, the number of lanes and what they get

    def _missing(self) -> int:
        """How many lanes there are to be more; negative: less."""
        if self.broken or (self.closing and not self.threads):
            return -len(self.lanes)
        return self.wanted - len(self.lanes)

    def _fit(self, now: float) -> None:
        missing = self._missing()
        if missing > 0 and now >= self._open_at:
            for _ in range(missing):
                self._lane_ids += 1
                self.lanes[self._lane_ids] = Lane(id=self._lane_ids)
                self._actions.append(Open(self._lane_ids))
        elif missing < 0:
            idle = [lane for lane in self.lanes.values() if lane.state == "idle"]
            self._shut(idle[missing:])

    def _shut(self, lanes: Iterable[Lane]) -> None:
        for lane in lanes:
            del self.lanes[lane.id]
            self._actions.append(Shut(lane.id))

    def _assign(self, now: float) -> None:
        if not self.waiting:
            return
        for lane in self.lanes.values():
            if lane.state != "idle":
                continue
            if not self.waiting:
                return
            number = self.waiting.pop(self.contention(), now)
            thread = self.threads[number]
            group = self._groups[thread.request.group]
            group.running += 1
            group.began_sum += now
            thread.state, thread.lane, thread.began = "running", lane.id, now
            thread.attempts += 1
            lane.state, lane.thread, lane.began = "busy", number, now
            lane.deadline = now + thread.request.timeout_s
            self._actions.append(Run(lane.id, number))

    def _attained_s(self, group: int) -> float:
        return self._groups[group].attained_s(self._now)
