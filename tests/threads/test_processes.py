"""Lanes that are processes: what is sent to them, how they die, and what is left then."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import until
from tests.threads import work
from zenos.core.errors import DeadlineError, InvalidError, LaneError, WorkerError
from zenos.core.processes import children, stat_fields
from zenos.threads import Options, Pool, wait_all


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Two processes."""
    fds = {path.name for path in Path("/proc/self/fd").iterdir()}
    with Pool(2, kind="process", grace_s=0.2) as made:
        yield made
    assert {path.name for path in Path("/proc/self/fd").iterdir()} <= fds
    assert not [pid for pid in children(os.getpid()) if _runs_a_lane(pid)]


def _runs_a_lane(pid: int) -> bool:
    try:
        return b"zenos.threads.lane" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def alive(pid: int) -> bool:
    fields = stat_fields(pid)
    return bool(fields) and fields[0] not in "ZX"


def test_lanes_are_started_once_and_are_not_this_process(pool: Pool) -> None:
    pids = set(pool.map(lambda _: os.getpid(), range(200), chunk=1))
    assert pids <= {lane.pid for lane in pool.snapshot().lanes}
    assert os.getpid() not in pids


def test_functions_go_by_value_with_what_they_close_over(pool: Pool) -> None:
    offset = 100

    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    (found,) = pool.map(lambda point: Point(point.x + offset), [Point(1)])
    assert isinstance(found, Point)
    assert found.x == 101


def test_common_data_is_sent_once_per_lane(pool: Pool) -> None:
    class Table:
        pickled = 0

        def __reduce__(self) -> tuple[type[dict[str, int]], tuple[()]]:
            Table.pickled += 1
            return dict, ()

    before = Table.pickled
    call = functools.partial(lambda table, item: (len(table), item), Table())
    assert list(pool.map(call, range(50), chunk=1)) == [(0, item) for item in range(50)]
    assert Table.pickled == before + 1


def test_more_functions_than_a_lane_keeps_still_work(pool: Pool) -> None:
    adders = [functools.partial(lambda a, b: a + b, n) for n in range(150)]
    for _ in range(2):
        assert wait_all(pool.submit(add, 1) for add in adders) == [n + 1 for n in range(150)]


@pytest.mark.parametrize("size", [0, 10, 70_000, 30_000_000])
def test_bytes_of_any_size_come_through_unharmed(pool: Pool, size: int) -> None:
    data = os.urandom(size)
    items = [data, bytearray(data), b"x"]
    back = list(pool.map(lambda item: item, items, chunk=3))
    assert back == items
    assert [type(item) for item in back] == [bytes, bytearray, bytes]
    assert pool.submit(lambda a, *, b: a + b, data, b=b"end").result(60) == data + b"end"


def test_arrays_come_through_and_can_be_written(pool: Pool) -> None:
    import numpy as np

    array = np.arange(100_000, dtype=np.int32).reshape(100, 1000)
    got = pool.submit(lambda a: a.__imul__(2), array).result(60)
    assert (got == array * 2).all()
    got[0] = 0


def test_an_error_brings_the_traceback_of_where_it_was_raised(pool: Pool) -> None:
    error = pool.submit(work.fail_at_five, 5).exception(60)
    assert isinstance(error, ValueError)
    assert "in fail_at_five" in str(error.__cause__)
    assert "five is refused" in str(error.__cause__)


def test_an_error_that_does_not_survive_the_way_is_told_in_words(pool: Pool) -> None:
    with pytest.raises(WorkerError, match=r"function raised .*OddError: this and that") as caught:
        pool.submit(work.odd).result(60)
    assert "in odd" in str(caught.value.__cause__)
    with pytest.raises(WorkerError, match="function raised SystemExit: 3"):
        pool.submit(work.leave).result(60)


def test_what_cannot_be_pickled_is_said_in_either_direction(pool: Pool, tmp_path: Path) -> None:
    marks = tmp_path / "marks"

    def unsendable() -> object:
        with marks.open("a") as file:
            file.write("x")
        return threading.Lock()

    with pytest.raises(InvalidError, match=r"cannot send the result back \(TypeError: .*lock"):
        pool.submit(unsendable, options=Options(retries=3)).result(60)
    assert marks.read_text() == "x"  # another try would end in the same
    with pytest.raises(InvalidError, match="cannot send the arguments of str to a process"):
        pool.submit(str, threading.Lock()).result(60)
    held = threading.Lock()
    with pytest.raises(InvalidError, match=r"to a process: .* use a pool of kind='thread'"):
        pool.submit(lambda: held)
    with pytest.raises(InvalidError, match="cannot send a pool to another process"):
        pool.submit(lambda: pool)
    assert pool.submit(work.square, 3).result(60) == 9


@pytest.mark.parametrize("way", ["kill", "segfault", "exit"])
def test_a_lane_that_dies_fails_its_thread_and_is_replaced(pool: Pool, way: str) -> None:
    deaths = pool.snapshot().lanes_died
    if way == "exit":
        future = pool.submit(os._exit, 7)
    else:
        number = signal.SIGKILL if way == "kill" else signal.SIGSEGV
        future = pool.submit(lambda: os.kill(os.getpid(), number))
    with pytest.raises(LaneError, match=r"cannot finish .*: its process ") as caught:
        future.result(60)
    said = {"kill": "SIGKILL", "segfault": "SIGSEGV", "exit": "ended with exit code 7"}[way]
    assert said in str(caught.value)
    assert pool.snapshot().lanes_died == deaths + 1
    until(lambda: [lane.state for lane in pool.snapshot().lanes] == ["idle"] * 2)
    assert list(pool.map(work.square, range(10))) == [x * x for x in range(10)]


def test_a_thread_whose_lane_died_is_tried_again_where_that_was_asked(
    pool: Pool, tmp_path: Path
) -> None:
    options = Options(retries=1, retry_on=(KeyError,))
    assert pool.submit(work.die_once, str(tmp_path / "m"), options=options).result(60) == "alive"


def test_a_lane_that_died_while_idle_costs_no_thread_a_try(pool: Pool) -> None:
    until(lambda: [lane.state for lane in pool.snapshot().lanes] == ["idle"] * 2)
    victims = [lane.pid for lane in pool.snapshot().lanes]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(alive, victims)))
    assert list(pool.map(work.square, range(4), chunk=1)) == [0, 1, 4, 9]


def test_a_storm_of_kills_loses_no_item_and_hangs_nothing(pool: Pool, tmp_path: Path) -> None:
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.05):
            for lane in pool.snapshot().lanes[:1]:
                if lane.pid and lane.state == "busy":
                    os.kill(lane.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        results = pool.map(
            lambda x: (time.sleep(0.001), x)[1],
            range(400),
            chunk=5,
            options=Options(retries=1000),
        )
        assert list(results) == list(range(400))
    finally:
        stop.set()
        killer.join()


def test_one_that_does_not_listen_is_killed_after_the_grace_time(
    pool: Pool, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    future = pool.submit(work.deaf, str(begun))
    until(begun.exists)
    (busy,) = [lane for lane in pool.snapshot().lanes if lane.state == "busy"]
    assert future.cancel()
    until(lambda: not alive(busy.pid))
    options = Options(timeout_s=0.1)
    with pytest.raises(DeadlineError):
        pool.submit(work.deaf, str(begun), options=options).result(60)
    until(lambda: [lane.state for lane in pool.snapshot().lanes] == ["idle"] * 2)
    assert pool.submit(work.square, 3).result(60) == 9


def test_lanes_know_their_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENOS_CPU", "4")
    names = ["OMP_NUM_THREADS", "RAYON_NUM_THREADS", "ZENOS_CPU", "TOKENIZERS_PARALLELISM"]
    with Pool(2, kind="process") as pool:
        assert list(pool.map(os.getenv, names)) == ["2", "2", "2", "true"]


def test_lanes_outlive_the_signals_that_are_meant_for_the_program(pool: Pool) -> None:
    assert pool.submit(lambda: os.kill(os.getpid(), signal.SIGINT)).result(60) is None
    assert pool.submit(lambda: os.kill(os.getpid(), signal.SIGTERM)).result(60) is None
    code = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    argv = [sys.executable, "-c", code]
    shown = pool.submit(subprocess.run, argv, capture_output=True, text=True, check=True).result(60)
    assert shown.stdout == "True\n"  # what they start has them as usual


def test_a_program_that_cannot_start_lanes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with (
        Pool(1, kind="process") as pool,
        pytest.raises(LaneError, match=r"no lane can be started .*/no/such/python"),
    ):
        pool.submit(work.square, 2).result(60)


PROGRAM = """
import os, sys, time
from zenos.threads import Pool
pool = Pool(2, kind="process")
futures = [pool.submit(time.sleep, 600) for _ in range(4)]
while not all(lane.state == "busy" for lane in pool.snapshot().lanes):
    time.sleep(0.01)
print(*[lane.pid for lane in pool.snapshot().lanes], flush=True)
if sys.argv[1] == "stay":
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["killed", "leaves"])
def test_lanes_end_with_the_program_that_started_them(end: str) -> None:
    argv = [sys.executable, "-c", PROGRAM, "stay" if end == "killed" else "go"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        lanes = [int(pid) for pid in program.stdout.readline().split()]
        assert len(lanes) == 2
        if end == "killed":
            program.kill()
        program.wait(60)
    until(lambda: not any(map(alive, lanes)))


SCRIPT = """
from zenos.threads import Pool

class Mine:
    def __init__(self, x):
        self.x = x

def double(mine):
    return Mine(mine.x * 2)

with Pool(2, kind="process") as pool:
    results = list(pool.map(double, [Mine(x) for x in range(5)]))
    assert all(isinstance(mine, Mine) for mine in results)
    print([mine.x for mine in results])
"""


def test_a_script_needs_no_guard_around_its_body(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    argv = [sys.executable, str(tmp_path / "script.py")]
    shown = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (shown.stdout, shown.stderr) == ("[0, 2, 4, 6, 8]\n", "")
