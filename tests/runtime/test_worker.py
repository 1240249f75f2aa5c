"""The worker's first lines and its context: threads, messages, stopping, failing."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from tests.runtime.train.helpers import Bus, error, make_context, make_task, result, spec
from zenos.bus.broker import Broker
from zenos.bus.envelope import Envelope
from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.home import Home
from zenos.core.specs import ProgramSpec
from zenos.core.task import Task
from zenos.core.wire import Abort, Progress, Stop
from zenos.runtime import context as context_module
from zenos.runtime import worker
from zenos.runtime.context import WorkerContext
from zenos.threads import cpus


@pytest.fixture
def task() -> Task:
    return make_task(spec(Path("/nowhere")))


@pytest.mark.parametrize(("milli", "threads"), [(1, 1), (1000, 1), (1001, 2), (2500, 3)])
def test_threads_are_the_cores_rounded_up(milli: int, threads: int) -> None:
    assert worker.thread_count(make_task(spec(Path("/x")), cpu=milli)) == threads


@pytest.mark.parametrize(("milli", "each"), [(1000, 1), (2000, 1), (5000, 2)])
def test_processes_of_a_gang_share_the_cores(milli: int, each: int) -> None:
    gang = make_task(spec(Path("/x"), workers=2), cpu=milli)
    assert worker.thread_count(gang) == each


def test_use_threads_reaches_torch_and_what_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP", "OPENBLAS", "MKL", "RAYON"):
        monkeypatch.setenv(f"{name}_NUM_THREADS", "9")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "")
    monkeypatch.setenv("ZENOS_CPU", "9")
    before = torch.get_num_threads()
    try:
        worker.use_threads(2)
        assert torch.get_num_threads() == 2
        assert os.environ["RAYON_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"] == "2"
        assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
        assert os.environ["ZENOS_CPU"] == "2"
    finally:
        torch.set_num_threads(before)


def test_reseed_differs_each_time() -> None:
    drawn = []
    for _ in range(2):
        worker.reseed()
        drawn.append(torch.rand(1).item())
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (InvalidError("cannot use that"), "invalid", "cannot use that"),
        (MemoryError(), "worker", "--memory"),
        (OSError(28, "No space left on device"), "storage", "is full; free space there"),
        (OSError(28, "no space", "/x/y"), "storage", "the disk on which /x/y lies is full"),
        # As safetensors says it, which writes through Rust.
        (Exception("I/O error: No space left on device (os error 28)"), "storage", "is full; free"),
        (OSError(5, "Input/output error"), "storage", "Input/output error"),
        (ZeroDivisionError("division by zero"), "worker", "zenos logs t1"),
    ],
)
def test_failures_end_in_error_json(
    tmp_path: Path, task: Task, failure: Exception, code: str, text: str
) -> None:
    context = make_context(tmp_path, task)

    def fail(_: WorkerContext) -> int:
        raise failure

    assert worker.run(context, fail) == 1
    found = error(context)
    assert found["code"] == code
    assert found["message"].startswith("cannot ")
    assert text in found["message"]


def test_no_exit_code_means_zero(tmp_path: Path, task: Task) -> None:
    assert worker.run(make_context(tmp_path, task), lambda _: None) == 0
    assert worker.run(make_context(tmp_path, task), lambda _: 75) == 75


def test_programs_are_not_for_torch_workers(task: Task) -> None:
    program = msgspec.structs.replace(task.spec, work=ProgramSpec(argv=["true"]))
    with pytest.raises(InvalidError):
        worker.entry(msgspec.structs.replace(task, spec=program))


def test_each_kind_of_work_has_its_main(task: Task) -> None:
    assert worker.entry(task).__module__ == "zenos.runtime.train.main"


def test_reports_are_limited_but_stages_and_notes_pass(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = Bus()
    context = make_context(tmp_path, task, bus)
    now = 100.0
    monkeypatch.setattr(context_module.time, "monotonic", lambda: now)
    for step in range(50):
        context.report(Progress(stage="training", done=step))
    assert [p.done for p in bus.progress] == [0]
    context.report(Progress(stage="training", done=50, note="look"))
    context.report(Progress(stage="saving", done=51))
    context.report(Progress(stage="saving", done=52))
    context.report(Progress(stage="saving", done=53), force=True)
    now += context_module.REPORT_EVERY_S
    context.report(Progress(stage="saving", done=54))
    assert [p.done for p in bus.progress] == [0, 50, 51, 53, 54]


def test_stop_is_seen_whoever_waits_and_nothing_else_is_lost(tmp_path: Path, task: Task) -> None:
    bus = Bus()
    context = make_context(tmp_path, task, bus)
    assert context.stop_requested() is None
    bus.put("abort", msgspec.msgpack.encode(Abort(request="r1")))
    bus.say_stop(save=False)
    bus.put("abort", msgspec.msgpack.encode(Abort(request="r2")))
    assert context.stop_requested() == Stop(save=False)
    first, second = context.receive(0), context.receive(None)
    assert first is not None
    assert second is not None
    found = [msgspec.msgpack.decode(e.body, type=Abort).request for e in (first, second)]
    assert found == ["r1", "r2"]
    # It is to stop and nothing waits: no use in waiting.
    assert context.receive(None) is None
    bus.say_stop(save=True)
    assert context.stop_requested() == Stop(save=True)
    bus.say_stop(save=False)  # it was to save first, and is cancelled now
    assert context.stop_requested() == Stop(save=False)


def test_a_malformed_stop_saves(tmp_path: Path, task: Task) -> None:
    bus = Bus()
    context = make_context(tmp_path, task, bus)
    bus.put("stop", b"\xc1")
    assert context.stop_requested() == Stop(save=True)


def test_without_a_daemon_for_long_it_saves_and_ends(tmp_path: Path, task: Task) -> None:
    bus = Bus()
    context = make_context(tmp_path, task, bus)
    bus.disconnected_s = limits.ORPHAN_WAIT_S - 1
    assert context.stop_requested() is None
    bus.disconnected_s = limits.ORPHAN_WAIT_S + 1
    assert context.stop_requested() == Stop(save=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_ask_to_save_and_stop(tmp_path: Path, task: Task, number: signal.Signals) -> None:
    context = make_context(tmp_path, task)

    def work(inner: WorkerContext) -> int:
        signal.raise_signal(signal.SIGHUP)
        assert inner.stop_requested() is None
        signal.raise_signal(number)
        assert inner.receive(None) is None
        assert inner.stop_requested() == Stop(save=True)
        return 75

    assert worker.run(context, work) == 75


def test_the_daemon_s_word_says_whether_a_signal_means_to_save(tmp_path: Path, task: Task) -> None:
    """Also when it comes after the signal, and what else comes meanwhile is not lost."""
    for said_first in (True, False):
        bus = Bus()
        context = make_context(tmp_path, task, bus)

        def work(inner: WorkerContext, bus: Bus = bus, said_first: bool = said_first) -> int:
            if said_first:
                bus.say_stop(save=False)
            signal.raise_signal(signal.SIGTERM)
            if not said_first:
                taken = bus.poll
                bus.poll = list  # type: ignore[method-assign]
                bus.put("abort", msgspec.msgpack.encode(Abort(request="r1")))
                bus.say_stop(save=False)
                assert inner.stop_requested() == Stop(save=False)
                bus.poll = taken  # type: ignore[method-assign]
                assert inner.receive(0) is not None
            assert inner.stop_requested() == Stop(save=False)
            return 75

        assert worker.run(context, work) == 75


def test_a_signal_alone_saves_and_does_not_wait_for_a_daemon_that_is_away(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STOP_WORD_WAIT_S", 1000.0)
    bus = Bus()
    bus.disconnected_s = 1.0
    context = make_context(tmp_path, task, bus)

    def work(inner: WorkerContext) -> int:
        signal.raise_signal(signal.SIGTERM)
        assert inner.stop_requested() == Stop(save=True)
        bus.say_stop(save=False)  # it is back, and knows better
        assert inner.stop_requested() == Stop(save=False)
        return 75

    assert worker.run(context, work) == 75


async def test_main_over_a_real_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of `main`: token, threads, channel, progress out and `stop` in."""
    monkeypatch.setattr(WorkerContext, "install_signal_handlers", lambda self: None)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "r"))
    home = Home(tmp_path / "h")
    task = make_task(spec(Path("/nowhere")), cpu=3000)
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM", "ZENOS_CPU"):
        monkeypatch.setenv(name, "9")
    run_dir = home.run(task.id, task.generation)
    run_dir.mkdir(parents=True)
    (run_dir.parent / "1.json").write_text('{"token": "secret", "argv": []}')
    got: list[Progress] = []
    seen = asyncio.Event()

    def on_message(name: str, generation: int, envelope: Envelope) -> None:
        got.append(msgspec.msgpack.decode(envelope.body, type=Progress))
        seen.set()

    broker = Broker(lambda t, g, token: (t, g, token) == ("t1", 1, "secret"), on_message)
    await broker.start(home.bus)

    def work(context: WorkerContext) -> int:
        context.report(Progress(stage="working", done=1))
        while context.receive(None) is not None:
            pass
        stop = context.stop_requested()
        lanes = (torch.get_num_threads(), os.environ["RAYON_NUM_THREADS"], cpus())
        context.write_result({"save": stop is not None and stop.save, "lanes": lanes})
        return 75

    monkeypatch.setattr(worker, "entry", lambda _: work)
    threads = torch.get_num_threads()
    try:
        running: Any = asyncio.create_task(asyncio.to_thread(worker.main, task, home, run_dir))
        await asyncio.wait_for(seen.wait(), 30)
        assert got[0].stage == "working"
        body = msgspec.msgpack.encode(Stop(save=True))
        assert broker.send("t1", "command", "stop", body)
        assert await asyncio.wait_for(running, 30) == 75
    finally:
        torch.set_num_threads(threads)
        await broker.close()
    context = make_context(tmp_path / "h", task)
    assert result(context) == {"save": True, "lanes": [3, "3", 3.0]}  # as the task has cores
