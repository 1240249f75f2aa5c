"""Which call runs where, on a host: the queue, the lanes, and what follows when a lane dies.

1. Programs take turns; each one's calls go in their order.
2. A lane has some calls in advance, so that it never waits for the next: of CALLS_AHEAD_ALONE_S in
   all, as far as is known how long they run. When another program comes, what is over CALLS_AHEAD_S
   and not taken is taken back, and from then on that is the limit: nobody waits long behind what
   others have called. When another lane has nothing left, or a call runs for longer than was
   thought, what waits behind is taken back, too, and shared out anew.
3. A call with a time limit has its lane for itself.
4. When a lane dies, what it had not taken goes to others. The one that it had taken may have run:
   it runs again if it is idempotent, at most `retries` times, and else ends with an error.
5. A lane ends by itself before a call when files of modules that it has imported have changed.
"""

from __future__ import annotations

import heapq
import itertools
import math
import select
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from zenos.calls import lanes, views, wire
from zenos.calls.durations import Durations
from zenos.calls.journal import Journal, Left
from zenos.calls.lanes import Lane, Work
from zenos.calls.past import Key, Past
from zenos.core import limits
from zenos.core.errors import DeadlineError, LaneError, WorkerError, ZenosError
from zenos.core.thread_views import PoolView
from zenos.threads import allocation

ALARMS_KEPT: Final = 1000
LOOKS: Final = 100
SHORT_S: Final = 5.0  # for descriptors or memory that a call needs on its way to a lane
SHORT_LOOK_S: Final = 0.05  # between two looks whether there are some
UNCERTAIN: Final = (
    "cannot tell whether {name} ran to its end: {why}. It does not run again; with "
    "idempotent=True it would"
)


class Dispatch:
    """Calls and lanes. Belongs to the host's thread, but for `snapshot`.

    works: what has not ended, by program and number. past: what has. on_end: is told of each end.
    """

    def __init__(
        self,
        count: int,
        journal: Journal,
        poll: select.epoll,
        on_end: Callable[[Work, wire.Result], None],
    ) -> None:
        self.works: dict[Key, Work] = {}
        self.past = Past()
        self.held_bytes = 0
        self._durations = Durations()
        self._count = count
        self._journal = journal
        self._poll = poll
        self._on_end = on_end
        self._queues: OrderedDict[bytes, deque[Work]] = OrderedDict()
        self._served = b""  # the program whose call was given last
        self._shared_until = -math.inf  # several programs call
        self._held: set[bytes] = set()  # programs that don't read what has come of their calls
        self._lanes: dict[int, Lane] = {}  # by number
        self._by_fd: dict[int, Lane] = {}  # by descriptor of link and process
        self._numbers = itertools.count()
        self._paths: list[str] = []
        self._begun: set[int] = set()  # lanes that were told their sys.path
        self._alarms: list[tuple[float, int, int, str]] = []  # when, lane, serial, what
        self._failures = 0  # of lanes that ended before they were ready, in a row
        self._restart = 0.0
        self._short_since = math.inf  # that no call could be given for want of something
        self._again = math.inf  # when it is tried again
        self._counts = views.Counts()
        self._cores = allocation.cpus()

    # -- lanes

    def start(self) -> None:
        """Start the lanes."""
        while len(self._lanes) < self._count:
            if not self._open():
                return

    def _open(self) -> bool:
        environment = allocation.lane_environment(self._cores, self._count)
        try:
            lane = Lane(next(self._numbers), environment)
        except (LaneError, OSError) as error:
            self._unstarted(str(error))
            return False
        self._lanes[lane.number] = lane
        try:
            for fd in (lane.link.fileno(), lane.pidfd):
                self._by_fd[fd] = lane
                self._poll.register(fd, select.EPOLLIN)
            if self._paths:
                lane.begin(self._paths, str(self._journal.directory))
        except OSError as error:
            self._remove(lane)
            self._unstarted(str(error))
            return False
        return True

    def _remove(self, lane: Lane) -> str:
        """End a lane, if it has not: how it ended."""
        for fd in (lane.link.fileno(), lane.pidfd):
            with suppress(OSError):  # it was not watched yet
                self._poll.unregister(fd)
            self._by_fd.pop(fd, None)
        del self._lanes[lane.number]
        return lane.close()

    def use(self, paths: list[str]) -> None:
        """What lanes have as their sys.path: of all programs of a host the same."""
        if not self._paths:
            self._paths = paths
            for lane in self._lanes.values():
                try:
                    lane.begin(paths, str(self._journal.directory))
                except OSError:
                    lane.kill()  # another takes its place

    def hear(self, fd: int) -> None:
        """Something has come from a lane, or its process has ended."""
        lane = self._by_fd.get(fd)
        if lane is None:
            return
        for said in lane.results():
            if isinstance(said, wire.Ready):
                lane.is_ready, self._failures = True, 0
            else:
                self._take(lane, said)
        if fd == lane.pidfd:
            self._bury(lane)

    def _take(self, lane: Lane, result: wire.Result) -> None:
        work = lane.take(result.id)
        if work is None:
            return
        if result.outcome in (wire.DONE, wire.RAISED):
            self._durations.learn(work.call, result.seconds)
        head = lane.head
        if head is not None:
            head.given = time.monotonic()
        if lane.stopping == work.serial:
            lane.stopping = 0
        if result.outcome == wire.STALE:
            self._leave(lane, work)
        elif not work.is_over:
            self._finish(work, result)

    def _leave(self, lane: Lane, work: Work) -> None:
        """A lane has imported what has changed since: it ends, and others run its calls."""
        lane.is_leaving = True
        for back in [*reversed(lane.take_back()), work]:
            if not back.is_over:
                self._put_back(back)

    def _bury(self, lane: Lane) -> None:
        """A lane is dead."""
        self._counts.died += 1
        back = lane.take_back()
        how = self._remove(lane)
        lost = list(lane.given.values())
        for work in reversed(back):
            if not work.is_over:
                self._put_back(work)
        for work in lost:
            work.lane = None
            if not work.is_over:
                self._lost(work, f"its lane {how}")
        if not lane.is_ready:
            self._unstarted(f"it {how}; the task's log says why")

    def _unstarted(self, why: str) -> None:
        """A lane could not be started: after some in a row there is none to wait for."""
        self._failures += 1
        self._restart = time.monotonic() + limits.LANE_RESTART_S
        if self._failures >= limits.LANE_STARTS_FAILED_MAX and not self._lanes:
            self.refuse_all(LaneError(f"cannot run the call: no lane can be started ({why})"))

    def _lost(self, work: Work, why: str) -> None:
        """A call had begun, and nobody knows how far it came."""
        name = work.function.name
        work.attempts += 1
        if not work.is_idempotent:
            self.refuse(work, LaneError(UNCERTAIN.format(name=name, why=why)))
        elif work.attempts > work.call.retries:
            tries = f"{work.attempts} times"
            self.refuse(work, LaneError(f"cannot finish {name}: {why}; it was begun {tries}"))
        else:
            self._counts.retried += 1
            self._put_back(work)

    # -- calls

    def add(self, work: Work) -> None:
        """A call that needs no keeping."""
        self.remember([work])
        self.enqueue(work)

    def remember(self, works: Iterable[Work]) -> None:
        """Calls that are kept, as soon as they are synced."""
        for work in works:
            self.works[work.caller, work.call.id] = work
            if work.segment:
                self.past.accept(work.caller, work.call.id)
            self.held_bytes += len(work.call.arguments)

    def enqueue(self, work: Work) -> None:
        """A call may run."""
        if not work.is_over:
            self._queue(work.caller).append(work)

    def _queue(self, caller: bytes) -> deque[Work]:
        queue = self._queues.get(caller)
        if queue is None:
            queue = self._queues[caller] = deque()
            if next(iter(self._queues)) == self._served:  # it has just had its turn
                self._queues.move_to_end(caller, last=False)
            if self._served not in (b"", caller):
                self._meet()
        return queue

    def _meet(self) -> None:
        """Several programs call."""
        now = time.monotonic()
        met, self._shared_until = now < self._shared_until, now + limits.CALLS_SHARED_S
        if not met:
            for lane in self._lanes.values():
                if lane.load_s > limits.CALLS_AHEAD_S:
                    self._relieve(lane)

    def _relieve(self, lane: Lane) -> None:
        for work in reversed(lane.take_back()):
            self._put_back(work)

    def _put_back(self, work: Work) -> None:
        self._queue(work.caller).appendleft(work)

    def hold(self, caller: bytes) -> None:
        """Begin none of a program's calls: it doesn't read what has come of the others."""
        self._held.add(caller)

    def release(self, caller: bytes) -> None:
        """It does again, or is gone."""
        self._held.discard(caller)

    def step(self) -> None:
        """Give lanes what waits, and do what is due."""
        now = time.monotonic()
        if now >= self._again:
            self._again = math.inf
        while self._alarms and self._alarms[0][0] <= now:
            _, number, serial, what = heapq.heappop(self._alarms)
            self._alarm(number, serial, what)
        if (
            len(self._lanes) < self._count
            and now >= self._restart
            and (self.works or not self._failures)
        ):
            self.start()
        for late in [x for x in self._lanes.values() if len(x.given) > 1 and now >= x.late]:
            self._relieve(late)
        self._share()
        while (work := self._next()) is not None:
            work.expected_s = self._durations.of(work.call)
            lane = self._lane_for(work)
            if lane is None or not self._give(lane, work):
                if work.is_over:
                    continue
                self._put_back(work)
                self._queues.move_to_end(work.caller, last=False)
                return
            if work.caller != self._served:
                self._shared_until = now + limits.CALLS_SHARED_S if self._served else -math.inf
                self._served = work.caller
            if work.call.timeout_s:
                self._watch(work.given + work.call.timeout_s, lane, work, "timeout")

    def _give(self, lane: Lane, work: Work) -> bool:
        """Give a lane a call; False when it can't be given now. Where descriptors or memory are
        short for longer than SHORT_S the call ends with an error."""
        try:
            given = lane.give(work)
        except OSError as error:
            now = time.monotonic()
            self._short_since = min(self._short_since, now)
            self._again = now + SHORT_LOOK_S
            if now > self._short_since + SHORT_S:
                self._short_since = math.inf
                why = (
                    f"cannot give {work.function.name} to a lane: {error.strerror}; it has not run"
                )
                self.refuse(work, LaneError(why))
            return False
        self._short_since = self._again = math.inf
        return given

    def _next(self) -> Work | None:
        """The next call that waits: of the program whose turn it is."""
        for _ in range(len(self._queues)):
            caller, queue = next(iter(self._queues.items()))
            if caller in self._held:
                self._queues.move_to_end(caller)
                continue
            while queue:
                work = queue.popleft()
                if not work.is_over:
                    self._queues.move_to_end(caller)
                    return work
            del self._queues[caller]
        return None

    def _lane_for(self, work: Work) -> Lane | None:
        """The lane that has least to do, if it may have more."""
        now = time.monotonic()
        best: Lane | None = None
        for lane in self._lanes.values():
            if (
                lane.takes_calls
                and (best is None or lane.load_s < best.load_s)
                and (not lane.given or now < lane.late)
            ):
                best = lane
        shared = now < self._shared_until
        ahead_s = limits.CALLS_AHEAD_S if shared else limits.CALLS_AHEAD_ALONE_S
        if best is None or best.load_s >= ahead_s:
            return None
        head = best.head
        if head is not None and (
            len(best.given) >= limits.CALLS_PER_LANE_MAX
            or work.call.timeout_s
            or head.call.timeout_s
            or best.stopping
        ):
            return None
        return best

    def _share(self) -> None:
        """A lane has nothing to do, and nothing waits: what another hasn't taken is taken back."""
        if self._queues.keys() - self._held or not any(
            x.takes_calls and not x.given for x in self._lanes.values()
        ):
            return
        most = max(self._lanes.values(), key=lambda lane: len(lane.given))
        if len(most.given) > 1:
            self._relieve(most)

    # -- ends

    def _finish(self, work: Work, result: wire.Result) -> None:
        """A call has ended, however: it is forgotten here, and told."""
        work.is_over = True
        self.works.pop((work.caller, work.call.id), None)
        self.held_bytes -= len(work.call.arguments)
        if work.segment:
            self._journal.end(work)
        self._counts.end(result.outcome)
        result.id = work.call.id
        self._on_end(work, result)

    def refuse(self, work: Work, error: ZenosError) -> None:
        """A call ends with an error of ours, unless it has ended."""
        if not work.is_over:
            self._finish(work, wire.refused(error))

    def refuse_all(self, error: ZenosError) -> None:
        """All that have not ended do so."""
        for work in list(self.works.values()):
            self.refuse(work, error)

    def cancel(self, caller: bytes, id_: int) -> bool:
        """Nobody wants a call any more; whether it had not ended.

        One that runs is told; its lane is killed later.
        """
        work = self.works.get((caller, id_))
        if work is None:
            self.past.drop(caller, id_)
            return False
        lane = work.lane
        if lane is not None and lane.head is not work:
            for other in reversed(lane.take_back()):
                self._put_back(other)
            lane = work.lane
        self._finish(work, wire.Result(0, wire.CANCELLED))
        if lane is not None:
            self._stop(lane, work)
        return True

    def abandon(self, caller: bytes) -> None:
        """A program is gone: what was not accepted durably is nobody's."""
        for work in [w for w in self.works.values() if w.caller == caller and not w.segment]:
            self.cancel(caller, work.call.id)

    def _stop(self, lane: Lane, work: Work) -> None:
        lane.stop(work)
        self._watch(time.monotonic() + limits.THREAD_GRACE_S, lane, work, "kill")

    def _watch(self, when: float, lane: Lane, work: Work, what: str) -> None:
        if len(self._alarms) >= ALARMS_KEPT + 4 * len(self._lanes):
            # Of calls that have ended long before their time limit.
            self._alarms = [one for one in self._alarms if self._is_given(one[1], one[2])]
            heapq.heapify(self._alarms)
        heapq.heappush(self._alarms, (when, lane.number, work.serial, what))

    def _is_given(self, number: int, serial: int) -> bool:
        lane = self._lanes.get(number)
        return lane is not None and serial in lane.given

    def _alarm(self, number: int, serial: int, what: str) -> None:
        lane = self._lanes.get(number)
        work = lane.given.get(serial) if lane is not None else None
        if lane is None or work is None:
            return
        if what == "kill":
            lane.kill()
            return
        if not work.is_over:
            self.refuse(
                work,
                DeadlineError(
                    f"cannot finish {work.function.name}: it ran longer than its time limit of "
                    f"{work.call.timeout_s:g} s"
                ),
            )
        self._stop(lane, work)

    @property
    def wake(self) -> float:
        """When to step without an event, on the monotonic clock."""
        wake = min(self._again, self._alarms[0][0] if self._alarms else math.inf)
        if len(self._lanes) < self._count and self.works:
            wake = min(wake, self._restart)
        return min([wake, *(x.late for x in self._lanes.values() if len(x.given) > 1)])

    # -- of earlier hosts

    def take_over(self, left: Left) -> int:
        """What may run goes into the queue; of the rest nobody knows how it ended: how many."""
        self._paths = left.paths
        self.past.read(left.ended)
        uncertain = 0
        for work in left.unfinished:
            self.remember([work])
            rebooted = work.serial in left.other_boot
            if rebooted and not work.is_idempotent:
                why = "the machine was started anew since it was accepted"
            elif work.attempts and not work.is_idempotent:
                why = f"its host died while it ran{left.died}"
            elif work.attempts > work.call.retries:
                why = f"its host died under it {work.attempts} times"
            else:
                self.enqueue(work)
                continue
            uncertain += 1
            self.refuse(work, WorkerError(UNCERTAIN.format(name=work.function.name, why=why)))
        return uncertain

    def knows(self, caller: bytes, id_: int) -> bool:
        """Whether a durable call was accepted before: by this host, or an earlier one."""
        return (caller, id_) in self.works or self.past.knows(caller, id_)

    def is_kept(self, caller: bytes, id_: int) -> bool:
        """Whether a call that has not ended is on the disk."""
        work = self.works.get((caller, id_))
        return work is not None and work.is_kept

    def resume(self, caller: bytes, id_: int) -> wire.Result | None:
        """How a call has ended that was accepted before; None: it has not."""
        return None if (caller, id_) in self.works else self.past.take(caller, id_)

    def close(self) -> None:
        """End all lanes."""
        for lane in self._lanes.values():
            lane.kill()  # all at once: the end of a process that has much memory takes a while
        end = time.monotonic() + lanes.END_S
        for lane in self._lanes.values():
            lane.close(end - time.monotonic())
        self._lanes.clear()

    # -- for people

    def snapshot(self, threads_max: int) -> PoolView:
        """As a pool is shown. Asked for from another thread: what it copies may be a bit old."""
        for _ in range(LOOKS):
            # What it looks at may change, or a lane be closed, under it: then it looks again.
            with suppress(RuntimeError, ValueError):
                return views.pool(self._lanes, self.works, self._counts, self._count, threads_max)
        return views.pool(self._lanes, self.works, self._counts, self._count, threads_max)
