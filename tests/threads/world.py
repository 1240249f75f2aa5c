"""The world around a pool's machine: lanes that obey, and a record of what they were told.

It checks at each step what must hold whatever happens, and in which order.
"""

from __future__ import annotations

import pickle
from collections import Counter

from zenos.threads import machine
from zenos.threads.machine import Event, Machine, Submit


class World:
    """A machine with lanes. `tell` is the only way to it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.now = 0.0
        self.wake = 0.0
        self.requests: dict[int, Submit] = {}
        self.ended: dict[int, str] = {}
        self.runs: Counter[int] = Counter()  # attempts that a lane began
        self.tries: Counter[int] = Counter()  # of these, failures that allowed another
        self.opening: set[int] = set()
        self.open: set[int] = set()
        self.on_lane: dict[int, int] = {}  # what a lane still works at, given up or not
        self.given_up: set[int] = set()  # lanes that were told to stop
        self.killed: set[int] = set()
        self.tell()

    def copy(self) -> World:
        copied: World = pickle.loads(pickle.dumps(self))  # noqa: S301 - our own, and fast
        return copied

    def tell(self, *events: Event) -> None:
        """Let these things happen, do what the machine says, and check."""
        for event in events:
            self._happens(event)
        actions, self.wake = self.machine.step(events, self.now)
        for action in actions:
            self._obey(action)
        self.check()

    def _happens(self, event: Event) -> None:
        match event:
            case Submit():
                self.requests[event.thread] = event
            case machine.Ready():
                self.opening.remove(event.lane)
                self.open.add(event.lane)
            case machine.Done() | machine.Failed():
                assert event.lane not in self.killed, "a killed lane can only die"
                thread = self.on_lane.pop(event.lane)
                if event.lane in self.given_up or isinstance(event, machine.Failed):
                    self.tries[thread] += 1
                self.given_up.discard(event.lane)
            case machine.Died():
                self.opening.discard(event.lane)
                self.open.discard(event.lane)
                self.killed.discard(event.lane)
                self.given_up.discard(event.lane)
                if event.lane in self.on_lane:
                    thread = self.on_lane.pop(event.lane)
                    self.tries[thread] += not event.unstarted
                    self.runs[thread] -= event.unstarted

    def _obey(self, action: machine.Action) -> None:
        match action:
            case machine.Open():
                self.opening.add(action.lane)
            case machine.Shut():
                assert action.lane not in self.on_lane, "a lane is shut while something runs on it"
                self.open.remove(action.lane)
            case machine.Run():
                assert action.lane in self.open, "a thread runs on a lane that isn't open"
                assert action.lane not in self.on_lane, "two threads run on one lane"
                assert action.thread not in self.ended, "a thread runs that has ended"
                assert action.thread not in self.on_lane.values(), "two attempts run at once"
                self.on_lane[action.lane] = action.thread
                self.runs[action.thread] += 1
            case machine.Stop():
                assert action.lane in self.on_lane
                self.given_up.add(action.lane)
            case machine.Kill():
                assert action.lane in self.given_up, "killed without having been told to stop"
                self.killed.add(action.lane)
            case machine.End():
                assert action.thread not in self.ended, "a thread has ended twice"
                self.ended[action.thread] = action.outcome

    def check(self) -> None:
        """What holds after each step."""
        state = self.machine
        assert set(self.requests) == set(state.threads) | set(self.ended), "a thread is lost"
        assert not set(state.threads) & set(self.ended)
        for number, request in self.requests.items():
            assert self.runs[number] <= 1 + min(self.tries[number], request.retries), (
                f"thread {number} was run again without a retry"
            )
            if number in state.threads:
                places = (number in state.waiting, state.threads[number].lane is not None)
                delayed = state.threads[number].state == "delayed"
                assert sum((*places, delayed)) == 1, "a thread is in two places, or in none"
        assert set(state.lanes) == self.opening | self.open
        assert len(state.lanes) <= max(state.wanted, len(self.on_lane) + len(self.opening))
        idle = self.open - set(self.on_lane)
        assert not (idle and len(state.waiting)), "a lane is idle while a thread waits"
        if state.closing and not state.threads:
            assert not idle, "a lane is left idle when all is done"

    # -- what may happen next

    def lane_events(self) -> list[Event]:
        """What lanes may say by themselves, without dying."""
        found: list[Event] = [machine.Ready(lane) for lane in sorted(self.opening)]
        for lane in sorted(self.on_lane):
            if lane in self.killed:
                found.append(machine.Died(lane))
            else:
                found += [machine.Done(lane), machine.Failed(lane, True)]
        return found

    def deaths(self) -> list[Event]:
        """Lanes that may die: with what they run, before they began it, while they start."""
        found: list[Event] = [machine.Died(lane) for lane in sorted(self.opening)]
        for lane in sorted(self.on_lane):
            found += [machine.Died(lane), machine.Died(lane, unstarted=True)]
        return found

    def pass_time(self) -> bool:
        """Go to when the machine wants to be called; whether it does."""
        if self.wake == float("inf"):
            return False
        self.now = max(self.now, self.wake)
        self.tell()
        return True

    def finish(self) -> None:
        """Lanes that work and time that passes bring everything to its end: nothing hangs.

        Lanes that were told to stop do so in time. Otherwise each thread's last try succeeds.
        """
        steps_max = 20 + 10 * sum(2 + r.retries for r in self.requests.values())
        for _ in range(steps_max):
            if not self.machine.threads:
                break
            events = [e for e in self.lane_events() if not isinstance(e, machine.Failed)]
            if events:
                self.tell(events[0])
            else:
                assert self.pass_time(), f"stuck: {self.machine.threads}"
        assert not self.machine.threads, f"not at an end: {self.machine.threads}"
        self.tell(machine.Close())
        for _ in range(steps_max):
            events = [e for e in self.lane_events() if not isinstance(e, machine.Failed)]
            if self.machine.finished:
                return
            assert events or self.pass_time(), f"stuck at the end: {self.machine.lanes}"
            if events:
                self.tell(events[0])
        raise AssertionError(f"lanes are left: {self.machine.lanes}")

    def fingerprint(self) -> object:
        """What the future depends on. Times are relative to now; lanes are told apart by state."""
        state, now = self.machine, self.now

        def ahead(when: float) -> float:
            return max(when - now, -1.0)

        lanes = [
            (
                *(lane.state, lane.thread or 0, ahead(lane.deadline)),
                *(self.on_lane.get(n, 0), n in self.given_up, n in self.killed),
            )
            for n, lane in state.lanes.items()
        ]
        return (
            tuple((n, t.state, t.attempts, t.unstarted) for n, t in state.threads.items()),
            tuple(sorted(lanes)),
            tuple(sorted(self.ended)),
            (state.wanted, state.closing, state.broken, state._failed_starts),
            ahead(self.wake),
            ahead(state._open_at),
        )
