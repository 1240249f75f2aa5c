"""A call that ends as it is cancelled: both are done by threads of their own."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.processes import until
from zenos.calls import future as future_module
from zenos.calls import values, wire
from zenos.calls.future import CallFuture
from zenos.calls.link import Link, end_of, settle


class Forgets:
    """A link that is told what isn't wanted any more. Whoever asks meets the others first."""

    def __init__(self, waiters: int = 1) -> None:
        self.forgotten: list[int] = []
        self.asked = threading.Barrier(waiters)

    def cancel(self, number: int) -> None:
        self.forgotten.append(number)

    def ask(self) -> None:
        self.asked.wait(60)

    def lead(self, is_done: Callable[[], bool], timeout_s: float | None) -> float | None:
        return timeout_s

    def following(self, is_done: Callable[[], bool]) -> AbstractContextManager[None]:
        return nullcontext()


def made() -> tuple[CallFuture[Any], wire.Result]:
    future: CallFuture[Any] = CallFuture(cast("Link", Forgets()), 1, durable=False)
    return future, wire.Result(1, wire.DONE, values.dump(7))


def test_all_who_wait_until_it_is_accepted_hear_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two has seen that nobody waits yet."""
    made_by: list[threading.Event] = []
    meet = threading.Barrier(2)

    def event() -> threading.Event:
        made_by.append(threading.Event())
        with suppress(threading.BrokenBarrierError):
            meet.wait(0.5)  # for the other, if there can be one
        return made_by[-1]

    link = Forgets(waiters=2)
    future: CallFuture[Any] = CallFuture(cast("Link", link), 1, durable=True)
    with ThreadPoolExecutor(2) as threads:
        own = SimpleNamespace(Event=event, Lock=threading.Lock)
        monkeypatch.setattr(future_module, "threading", own)
        waiting = [threads.submit(future.wait_accepted, 5) for _ in range(2)]
        until(lambda: future._accepted is not None)
        future.accept()
        assert [one.result(60) for one in waiting] == [True, True]
    assert len(made_by) == 1  # who waits for another one waits in vain


def test_a_result_that_comes_after_it_was_cancelled_is_dropped() -> None:
    future, result = made()
    assert future.cancel()
    settle(future, 0.0, end_of(result, "f"))
    assert future.cancelled()


def test_a_result_that_comes_as_it_is_cancelled_is_dropped() -> None:
    """Between the two halves of cancelling."""
    future, result = made()
    assert concurrent.futures.Future.cancel(future)
    settle(future, 0.0, end_of(result, "f"))
    assert not future.takes_end()
    assert future.cancelled()


def test_what_has_ended_cannot_be_cancelled() -> None:
    future, result = made()
    settle(future, 0.0, end_of(result, "f"))
    assert not future.cancel()
    assert future.result() == 7


@pytest.mark.parametrize("seed", range(20))
def test_whoever_comes_first_it_ends_once_and_nobody_fails(seed: int) -> None:
    future, result = made()
    failed: list[BaseException] = []
    begin = threading.Barrier(2)

    def do(work: Any) -> None:
        begin.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the link's thread had died
            failed.append(error)

    both = [lambda: settle(future, 0.0, end_of(result, "f")), future.cancel]
    threads = [threading.Thread(target=do, args=(work,)) for work in both[:: 1 - 2 * (seed % 2)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert future.cancelled() or future.result() == 7
