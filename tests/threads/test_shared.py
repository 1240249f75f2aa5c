"""Shared data: one version whole, never an older one, and the last one always."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.threads import work
from zenos.core.errors import DeadlineError, InvalidError
from zenos.threads import Pool, Shared, allocation, cancelled, cpus, report


def test_readers_see_versions_whole_in_order_and_the_last() -> None:
    shared = Shared((0, 0))
    last = 2000

    def read() -> list[int]:
        seen = [0]
        while seen[-1] < last:
            version, (a, b) = shared.wait(newer_than=seen[-1], timeout=60)
            assert a == b, "half of one version and half of another"
            seen.append(version)
        return seen

    with Pool(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        for number in range(1, last):
            assert shared.publish((number, number)) == number + 1
        for reader in readers:
            seen = reader.result(60)
            assert seen == sorted(set(seen))
            assert seen[-1] == last


def test_updates_from_many_threads_are_all_counted() -> None:
    shared = Shared(0)
    with Pool(4) as pool:
        list(pool.map(lambda _: shared.update(lambda value: value + 1), range(1000), chunk=10))
    assert shared.get() == (1001, 1000)


def test_nobody_else_publishes_while_an_update_is_made() -> None:
    shared = Shared(0)
    other = threading.Thread(target=lambda: shared.update(lambda value: value + 1))

    def slowly(value: int) -> int:
        other.start()
        other.join(0.2)  # it would have been done by now
        return value + 1

    assert shared.update(slowly) == (2, 1)
    other.join(60)
    assert shared.get() == (3, 2)


def test_a_change_that_fails_publishes_nothing() -> None:
    shared = Shared(1)
    with pytest.raises(ZeroDivisionError):
        shared.update(lambda value: value // 0)
    assert shared.get() == (1, 1)
    assert shared.update(lambda value: value + 1) == (2, 2)


def test_waiting_ends_at_its_deadline() -> None:
    shared = Shared("first")
    assert shared.wait(newer_than=0).value == "first"
    with pytest.raises(DeadlineError, match="cannot have a version newer than 1"):
        shared.wait(newer_than=1, timeout=0.01)


def test_a_waiter_is_woken_by_the_next_version() -> None:
    shared = Shared("first")
    got: list[str] = []
    waiter = threading.Thread(target=lambda: got.append(shared.wait(1, timeout=60).value))
    waiter.start()
    shared.publish("second")
    waiter.join(60)
    assert got == ["second"]


def test_sharing_with_a_process_is_refused_with_what_to_do_instead() -> None:
    shared = Shared(1)
    with (
        Pool(1, kind="process") as pool,
        pytest.raises(InvalidError, match=r"functools\.partial sends it once per lane"),
    ):
        pool.submit(lambda: shared.get())


def test_outside_of_lanes_nobody_is_cancelled(tmp_path: Path) -> None:
    assert not cancelled()
    report(0.5)
    assert work.square(2) == 4


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ZENOS_CPU": "2.5", "OMP_NUM_THREADS": "7", "ZENOS_TASK": "t1"}, 2.5),
        ({"OMP_NUM_THREADS": "7", "ZENOS_TASK": "t1"}, 7.0),
    ],
)
def test_cpus_are_those_of_the_allocation(environment: dict[str, str], expected: float) -> None:
    assert cpus(environment) == expected


@pytest.mark.parametrize(
    "environment", [{}, {"OMP_NUM_THREADS": "7"}, {"ZENOS_CPU": "many"}, {"ZENOS_CPU": "-1"}]
)
def test_cpus_are_else_those_of_this_process(environment: dict[str, str]) -> None:
    from zenos.core.cgroups import cpus_usable

    assert cpus(environment) == cpus_usable()


def test_there_is_a_lane_for_each_core_and_one_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [allocation.lanes_for(cores) for cores in (0.1, 1.0, 1.6, 3.0)] == [1, 1, 2, 3]
    monkeypatch.setenv("ZENOS_CPU", "3")
    with Pool() as pool:
        assert pool.lanes == 3
