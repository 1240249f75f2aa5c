"""A connection that breaks while its program and its host live: nothing is lost, nobody hangs."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import zenos
from tests.calls import work
from tests.processes import until
from tests.system.harness import System
from zenos.calls import finding, values, wire
from zenos.calls.calling import links
from zenos.calls.finding import Wanted
from zenos.calls.link import Link
from zenos.core import processes, shim
from zenos.core.errors import UnavailableError, WorkerError


def link_of(future: Any) -> Link:
    link = future._link
    assert isinstance(link, Link)
    return link


def break_off(link: Link) -> None:
    """What is in the socket is lost, in both directions."""
    with link._lock:
        if link._out is not None:
            link._out.end()


def lose_next_results(link: Link, monkeypatch: pytest.MonkeyPatch) -> list[wire.Results]:
    """Such as come are lost, and the connection with them: as when a signal interrupts reading."""
    lost: list[wire.Results] = []
    take: Callable[[Any], bool] = link._take

    def lose(message: Any) -> bool:
        if isinstance(message, wire.Results) and not lost:
            lost.append(message)
            raise InterruptedError
        return take(message)

    monkeypatch.setattr(link, "_take", lose)
    return lost


def test_results_that_were_on_their_way_come_over_the_next_connection(
    shared: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    first = zenos.call(work.note_and_wait, str(ran), str(gate), "first", lanes=1)
    link = link_of(first)
    durable = {
        f"d{n}": zenos.call(work.note_and_tell, str(ran), f"d{n}", lanes=1) for n in range(9)
    }
    assert all(future.wait_accepted(60) for future in [first, *durable.values()])
    lost = lose_next_results(link, monkeypatch)
    break_off(link)
    gate.touch()
    assert first.result(60) == "first"
    assert {name: future.result(60) for name, future in durable.items()} == {n: n for n in durable}
    assert lost
    assert Counter(work.lines(ran)) == Counter(["first", *durable])


def test_who_may_not_run_again_is_told_that_nobody_knows(shared: System, tmp_path: Path) -> None:
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    given = {"lanes": 2, "durable": False}
    once = zenos.call(work.note_and_wait, str(ran), str(gate), "once", **given)
    often = zenos.call(work.note_and_wait, str(ran), str(gate), "often", idempotent=True, **given)
    until(lambda: {"once", "often"} <= set(work.lines(ran)))
    break_off(link_of(once))
    with pytest.raises(WorkerError, match="its host, or the connection to it, died"):
        once.result(60)
    gate.touch()
    assert often.result(60) == "often"


def test_what_was_not_said_yet_is_said_to_the_next(
    shared: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has certainly not run, so it runs, even if it may not run twice."""
    assert zenos.call(work.increment, 1, lanes=3).result(60) == 2
    (link,) = [one for key, one in links._links.items() if key[1].lanes == 3]
    monkeypatch.setattr(link, "_next_message", lambda: None)  # it is not its turn yet
    future = zenos.call(work.increment, 2, lanes=3, durable=False)
    break_off(link)
    until(lambda: link._out is None)
    monkeypatch.undo()
    assert future.result(60) == 3


def test_a_connection_that_breaks_again_and_again_loses_nothing(
    shared: System, tmp_path: Path
) -> None:
    durable = [zenos.call(work.increment, n, lanes=2) for n in range(2000)]
    passing = [
        zenos.call(work.increment, n, lanes=2, durable=False, idempotent=True) for n in range(500)
    ]
    link, ended = link_of(durable[0]), 0
    while ended < 2500:
        break_off(link)
        before = ended
        until(lambda before=before: done(durable) + done(passing) > min(2499, before + 100))
        ended = done(durable) + done(passing)
    assert [future.result(60) for future in durable] == list(range(1, 2001))
    assert [future.result(60) for future in passing] == list(range(1, 501))


def done(futures: list[Any]) -> int:
    return sum(future.done() for future in futures)


class Slow:
    """A result that a signal comes upon as it is read."""

    armed = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (read_slow, ())


def read_slow() -> str:
    if Slow.armed:
        Slow.armed = False
        signal.raise_signal(signal.SIGINT)
    return "read"


def test_who_is_interrupted_as_a_result_comes_has_it_when_asking_again(shared: System) -> None:
    """As in a notebook: by the same call, which is durable."""
    assert threading.current_thread() is threading.main_thread()
    for _ in range(200):  # this thread reads, once it has waited often enough
        future = zenos.call(Slow, lanes=4)
        Slow.armed = True
        try:
            future.result(60)
        except KeyboardInterrupt:
            break
        Slow.armed = False
    else:
        raise AssertionError("it was never interrupted")
    assert future.result(60) == "read"


def test_who_has_no_descriptor_left_reaches_its_host_later(
    shared: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    reach = finding._reach

    def short(*given: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(24, "Too many open files")
        return reach(*given)

    monkeypatch.setattr(finding, "_reach", short)
    assert zenos.call(work.increment, 1, lanes=5).result(60) == 2
    assert tries == 3
    monkeypatch.setattr("zenos.calls.link.PATIENCE_S", -1.0)
    tries = 0
    with pytest.raises(UnavailableError, match="Too many open files"):
        zenos.call(work.increment, 1, lanes=6).result(60)


def test_a_host_keeps_nothing_of_programs_that_come_and_go(shared: System) -> None:
    wanted, functions = Wanted(1, 0, None, 7, None, 600), values.Functions()

    def come_and_go() -> None:
        link = Link(wanted)
        future = link.submit(functions.of(work.increment), values.arguments_of((1,), {}), 0, 0, 0.0)
        assert future.result(60) == 2
        link.close(0)

    come_and_go()
    views = shared.ask(lambda client: client.tasks(kind="call", state="running"))
    (task,) = [view.task for view in views if view.task.spec.work.lanes == 7]
    record = shim.read_record(str(shared.home.run(task.id, task.generation)), "started")
    assert record is not None
    host = Path(f"/proc/{record['pid']}")
    until(lambda: (host / "task").exists() and len(processes.children(record["pid"])) == 7)
    before = count_sockets(host)
    for _ in range(30):
        come_and_go()
    # Its own connections to the bus, as to report what it runs, may come meanwhile.
    until(lambda: count_sockets(host) < before + 5)


def count_sockets(process: Path) -> int:
    count = 0
    for entry in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # it has just been closed
            count += os.readlink(entry).startswith("socket:")  # noqa: PTH115
    return count
