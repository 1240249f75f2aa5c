"""Which call runs where, with lanes that obey. Without any process."""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from zenos.calls import callers, dispatch, host, wire
from zenos.calls.dispatch import Dispatch
from zenos.calls.journal import Journal
from zenos.calls.lanes import Work
from zenos.core import durable, limits
from zenos.core.errors import StorageError

ME = b"me"
FUNCTION = wire.Function(b"f", "work", b"pickle")


class Obeys:
    """A lane: what it is given it has begun."""

    def __init__(self, number: int, _: dict[str, str]) -> None:
        self.number = number
        self.given: OrderedDict[int, Work] = OrderedDict()
        self.is_ready = self.takes_calls = True
        self.is_leaving = False
        self.stopping = 0
        self.pid = 0
        self.pidfd = os.eventfd(0)
        self.link = open(os.eventfd(0), "rb", 0)  # noqa: PTH123, SIM115 - closed below
        self.said: list[wire.Result] = []
        self.looks = 0
        self.load_s = 0.0
        self.late = math.inf
        self.gives_back = False
        self.short = False

    @property
    def head(self) -> Work | None:
        return next(iter(self.given.values()), None)

    def give(self, work: Work) -> bool:
        if self.short:
            raise OSError(errno.EMFILE, "Too many open files")
        work.lane = self  # type: ignore[assignment]
        self.given[work.serial] = work
        self.load_s += work.expected_s
        return True

    def take(self, serial: int) -> Work | None:
        work = self.given.pop(serial, None)
        if work is not None:
            self.load_s -= work.expected_s
        return work

    def take_back(self) -> list[Work]:
        """All but the first, if it may."""
        back = list(self.given)[1:] if self.gives_back else []
        return [work for serial in back if (work := self.take(serial)) is not None]

    def results(self) -> Iterable[wire.Result]:
        said, self.said = self.said, []
        return said

    def stop(self, work: Work) -> None:
        self.stopping = work.serial

    def cpu_s(self) -> float:
        return 0.0

    def used_s(self, serial: int) -> float:
        return 0.0

    def progress(self) -> tuple[int, float]:
        self.looks += 1
        if self.looks == 1:  # it has just been closed
            raise ValueError("mmap closed or invalid")
        return 0, 0.0

    def kill(self) -> None:
        pass

    def begin(self, paths: list[str], journal: str) -> None:
        pass

    def close(self, wait_s: float = 0.0) -> str:
        os.close(self.pidfd)
        self.link.close()
        return "ended"


class Running:
    """A dispatch, its only lane, and what has ended there."""

    def __init__(self, journal: Journal, poll: select.epoll) -> None:
        self.ended: list[tuple[int, int]] = []
        self.dispatch = Dispatch(
            1, journal, poll, lambda work, result: self.ended.append((work.serial, result.outcome))
        )
        self.dispatch.start()
        (lane,) = self.dispatch._lanes.values()
        assert isinstance(lane, Obeys)
        self.lane: Obeys = lane
        self.serial = 0

    def call(self, timeout_s: float = 0.0, caller: bytes = ME) -> Work:
        self.serial += 1
        call = wire.Call(self.serial, FUNCTION.key, b"arguments", timeout_s=timeout_s)
        return Work(self.serial, caller, call, FUNCTION, 0)

    def run(self, work: Work, seconds: float = 0.0) -> None:
        """It is given to the lane, which finishes it after so many seconds."""
        self.dispatch.add(work)
        self.dispatch.step()
        self.finish(work.serial, seconds)

    def finish(self, serial: int, seconds: float = 0.0) -> None:
        self.lane.said.append(wire.Result(serial, wire.DONE, seconds=seconds))
        self.dispatch.hear(self.lane.link.fileno())

    def flood(self, count: int, caller: bytes = ME) -> list[int]:
        """Many calls of a program; the serials of those that the lane has in advance."""
        for _ in range(count):
            self.dispatch.add(self.call(caller=caller))
        self.dispatch.step()
        return list(self.lane.given)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(dispatch, "Lane", Obeys)
    journal = Journal(tmp_path / "key")
    with select.epoll() as poll:
        made = Running(journal, poll)
        try:
            yield made
        finally:
            made.dispatch.close()
            journal.close()


def test_time_limits_of_calls_that_have_ended_are_forgotten(running: Running) -> None:
    for _ in range(5000):
        running.run(running.call(timeout_s=3600))
    assert len(running.ended) == 5000
    assert len(running.dispatch._alarms) < 1200
    last = running.call(timeout_s=1e-9)
    running.dispatch.add(last)
    running.dispatch.step()
    running.dispatch.step()
    assert running.ended[-1] == (last.serial, wire.REFUSED)


def test_a_lane_that_ends_as_it_is_looked_at_hides_nothing(running: Running) -> None:
    running.dispatch.add(running.call())
    running.dispatch.step()
    assert running.dispatch.snapshot(10).running == 1
    assert running.lane.looks == 2


def test_what_was_cancelled_before_it_could_not_be_kept_has_ended_once(running: Running) -> None:
    work = running.call()
    running.dispatch.remember([work])
    running.dispatch.cancel(ME, work.call.id)
    running.dispatch.refuse(work, StorageError("cannot keep the call"))
    assert running.ended == [(work.serial, wire.CANCELLED)]
    assert running.dispatch.held_bytes == 0


def test_a_call_that_cannot_be_given_waits_a_while_and_ends_with_an_error(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.lane.short = True
    running.dispatch.add(running.call())
    running.dispatch.step()
    assert running.ended == []
    assert running.dispatch.wake < math.inf
    monkeypatch.setattr(dispatch, "SHORT_S", -1.0)
    running.dispatch.add(second := running.call())
    running.dispatch.step()
    assert running.ended == [(1, wire.REFUSED), (2, wire.REFUSED)]
    assert second.is_over
    running.lane.short = False
    running.run(running.call())
    assert running.ended[-1] == (3, wire.DONE)
    assert running.dispatch.wake == math.inf


@pytest.mark.parametrize(
    ("seconds", "alone", "shared"),
    [(0.0, 64, 64), (0.001, 64, 4), (0.003, 34, 2), (0.01, 10, 1), (60.0, 1, 1), (None, 50, 2)],
)
def test_a_lane_has_so_much_in_advance_as_runs_a_short_time(
    running: Running, seconds: float | None, alone: int, shared: int
) -> None:
    """Much shorter, where another program calls, too."""
    if seconds is not None:
        running.run(running.call(), seconds)
    given = running.flood(200)
    assert len(given) == alone
    running.lane.gives_back = True
    running.dispatch.add(running.call(caller=b"other"))
    running.dispatch.step()
    assert len(running.lane.given) == shared
    assert next(iter(running.lane.given)) == given[0]


def test_a_program_that_comes_has_the_next_turn_and_then_they_take_turns(
    running: Running,
) -> None:
    running.run(running.call(), 0.003)
    running.flood(100)
    running.lane.gives_back = True
    running.flood(100, caller=b"other")
    callers = []
    for _ in range(10):
        serial, work = next(iter(running.lane.given.items()))
        callers.append(work.caller)
        running.finish(serial, 0.003)
        running.dispatch.step()
        assert len(running.lane.given) == 2
    assert callers == [ME, b"other"] * 5


def test_a_call_that_takes_longer_than_others_has_none_behind_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.run(running.call(), 0.0)
    given = running.flood(100)
    assert len(given) == 64
    running.lane.gives_back = True
    running.lane.late = -math.inf  # it runs for too long
    assert running.dispatch.wake == -math.inf
    running.dispatch.step()
    assert list(running.lane.given) == given[:1]
    assert running.dispatch.wake == math.inf
    running.lane.late = math.inf
    running.finish(given[0], 10.0)
    running.dispatch.step()
    assert list(running.lane.given) == given[1:2]  # in order; the next may take as long


class Shut:
    """A door through which nobody comes."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.arrived: deque[socket.socket] = deque()

    def close(self) -> None:
        pass


def test_nothing_more_is_run_for_who_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its results would fill the host's memory. Others go on."""
    monkeypatch.setattr(dispatch, "Lane", Obeys)
    monkeypatch.setattr(host, "Door", Shut)
    monkeypatch.setattr(callers, "UNREAD_BYTES_MAX", 1_000_000)
    monkeypatch.setattr(limits, "CALL_SOCKET_BYTES", 100_000)
    made = host.Host(1, 60, Journal(tmp_path / "key"), tmp_path / "wanted")
    made._dispatch.start()
    (lane,) = made._dispatch._lanes.values()
    assert isinstance(lane, Obeys)
    programs = {}
    for name in (b"reads", b"sleeps"):
        ours, program = socket.socketpair()
        made._door.arrived.append(ours)
        made._woken()
        program.sendall(wire.frame(wire.Hello(wire.BUILD, name, [])))
        calls = [wire.Call(id_, FUNCTION.key, b"", 0) for id_ in range(1, 101)]
        program.sendall(wire.frame(wire.Calls([FUNCTION], calls)))
        program.setblocking(False)
        programs[name] = program
    while any(caller.name == b"" for caller in made._callers.values()) or lane.given:
        if work := lane.head:
            lane.said.append(wire.Result(work.serial, wire.DONE, bytes(100_000)))
            made._dispatch.hear(lane.link.fileno())
        made._wake()
        made._turn()
        with suppress(BlockingIOError):
            while programs[b"reads"].recv(1_000_000):
                pass
    left = Counter(work.caller for work in made._dispatch.works.values())
    assert left.keys() == {b"sleeps"}
    assert 50 < left[b"sleeps"] < 95
    while lane.given or made._dispatch.works:
        if work := lane.head:
            lane.said.append(wire.Result(work.serial, wire.DONE))
            made._dispatch.hear(lane.link.fileno())
        with suppress(BlockingIOError):
            while programs[b"sleeps"].recv(1_000_000):
                pass
        made._wake()
        made._turn()
    made._leave()
    for program in programs.values():
        program.close()


def test_who_comes_again_is_not_told_that_a_call_is_kept_before_it_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "Lane", Obeys)
    monkeypatch.setattr(host, "Door", Shut)
    made = host.Host(1, 60, Journal(tmp_path / "key"), tmp_path / "wanted")
    call = wire.Call(1, FUNCTION.key, b"", wire.DURABLE)
    programs = []
    for _ in range(2):  # the first connection breaks
        ours, program = socket.socketpair()
        programs.append(program)
        made._door.arrived.append(ours)
        made._woken()
        caller = made._callers[ours.fileno()]
        program.sendall(wire.frame(wire.Hello(wire.BUILD, ME, [])))
        program.sendall(wire.frame(wire.Asking()))
        program.sendall(wire.frame(wire.Calls([FUNCTION], [call])))
        made._hear(caller)
    assert not caller._accepted
    made._sync()
    assert caller._accepted == [1]
    made._dispatch.refuse_all(StorageError("it ends"))
    made._leave()
    for program in programs:
        program.close()


def test_a_call_that_ends_before_its_program_asks_again_keeps_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is back, and has not asked yet as the call ends. Then it breaks off once more."""
    monkeypatch.setattr(dispatch, "Lane", Obeys)
    monkeypatch.setattr(host, "Door", Shut)
    made = host.Host(1, 60, Journal(tmp_path / "key"), tmp_path / "wanted")
    made._dispatch.start()
    (lane,) = made._dispatch._lanes.values()
    assert isinstance(lane, Obeys)
    asks = wire.Calls([FUNCTION], [wire.Call(1, FUNCTION.key, b"", wire.DURABLE)])
    programs = []

    def come() -> callers.Caller:
        ours, program = socket.socketpair()
        programs.append(program)
        made._door.arrived.append(ours)
        made._woken()
        program.sendall(wire.frame(wire.Hello(wire.BUILD, ME, [])))
        caller = made._callers[ours.fileno()]
        made._hear(caller)
        return caller

    def ask(caller: callers.Caller) -> None:
        programs[-1].sendall(wire.frame(asks))
        made._hear(caller)

    ask(come())
    made._sync()
    made._dispatch.step()
    second = come()
    work = lane.head
    assert work is not None
    lane.said.append(wire.Result(work.serial, wire.DONE, b"its result"))
    made._dispatch.hear(lane.link.fileno())
    ask(second)
    third = come()
    ask(third)
    for caller in (second, third):
        assert [result.payload for result in caller.unheard] == [b"its result"]
    made._leave()
    for program in programs:
        program.close()


def test_nothing_is_kept_behind_what_the_disk_may_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a sync that failed nobody knows what of a file is there, and the next one says nothing
    of that. Nor may what was appended meanwhile be found."""
    monkeypatch.setattr(dispatch, "Lane", Obeys)
    monkeypatch.setattr(host, "Door", Shut)
    made = host.Host(1, 60, Journal(tmp_path / "key"), tmp_path / "wanted")
    ours, program = socket.socketpair()
    made._door.arrived.append(ours)
    made._woken()
    caller = made._callers[ours.fileno()]

    def call(id_: int) -> None:
        calls = [wire.Call(id_, FUNCTION.key, b"", wire.DURABLE)]
        program.sendall(wire.frame(wire.Calls([FUNCTION], calls)))
        made._hear(caller)

    failed: list[int] = []
    sync = durable.sync

    def fail_once(fd: int) -> None:
        if not failed:
            failed.append(fd)
            call(2)
            raise OSError(errno.EIO, "the disk has failed")
        sync(fd)

    monkeypatch.setattr(durable, "sync", fail_once)
    program.sendall(wire.frame(wire.Hello(wire.BUILD, ME, [])))
    made._hear(caller)
    call(1)
    made._sync()
    assert [(result.id, result.outcome) for result in caller._results] == [
        (1, wire.REFUSED),
        (2, wire.REFUSED),
    ]
    call(3)
    made._sync()
    assert caller._accepted == [3]
    assert made._dispatch.works[ME, 3].segment == 2
    made._dispatch.refuse_all(StorageError("it ends"))
    made._leave()
    program.close()


def test_the_last_words_wait_no_longer_for_many_programs_that_do_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "Lane", Obeys)
    monkeypatch.setattr(host, "Door", Shut)
    monkeypatch.setattr(host, "GONE_S", 0.5)
    made = host.Host(1, 60, Journal(tmp_path / "key"), tmp_path / "wanted")
    programs = []
    for number in range(41):
        ours, program = socket.socketpair()
        made._door.arrived.append(ours)
        made._woken()
        made._callers[ours.fileno()].tell(wire.Result(number, wire.DONE, bytes(limits.MIB)))
        programs.append(program)
    with ThreadPoolExecutor(1) as threads:
        reads = threads.submit(all_of, programs[20])
        begun = time.monotonic()
        made._leave()
        took_s = time.monotonic() - begun
        messages = wire.Frames(wire.from_host).take(reads.result(60))
    assert [type(message) for message in messages] == [wire.Results, wire.Bye]
    assert took_s < 10  # not half a second for each
    for program in programs:
        program.close()


def all_of(link: socket.socket) -> bytes:
    found = b""
    while part := link.recv(1_000_000):
        found += part
    return found
