"""What happens in a pool: the effects around machine.py.

One lock guards the machine; it is held while the machine decides, never while anything waits or
while a user's function runs. Each lane is driven by an OS thread of its own, which takes its next
job in the same breath in which it reports the last one.
"""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, Final, Literal

from zenos.bus import forks
from zenos.core import limits
from zenos.core.errors import BusyError, ConflictError, DeadlineError, InvalidError, LaneError
from zenos.threads import allocation, codec, lanes, machine, reporting
from zenos.threads.current import Ran, here
from zenos.threads.job import Function, Job
from zenos.threads.lanes import UnstartedError
from zenos.threads.machine import Event, Machine, Outcome
from zenos.threads.policy import Policy
from zenos.threads.views import LaneView, PoolView, ThreadView

Kind = Literal["thread", "process"]
FUNCTIONS_KEPT: Final = 256
FUNCTION_BYTES_MAX: Final = 64 * limits.KIB  # larger ones aren't compared with earlier ones


class Runner:
    """Runs jobs on lanes. All methods may be called from any OS thread."""

    def __init__(
        self, count: int, kind: Kind, policy: Policy, name: str, grace_s: float, ageing: float
    ) -> None:
        self.kind = kind
        self._name, self._policy = name, policy
        self._cores = allocation.cpus()
        self._machine = Machine(
            count, policy=policy, killable=kind == "process", grace_s=grace_s, ageing=ageing
        )
        self._lock = threading.Lock()
        self._timer_wanted = threading.Condition(self._lock)
        self._finished = threading.Event()
        self._jobs: dict[int, Job] = {}
        self._drivers: dict[int, Driver] = {}
        self._os_threads: list[threading.Thread] = []
        self._functions: OrderedDict[bytes, Function] = OrderedDict()
        self._numbers = self._function_keys = 0
        self._wake = math.inf
        self._timer: threading.Thread | None = None
        self._start_error = ""
        self.is_forked = False
        forks.forget_in_child(self)
        self.step()
        reporting.watch(self)

    @property
    def lanes(self) -> int:
        """How many lanes there are to be."""
        return self._machine.wanted

    def forget(self) -> None:
        """In a fork: the lanes are the parent's, and its OS threads aren't here. Nobody can tell
        what they were about to do: a lock of theirs is taken for good."""
        self.is_forked = True
        self._lock = threading.Lock()
        self._timer_wanted = threading.Condition(self._lock)
        self._finished = threading.Event()
        self._finished.set()
        for driver in list(self._drivers.values()):
            driver.lane.forget()

    def check_process(self) -> None:
        """InvalidError in a fork of the process whose pool it is."""
        if self.is_forked:
            raise InvalidError(
                "cannot use a pool that was made before a fork: its lanes are the parent's; make a "
                "pool in this process"
            )

    def number(self) -> int:
        """A number that no other thread or group of this pool has. InvalidError in a fork."""
        self.check_process()
        with self._lock:
            self._numbers += 1
            return self._numbers

    def prepare(self, job: Job) -> None:
        """Pickle a job's items now, while lanes are busy with others, and not while one waits."""
        if self.kind == "process":
            with suppress(Exception):  # the lane says then what is wrong with them
                job.parts = lanes.pickled(job)

    def start(self, job: Job, *, group: int | None = None) -> None:
        """Have a job run; its `on_end` is called once, from any OS thread."""
        options = job.options
        submitted = machine.Submit(
            thread=job.number,
            group=job.number if group is None else group,
            priority=options.priority,
            expected_s=options.expected_s * len(job.items),
            retries=options.retries,
            backoff_s=options.backoff_s,
            timeout_s=math.inf if options.timeout_s is None else options.timeout_s,
        )
        with self._lock:
            if self._machine.closing:
                raise ConflictError("cannot start a thread: the pool is closed")
            if len(self._machine.waiting) >= limits.THREADS_WAITING_MAX:
                raise BusyError(
                    f"cannot start a thread: {limits.THREADS_WAITING_MAX} wait already; wait for "
                    "some of them, or use map, which takes its items as they are needed"
                )
            self._jobs[job.number] = job
            ended = self._decide([submitted])
        self._tell(ended)

    def cancel(self, *numbers: int) -> None:
        """Cancel threads by number; those that have ended are passed over."""
        self.step(*(machine.Cancel(number) for number in numbers))

    def function(self, work: Callable[..., Any], *, single: bool) -> Function:
        """What lanes call. For processes it is pickled, once for all calls that give the same."""
        if self.kind == "thread":
            return Function(work, single)
        try:
            parts = codec.dump(work)
        except Exception as error:
            raise InvalidError(
                f"cannot send {getattr(work, '__name__', work)} to a process: {error}; "
                "use a pool of kind='thread', or a function that can be pickled"
            ) from error
        small = len(parts) == 1 and len(parts[0]) <= FUNCTION_BYTES_MAX
        text = bytes(parts[0]) + bytes([single]) if small else b""
        with self._lock:
            known = self._functions.get(text) if small else None
            if known is None:
                self._function_keys += 1
                known = Function(work, single, self._function_keys, parts)
                if small:
                    self._functions[text] = known
                    if len(self._functions) > FUNCTIONS_KEPT:
                        self._functions.popitem(last=False)
            return known

    def join(self, timeout: float | None) -> bool:
        """Wait until the last lane has ended, after Close, at most so long; whether it has.

        Its OS thread may still be calling somebody back, who takes long.
        """
        if self.is_forked:
            return True
        end = math.inf if timeout is None else time.monotonic() + timeout
        if not self._finished.wait(timeout):
            return False
        for thread in self._os_threads:
            thread.join(None if end == math.inf else max(0.0, end - time.monotonic()))
            if thread.is_alive():
                return False
        return True

    def runs(self, number: int) -> bool:
        """Whether a thread is on a lane of this process."""
        if self.is_forked:
            return False
        with self._lock:
            thread = self._machine.threads.get(number)
            return thread is not None and thread.lane is not None

    def error_of(self, job: Job, outcome: Outcome) -> BaseException | None:
        """What a thread's end means for whoever waits; None when it succeeded."""
        match outcome:
            case "succeeded":
                return None
            case "cancelled":
                return CancelledError(f"cannot have the result of {job.name}: it was cancelled")
            case "timeout":
                return DeadlineError(
                    f"cannot finish {job.name}: it ran longer than its time limit of "
                    f"{job.options.timeout_s:g} s"
                )
            case "broken":
                return LaneError(
                    f"cannot run {job.name}: no lane can be started ({self._start_error})"
                )
            case "failed" | "died":
                return job.error or LaneError()

    @property
    def finished(self) -> bool:
        """Whether it is closed, and its last lane has ended."""
        return self._finished.is_set()

    def snapshot(self, threads_max: int = limits.THREADS_SHOWN_MAX) -> PoolView:
        """Lanes and threads as they are now: those that run, then the first of those that wait."""
        self.check_process()
        now = time.monotonic()
        with self._lock:
            state = self._machine
            on_lanes = (lane.thread for lane in state.lanes.values() if lane.thread is not None)
            running = [state.threads[number] for number in on_lanes]
            waiting = (t for t in state.threads.values() if t.lane is None)
            threads = list(itertools.islice(itertools.chain(running, waiting), threads_max))
            return PoolView(
                name=self._name,
                kind=self.kind,
                policy=self._policy,
                wanted=state.wanted,
                queued=len(state.threads) - len(running),
                running=len(running),
                submitted=state.counts.submitted,
                succeeded=state.counts.succeeded,
                failed=state.counts.failed,
                cancelled=state.counts.cancelled,
                retried=state.counts.retried,
                lanes_died=state.counts.lanes_died,
                lanes=[
                    LaneView(id=n, state=state.lanes[n].state, pid=d.lane.pid, cpu_s=d.lane.cpu_s())
                    for n, d in self._drivers.items()
                    if n in state.lanes
                ],
                threads=[self._view(thread, now) for thread in threads],
            )

    def _view(self, thread: machine.Thread, now: float) -> ThreadView:
        job = self._jobs[thread.request.thread]
        done, fraction, cpu_s = 0, 0.0, 0.0
        if thread.lane is not None:
            lane = self._drivers[thread.lane].lane
            done, fraction = lane.progress()
            cpu_s = max(0.0, lane.cpu_s() - job.cpu_begun_s)
        began = thread.began if thread.lane is not None else now
        return ThreadView(
            id=job.number,
            name=job.name,
            state=thread.state,
            priority=thread.request.priority,
            attempt=thread.attempts,
            items=len(job.items),
            lane=thread.lane,
            progress=min(1.0, (len(job.results) + done + fraction) / max(1, len(job.items))),
            cpu_s=cpu_s,
            waited_s=max(0.0, began - thread.submitted),
            ran_s=max(0.0, now - began),
        )

    # -- steps

    def step(self, *events: Event) -> None:
        """Tell the machine what happened, and do what it decides. Nothing in a fork."""
        if self.is_forked:
            return
        with self._lock:
            ended = self._decide(events)
        self._tell(ended)

    def _tell(self, ended: list[tuple[Job, Outcome]]) -> None:
        """Without the lock: callbacks are anybody's."""
        for job, outcome in ended:
            job.on_end(job, outcome)

    def _decide(
        self, events: Iterable[Event], now: float | None = None
    ) -> list[tuple[Job, Outcome]]:
        """With the lock held: step, and do what can be done at once."""
        actions, wake = self._machine.step(events, time.monotonic() if now is None else now)
        ended: list[tuple[Job, Outcome]] = []
        failed: list[Event] = []
        for action in actions:
            match action:
                case machine.Run():
                    driver, job = self._drivers[action.lane], self._jobs[action.thread]
                    job.begin(driver.lane.cpu_s())
                    driver.lane.begin(job)
                    driver.inbox.put(job)
                case machine.End():
                    ended.append((self._jobs.pop(action.thread), action.outcome))
                case machine.Open():
                    if not self._open(action.lane):
                        failed.append(machine.Died(action.lane))
                case machine.Shut():
                    self._drivers.pop(action.lane).inbox.put(None)
                case machine.Stop():
                    self._drivers[action.lane].lane.stop()
                case machine.Kill():
                    self._drivers[action.lane].kill()
        sooner = wake < (self._wake if self._timer is not None else math.inf)
        is_timed = not sooner or self._start_timer()
        self._wake = wake
        if not is_timed and not self._drivers:  # nobody is left to look again: as if it were time
            return ended + self._decide(failed, wake)
        if self._machine.finished:
            self._finished.set()
            self._timer_wanted.notify()
        return ended + self._decide(failed) if failed else ended

    def _open(self, number: int) -> bool:
        """Start a lane's OS thread; whether the system had one to give."""
        environment = allocation.lane_environment(self._cores, self._machine.wanted)
        lane = lanes.make(self.kind, environment)
        driver = self._drivers[number] = Driver(lane)
        thread = threading.Thread(
            target=self._drive,
            args=(number, driver),
            name=f"{self._name}-lane-{number}",
            daemon=True,
        )
        self._os_threads = [t for t in self._os_threads if t.is_alive() or t.ident is None]
        try:
            thread.start()
        except RuntimeError as error:
            del self._drivers[number]
            self._start_error = str(error)
            return False
        self._os_threads.append(thread)
        return True

    def _drive(self, number: int, driver: Driver) -> None:
        """A lane's OS thread, from its beginning to its end."""
        here.pool = self
        lane = driver.lane
        try:
            lane.open()
        except Exception as error:  # noqa: BLE001 - no descriptors left, no memory left
            with self._lock:
                self._start_error = str(error)
                del self._drivers[number]
                ended = self._decide([machine.Died(number)])
            self._tell(ended)
        else:
            self.step(machine.Ready(number))
            while (job := driver.inbox.get()) is not None:
                if not self._run(number, driver, job):
                    break
                del job
        lane.close()

    def _run(self, number: int, driver: Driver, job: Job) -> bool:
        """Run a job; whether the lane lives on."""
        died = unstarted = False
        try:
            ran = driver.lane.run(job)
        except UnstartedError as error:
            ran, died, unstarted = Ran([], error=error), True, True
        except LaneError as error:
            ran, died = Ran([], error=error), True
        except BaseException as error:  # noqa: BLE001 - a thread must end, whatever was overlooked
            told = LaneError(f"cannot finish {job.name}: its lane failed ({error!r})")
            told.__cause__ = error
            ran, died = Ran([], error=told), True
        if self.is_forked:  # by the function, which has returned in the child, too
            return False
        with self._lock:
            died = died or driver.killed
            if died:
                self._drivers.pop(number)
            if job.number in self._jobs:  # else it was given up: whoever wanted it has its end
                job.take(ran)
            event: Event
            if died:
                event = machine.Died(number, unstarted)
            elif ran.error is not None or ran.stopped:
                retry = not ran.lasting and isinstance(ran.error, job.options.retry_on)
                event = machine.Failed(number, retry)
            else:
                event = machine.Done(number)
            ended = self._decide([event])
        del ran
        self._tell(ended)
        return not died

    def _start_timer(self) -> bool:
        """Have the timer look at the time to wake; it is started when it is first needed.

        False when the system has no OS thread to give: then it is tried again with the next step.
        """
        if self._timer is None:
            timer = threading.Thread(
                target=self._keep_time, name=f"{self._name}-timer", daemon=True
            )
            try:
                timer.start()
            except RuntimeError:
                return False
            self._timer = timer
            self._os_threads.append(timer)
        self._timer_wanted.notify()
        return True

    def _keep_time(self) -> None:
        here.pool = self
        while True:
            with self._lock:
                while not self._machine.finished and time.monotonic() < self._wake:
                    left_s = self._wake - time.monotonic()
                    self._timer_wanted.wait(None if left_s == math.inf else max(left_s, 0.0))
                if self._machine.finished:
                    return
                ended = self._decide([])
            self._tell(ended)


class Driver:
    """A lane with the jobs that its OS thread is to run: one at most, and None to end."""

    def __init__(self, lane: lanes.Lane) -> None:
        self.lane = lane
        self.inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.killed = False

    def kill(self) -> None:
        """End the lane's process; whatever it says now, it is dead."""
        self.killed = True
        self.lane.kill()
