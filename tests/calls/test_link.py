"""What a program says to its hosts. Without any host."""

from __future__ import annotations

import gc
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.processes import until
from zenos.calls import calling, finding, values, wire
from zenos.calls.finding import Place, Wanted
from zenos.calls.future import CallFuture
from zenos.calls.link import Link
from zenos.calls.mapping import MapResults
from zenos.core import limits
from zenos.core.errors import InvalidError, UnavailableError
from zenos.core.home import Home
from zenos.core.specs import CallSpec

T = TypeVar("T")


class Host:
    """A host as the program hears it, and what the program says to it, frame by frame."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        link.settimeout(60)
        self._frames = wire.Frames(wire.from_program)
        self._heard: list[object] = []

    def say(self, message: object) -> None:
        self.link.sendall(wire.frame(message))

    def hear(self) -> object:
        """What is said next."""
        while not self._heard:
            data = self.link.recv(65536)
            assert data, "the program has left"
            self._heard += self._frames.take(data)
        return self._heard.pop(0)


class Hosts:
    """Where a program finds its hosts: one after another, as they come."""

    def __init__(self) -> None:
        self._there: queue.Queue[socket.socket] = queue.Queue()
        self._ends: list[socket.socket] = []

    def open(self) -> Host:
        """There is one now."""
        ours, theirs = socket.socketpair()
        self._there.put(ours)
        self._ends += [ours, theirs]
        return Host(theirs)

    def come_in(self, *given: object) -> socket.socket:
        gave_up = given[-1]
        assert callable(gave_up)
        while not gave_up():
            try:
                return self._there.get(timeout=0.01)
            except queue.Empty:
                continue
        raise UnavailableError("cannot reach the host: the program ends")

    def close(self) -> None:
        for end in self._ends:
            end.close()


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    made = Hosts()
    monkeypatch.setattr(Place, "here", lambda: Place(Home.default()))
    monkeypatch.setattr(finding, "come_in", made.come_in)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def link(hosts: Hosts) -> Iterator[Link]:
    made = Link(Wanted(1, 0, None, 1, None, 600))
    try:
        yield made
    finally:
        made.close(0)
        for thread in made._threads:
            thread.join(60)


def function(name: str) -> wire.Function:
    return wire.Function(name.encode(), name, bytes(1000))


def calls(heard: object) -> list[int]:
    assert isinstance(heard, wire.Calls)
    return [call.id for call in heard.calls]


def calls_of(heard: list[object]) -> list[int]:
    return [id_ for one in heard if isinstance(one, wire.Calls) for id_ in calls(one)]


def test_what_is_cancelled_between_two_hosts_is_cancelled_on_the_next(
    hosts: Hosts, link: Link
) -> None:
    first = hosts.open()
    wanted = link.submit(function("f"), b"", wire.DURABLE, 0, 0.0)
    unwanted = link.submit(function("f"), b"", wire.DURABLE, 0, 0.0)
    heard: list[int] = []
    while heard != [1, 2]:
        heard += calls(first.hear())
    first.say(wire.Accepted([1, 2]))
    until(lambda: wanted.is_accepted and unwanted.is_accepted)
    first.link.close()
    until(lambda: link._out is None)
    assert unwanted.cancel()
    second = hosts.open()
    assert second.hear() == wire.Cancel([2])
    assert second.hear() == wire.Resume([1])
    second.say(wire.Results([wire.Result(2, wire.CANCELLED), wire.Result(1, wire.CANCELLED)]))
    until(wanted.done)
    assert link._unwanted == set()


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_connection_keeps_the_newest_functions_and_both_ends_the_same(
    hosts: Hosts, link: Link, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(wire, "FUNCTIONS_SAID_MAX", 8 if size == 1 else 1000)
    monkeypatch.setattr(wire, "FUNCTION_BYTES_SAID_MAX", 8 * 100_000)
    host, said = hosts.open(), wire.Said()
    names = [f"f{number % 20 if number % 3 else 0}" for number in range(300)]
    heard: list[str] = []
    for count, name in enumerate(names, 1):
        link.submit(wire.Function(name.encode(), name, bytes(size)), b"", 0, 0, 0.0)
        while len(heard) < count:
            message = host.hear()
            assert isinstance(message, wire.Calls)
            for one in message.functions:
                said.say(one)
            heard += [said[call.key].name for call in message.calls]
            said.end_frame()
            assert len(said) <= 8
    assert heard == names
    assert len(link._said) == len(said)


def test_a_map_that_cannot_begin_leaves_nothing_behind(hosts: Hosts, link: Link) -> None:
    cannot_be_pickled = (number for number in range(2))
    items = [1, 2, cannot_be_pickled]
    with pytest.raises(InvalidError, match="cannot send items of f"):
        MapResults(link, function("f"), items, 1, None, 1, None, None)
    assert link._pending == {}


def test_a_program_that_goes_to_another_folder_has_its_calls_run_there(
    hosts: Hosts, tmp_path: Path
) -> None:
    wanted, links = Wanted(1, 0, None, 1, None, 600), calling._Links()
    here = links.to(wanted)
    here.submit(function("f"), b"", 0, 0, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        there = links.to(wanted)
        there.submit(function("f"), b"", 0, 0, 0.0)
        assert links.to(wanted) is there
    work = there._spec.work
    assert isinstance(work, CallSpec)
    assert work.cwd == str(tmp_path)
    assert links.to(wanted) is here
    links.close(0)
    for thread in [*here._threads, *there._threads]:
        thread.join(60)


def in_time(work: Callable[[], T]) -> T:
    """What it returns; it is not waited for for ever."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(60)
    assert found, "it still waits"
    return found[0]


def test_a_host_that_does_not_read_keeps_nobody_waiting(hosts: Hosts, link: Link) -> None:
    host = hosts.open()
    first = link.submit(function("f"), b"", 0, 0, 0.0)
    assert calls(host.hear()) == [1]

    def submit() -> CallFuture[Any]:
        return link.submit(function("f"), bytes(limits.MIB), wire.DURABLE, 0, 0.0)

    large = [in_time(submit) for _ in range(8)]
    until(lambda: link._out is not None and link._out.is_stuck)
    large.append(in_time(submit))
    assert len(link._outbox) >= 7  # one frame at most is on its way
    assert in_time(large[8].cancel)  # it has not been said
    assert in_time(large[0].cancel)  # it has, maybe not whole
    assert not in_time(lambda: large[1].wait_accepted(0.01))
    host.say(wire.Results([wire.Result(1, wire.DONE, values.dump(7))]))
    assert in_time(lambda: first.result(60)) == 7
    heard: list[object] = []
    while calls_of(heard) != [2, 3, 4, 5, 6, 7, 8, 9]:  # the last one was cancelled before
        heard.append(host.hear())
    assert wire.Cancel([2]) in heard
    assert wire.Asking() in heard


def test_the_end_of_a_program_waits_no_longer_for_a_host_that_does_not_read(
    hosts: Hosts, link: Link
) -> None:
    hosts.open()
    for _ in range(8):
        in_time(lambda: link.submit(function("f"), bytes(limits.MIB), wire.DURABLE, 0, 0.0))
    until(lambda: link._out is not None and link._out.is_stuck)
    in_time(lambda: link.close(0.1) or True)
    for thread in link._threads:
        thread.join(60)
        assert not thread.is_alive()


def test_a_host_is_told_which_results_it_need_not_keep(hosts: Hosts, link: Link) -> None:
    """With the next calls, or by itself once there are large ones, or many."""
    host, large = hosts.open(), values.dump(bytes(limits.MIB))

    def end(payload: bytes, heard: int) -> None:
        """A call and its result. heard: what is said with the call."""
        future = link.submit(function("f"), b"", 0, 0, 0.0)
        said = host.hear()
        assert calls(said) == [future.number]
        assert isinstance(said, wire.Calls)
        assert said.heard == heard
        host.say(wire.Results([wire.Result(future.number, wire.DONE, payload)]))
        future.result(60)

    end(values.dump(1), heard=0)
    end(values.dump(2), heard=1)
    end(large, heard=2)
    assert host.hear() == wire.Heard(3)
    end(values.dump(3), heard=3)
    unknown = [wire.Result(id_, wire.DONE, values.dump(4)) for id_ in range(1000, 1300)]
    host.say(wire.Results(unknown))
    assert host.hear() == wire.Heard(304)
    end(values.dump(5), heard=304)
    link.close(0)
    assert host.hear() == wire.Heard(305)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no more than a count


def end_one(hosts: Hosts, link: Link) -> None:
    """A call, its result, and the end of its host."""
    host = hosts.open()
    future = link.submit(function("f"), b"", 0, 0, 0.0)
    assert calls(host.hear()) == [future.number]
    host.say(wire.Results([wire.Result(future.number, wire.DONE, values.dump(7))]))
    host.say(wire.Bye())
    host.link.close()
    assert future.result(60) == 7


def test_what_a_program_does_not_use_any_more_is_forgotten(hosts: Hosts) -> None:
    """Its hosts have ended: no thread and no descriptor is left of them, and no link."""
    links = calling._Links()
    gc.collect()
    before = threading.active_count(), descriptors()
    for lanes in range(1, 30):
        end_one(hosts, links.to(Wanted(1, 0, None, lanes, None, 600)))
        until(lambda: all(link.is_at_rest for link in links._links.values()))
    assert len(links._links) == 1
    links.close(0)
    links.forget()
    until(lambda: threading.active_count() <= before[0])
    gc.collect()
    assert descriptors() <= before[1]


def test_who_has_a_link_at_rest_goes_on_with_it(hosts: Hosts, link: Link) -> None:
    for _ in range(3):
        end_one(hosts, link)
        until(lambda: link.is_at_rest)
        for thread in link._threads:
            thread.join(60)
            assert not thread.is_alive()


def test_the_end_of_a_program_reaches_calls_of_a_link_that_it_has_forgotten(hosts: Hosts) -> None:
    links = calling._Links()
    first = links.to(Wanted(1, 0, None, 1, None, 600))
    end_one(hosts, first)
    until(lambda: first.is_at_rest)
    links.to(Wanted(1, 0, None, 2, None, 600))
    assert first not in links._links.values()
    host = hosts.open()
    future = first.submit(function("f"), b"", wire.DURABLE, 0, 0.0)
    closing = threading.Thread(target=links.close, args=(60,), daemon=True)
    closing.start()
    while not isinstance(heard := host.hear(), wire.Calls):
        assert heard == wire.Asking()
    host.say(wire.Accepted(calls(heard)))
    closing.join(60)
    assert not closing.is_alive()
    assert future.is_accepted
    with pytest.raises(UnavailableError, match="the program ends"):
        first.submit(function("f"), b"", 0, 0, 0.0)


def test_a_program_without_a_thread_to_spare_cannot_call_and_can_again(
    hosts: Hosts, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, left = threading.Thread.start, [1]

    def short(thread: threading.Thread) -> None:
        if left[0] == 0:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", short)
    with pytest.raises(UnavailableError, match="no thread can be started here"):
        link.submit(function("f"), b"", 0, 0, 0.0)
    assert link._pending == {}
    left[0] = 2
    end_one(hosts, link)
