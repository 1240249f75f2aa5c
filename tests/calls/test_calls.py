"""Calls of one program: what comes back, and what goes wrong."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

import zenos
from tests.calls import work
from tests.processes import until
from tests.system.harness import System
from zenos.calls import values
from zenos.calls.finding import Wanted
from zenos.calls.future import CallFuture
from zenos.calls.link import Link
from zenos.core import limits
from zenos.core.errors import (
    ConflictError,
    DeadlineError,
    InvalidError,
    LaneError,
    NoDaemonError,
    TooLargeError,
    WorkerError,
)
from zenos.core.thread_views import PoolView

pytestmark = pytest.mark.usefixtures("shared")
both = pytest.mark.parametrize("durable", [True, False])


@both
def test_a_result_comes_back(durable: bool) -> None:
    assert zenos.call(work.increment, 41, durable=durable).result(60) == 42
    assert zenos.call(dict, kwargs={"a": [1, 2]}, durable=durable).result(60) == {"a": [1, 2]}
    assert zenos.call(lambda x: x * 2, "ab", durable=durable).result(60) == "abab"


@both
def test_many_are_in_flight_and_each_has_its_own_result(durable: bool) -> None:
    futures = [zenos.call(work.increment, n, durable=durable) for n in range(3000)]
    assert [future.result(60) for future in futures] == list(range(1, 3001))


@pytest.mark.parametrize("size", [0, 40_000, limits.MIB, 5 * limits.MIB])
def test_arguments_and_results_of_any_size_come_through(size: int) -> None:
    body = os.urandom(size)
    assert zenos.call(lambda b: b + b"x", body, durable=False).result(60) == body + b"x"


def test_a_lane_is_killed_before_its_host_for_want_of_memory() -> None:
    assert int(zenos.call(Path.read_text, Path("/proc/self/oom_score_adj")).result(60)) >= 500


def test_what_is_too_large_is_refused_by_name() -> None:
    with pytest.raises(TooLargeError, match="name of a file"):
        zenos.call(len, bytes(limits.CALL_BYTES_MAX + 1))
    with pytest.raises(TooLargeError, match="result"):
        zenos.call(bytes, limits.CALL_BYTES_MAX + 1, durable=False).result(60)


def test_a_global_that_has_changed_is_seen() -> None:
    space: dict[str, object] = {"__name__": "__main__"}
    exec("factor = 2\ndef scaled(n): return n * factor", space)  # noqa: S102 - as in a notebook
    scaled = space["scaled"]
    assert callable(scaled)
    assert zenos.call(scaled, 5, durable=False).result(60) == 10
    assert zenos.call(scaled, 5, durable=False).result(60) == 10
    space["factor"] = 3
    assert zenos.call(scaled, 5, durable=False).result(60) == 15


def test_a_list_that_has_changed_in_place_is_seen() -> None:
    seen: list[int] = []
    for number in range(3):
        seen.append(number)
        assert zenos.call(lambda: len(seen), durable=False).result(60) == number + 1


@both
def test_an_error_comes_with_the_traceback_of_its_lane(durable: bool) -> None:
    with pytest.raises(ValueError, match="no good") as caught:
        zenos.call(work.raise_value_error, "no good", durable=durable).result(60)
    text = "".join(traceback.format_exception(caught.value))
    assert "raise_value_error" in text
    assert "RemoteTraceback" in text


def test_what_cannot_be_pickled_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="cannot send the arguments of len"):
        zenos.call(len, threading.Lock())
    with pytest.raises(InvalidError, match="cannot send the function"):
        zenos.call(functools.partial(len, threading.Lock()))
    with pytest.raises(InvalidError, match="cannot send the result back"):
        zenos.call(lambda: (n for n in range(3)), durable=False).result(60)


def test_sys_exit_is_an_error_and_the_lane_goes_on() -> None:
    with pytest.raises(WorkerError, match="SystemExit: 3"):
        zenos.call(sys.exit, 3).result(60)
    assert zenos.call(work.increment, 1).result(60) == 2


def test_a_function_that_forks_returns_once() -> None:
    assert zenos.call(work.fork).result(60) > 0
    assert zenos.call(work.increment, 1).result(60) == 2


def test_a_lane_that_dies_fails_its_call_alone(tmp_path: Path) -> None:
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    first = zenos.call(work.note_and_wait, str(ran), str(gate), "first")
    dying = zenos.call(work.note_and_die, str(ran))
    others = [zenos.call(work.increment, n) for n in range(20)]
    gate.touch()
    with pytest.raises(LaneError, match=r"note_and_die.*SIGKILL.*idempotent=True"):
        dying.result(60)
    assert first.result(60) == "first"
    assert [other.result(60) for other in others] == list(range(1, 21))
    assert work.lines(ran) == ["first", ""]


def test_an_idempotent_call_runs_again(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    assert zenos.call(work.die_once, str(ran), idempotent=True).result(60) == "done"
    assert len(work.lines(ran)) == 2
    with pytest.raises(LaneError, match="begun 2 times"):
        zenos.call(work.note_and_die, str(ran), idempotent=True, retries=1).result(60)
    assert len(work.lines(ran)) == 4
    with pytest.raises(InvalidError, match="idempotent"):
        zenos.call(work.increment, 1, retries=1)


@both
def test_a_call_that_waits_is_cancelled_before_it_starts(tmp_path: Path, durable: bool) -> None:
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    first = zenos.call(work.note_and_wait, str(ran), str(gate), "first", durable=durable)
    second = zenos.call(work.note, str(ran), "second", durable=durable)
    third = zenos.call(work.note, str(ran), "third", durable=durable)
    until(lambda: work.lines(ran) == ["first"])
    assert second.cancel()
    assert second.cancelled()
    # Said over the same connection, so the host has heard of it before this is accepted.
    fourth = zenos.call(work.note, str(ran), "fourth")
    assert fourth.wait_accepted(60)
    gate.touch()
    assert first.result(60) == "first"
    third.result(60)
    fourth.result(60)
    assert work.lines(ran) == ["first", "third", "fourth"]


def test_a_call_that_runs_is_told_and_then_killed(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    listens = zenos.call(work.note_and_wait, str(ran), "/nowhere")
    until(lambda: len(work.lines(ran)) == 1)
    listens.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        listens.result(60)
    deaf = zenos.call(work.sleep_deaf, str(ran))
    until(lambda: len(work.lines(ran)) == 2)
    deaf.cancel()
    assert zenos.call(work.increment, 1).result(60) == 2


def test_a_time_limit_ends_a_call_and_no_other(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    late = zenos.call(work.sleep_deaf, str(ran), timeout_s=0.2)
    after = zenos.call(work.increment, 1, timeout_s=60)
    with pytest.raises(DeadlineError, match=r"time limit of 0\.2 s"):
        late.result(60)
    assert after.result(60) == 2


def test_waiting_has_a_limit_of_its_own(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    future = zenos.call(work.note_and_wait, str(tmp_path / "ran"), str(gate), "x")
    with pytest.raises(DeadlineError, match="goes on"):
        future.result(0.01)
    gate.touch()
    assert future.result(60) == "x"


async def test_futures_are_awaited() -> None:
    found = await asyncio.gather(*(zenos.call(work.increment, n) for n in range(50)))
    assert found == list(range(1, 51))


def test_the_standard_library_waits_for_them() -> None:
    futures = [zenos.call(work.increment, n) for n in range(10)]
    done, left = concurrent.futures.wait(futures, 60)
    assert (len(done), len(left)) == (10, 0)


def test_waiting_for_a_call_inside_a_call_is_an_error() -> None:
    def outer() -> int:
        import zenos

        return zenos.call(len, "abc").result(60)

    with pytest.raises(ConflictError, match="inside a call"):
        zenos.call(outer).result(60)


def test_a_fork_of_the_program_calls_anew(tmp_path: Path) -> None:
    future = zenos.call(work.note_and_wait, str(tmp_path / "ran"), str(tmp_path / "gate"), "x")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            try:
                future.result(1)
            except InvalidError:
                code = zenos.call(work.increment, 5, durable=False, lanes=2).result(60)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6
    (tmp_path / "gate").touch()
    assert future.result(60) == "x"


def test_calls_run_on_lanes_that_stay(shared: System) -> None:
    """None of them costs a process of its own, and the program's is none of them."""
    pids = {zenos.call(os.getpid, lanes=1, durable=False).result(60) for _ in range(50)}
    assert len(pids) == 1
    pids |= set(zenos.map(work.pid_of, range(200), lanes=1, chunk=5))
    assert len(pids) == 1
    assert os.getpid() not in pids


@pytest.mark.parametrize(("lanes", "each"), [(1, "2"), (2, "1")])
def test_lanes_share_the_cores_of_their_host(lanes: int, each: str) -> None:
    """Two lanes with two cores don't start two compute threads each."""
    names = ["OMP_NUM_THREADS", "RAYON_NUM_THREADS", "ZENOS_CPU"]
    assert list(zenos.map(os.getenv, names, cpu=2, lanes=lanes, chunk=1)) == [each] * 3
    parallel = zenos.call(os.getenv, "TOKENIZERS_PARALLELISM", cpu=2, lanes=lanes).result(60)
    assert parallel == ("true" if each == "2" else "false")


def test_nothing_waits_behind_a_long_call_while_a_lane_is_free(tmp_path: Path) -> None:
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    call = functools.partial(zenos.call, cpu=0.5, lanes=2)
    call(work.increment, 1).result(60)
    long = call(work.note_and_wait, str(ran), str(gate), "long")
    short = [call(work.increment, n) for n in range(200)]
    assert [future.result(60) for future in short] == list(range(1, 201))
    assert not long.done()
    gate.touch()
    assert long.result(60) == "long"


@both
def test_a_module_that_was_edited_runs_as_it_is_now(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path, name = tmp_path / f"edited_{durable}.py", f"edited_{durable}"
    path.write_text("def answer():\n    return 1\n")
    edited = importlib.import_module(name)
    call = functools.partial(zenos.call, durable=durable, lanes=2)
    assert [call(edited.answer).result(60) for _ in range(4)] == [1] * 4
    assert call(work.import_and_ask, name).result(60) == 1
    path.write_text("def answer():\n    return 'one more'\n")
    importlib.reload(edited)
    asked = [call(edited.answer) for _ in range(200)]
    assert {future.result(60) for future in asked} == {"one more"}
    assert call(work.import_and_ask, name).result(60) == "one more"


def test_the_host_is_a_task_whose_calls_are_shown(shared: System, tmp_path: Path) -> None:
    gate, other = tmp_path / "gate", tmp_path / "other"
    other.touch()
    zenos.call(work.burn_half_way, str(other)).result(60)  # which the lane has used, too
    future = zenos.call(work.burn_half_way, str(gate))
    behind = zenos.call(work.increment, 1)

    def shown() -> Iterator[PoolView]:
        for view in shared.ask(lambda client: client.tasks(kind="call", state="running")):
            told = shared.ask(lambda client, id_=view.task.id: client.threads(id_))
            yield from (pool for process in told.processes for pool in process.pools)

    def half_way() -> list[PoolView]:
        return [pool for pool in shown() if [t.progress for t in pool.threads] == [0.5, 0.0]]

    until(half_way)
    (pool,) = half_way()
    runs, waits = pool.threads
    assert (runs.name, runs.state, waits.name) == ("burn_half_way", "running", "increment")
    assert (waits.state, waits.lane, waits.cpu_s) == ("queued", None, 0.0)
    (lane,) = [lane for lane in pool.lanes if lane.id == runs.lane]
    assert work.BURN_S <= runs.cpu_s <= lane.cpu_s - work.BURN_S
    gate.touch()
    future.result(60)
    assert behind.result(60) == 2


def test_without_a_daemon_it_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZENOS_HOME", str(tmp_path / "none"))
    with pytest.raises(NoDaemonError, match="zenos up"):
        zenos.call(work.increment, 1)


def test_a_host_that_cannot_fit_is_an_error() -> None:
    with pytest.raises(InvalidError, match="cannot ever fit"):
        zenos.call(work.increment, 1, cpu=500).result(60)


def test_a_program_does_not_wait_for_all_that_another_has_called() -> None:
    wanted, functions = Wanted(1, 0, None, 1, None, 60), values.Functions()
    links = [Link(wanted), Link(wanted)]

    def call(link: Link, seconds: float) -> CallFuture[None]:
        arguments = values.arguments_of((seconds,), {})
        return link.submit(functions.of(time.sleep), arguments, 0, 0, 0.0)

    try:
        call(links[1], 0.0).result(60)
        many = [call(links[0], 0.02) for _ in range(100)]
        many[4].result(60)
        before = sum(future.done() for future in many)
        call(links[1], 0.0).result(60)
        assert sum(future.done() for future in many) < before + 30
    finally:
        for link in links:
            link.close(0)
