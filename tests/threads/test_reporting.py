"""What a task's pools tell the daemon: only news, and never to the program's harm."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.bus.harness import Station, station
from tests.processes import until
from zenos.bus.telling import Teller
from zenos.core.home import Home
from zenos.core.thread_views import ProcessThreads
from zenos.threads import Pool
from zenos.threads.reporting import Reporter


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> tuple[ProcessThreads, ProcessThreads]:
    """A pool that does nothing, and the same with a thread; of no task, so of no reporter."""
    monkeypatch.delenv("ZENOS_TASK", raising=False)
    gate = threading.Event()
    with Pool(1, name="mine") as pool:
        idle = pool.snapshot()
        pool.submit(gate.wait)
        until(lambda: pool.snapshot().running == 1)
        busy = pool.snapshot()
        gate.set()
    return ProcessThreads(pid=1, pools=[idle]), ProcessThreads(pid=1, pools=[busy])


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Station]:
    """A broker at the home of the task that this process is made to be."""
    home = Home(tmp_path / "home")
    (home.runs / "t1").mkdir(parents=True)
    (home.runs / "t1" / "1.json").write_text('{"token": "right"}')
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name, value in (("HOME", str(home.root)), ("TASK", "t1"), ("GENERATION", "1")):
        monkeypatch.setenv(f"ZENOS_{name}", value)
    monkeypatch.setenv("ZENOS_TASK_HOME", str(home.root))
    with station(home.bus) as made:
        yield made


def test_only_news_is_told_and_all_of_it_to_who_has_not_heard(
    reports: tuple[ProcessThreads, ProcessThreads], broker: Station
) -> None:
    report, busy = reports
    later = busy.later(5.0)
    reporter = Reporter()
    reporter._teller = teller = Teller()

    def heard() -> list[ProcessThreads]:
        return [
            msgspec.msgpack.decode(envelope.body, type=ProcessThreads)
            for _, envelope in broker.do(lambda: list(broker.heard))
        ]

    told = reporter._tell(report, None)
    told = reporter._tell(report, told)
    told = reporter._tell(busy, told)
    told = reporter._tell(later, told)  # time has passed, and nothing else
    until(lambda: heard() == [report, busy])
    broker.stop()
    until(lambda: not teller.is_connected())
    told = reporter._tell(later, told)
    assert told is None
    broker.start()
    until(lambda: reporter._tell(later, None) is not None)
    until(lambda: heard() == [report, busy, later])
    teller.close()
    until(lambda: [task for task, _ in broker.gone] == ["t1", "t1"])


def test_a_program_may_tell_of_its_threads_and_of_nothing_else(broker: Station) -> None:
    teller = Teller()
    assert teller.tell("threads", b"x")
    until(lambda: broker.heard)
    ((task, envelope),) = broker.heard
    assert (task, envelope.sender.partition(".")[0]) == ("t1", "t1")
    assert teller.tell("ready", b"x")
    until(lambda: not teller.is_connected())  # it was cut
    assert len(broker.heard) == 1
    assert broker.gone == [("t1", envelope.sender)]


def test_outside_of_a_task_nobody_looks_at_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZENOS_TASK", raising=False)
    reporter = Reporter()
    with Pool(1) as pool:
        reporter.watch(pool._runner)
        assert reporter._thread is None


def test_a_wrong_token_and_another_home_are_no_reason_to_fail(
    broker: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZENOS_HOME", str(tmp_path / "elsewhere"))
    assert not Teller().tell("threads", b"x")
    monkeypatch.setenv("ZENOS_HOME", str(tmp_path / "home"))
    token = tmp_path / "home" / "runs" / "t1" / "1.json"
    for text in ('{"token": "wrong"}', "{"):
        token.write_text(text)
        assert not Teller().tell("threads", b"x")
    token.unlink()
    assert not Teller().tell("threads", b"x")
    assert broker.heard == []
