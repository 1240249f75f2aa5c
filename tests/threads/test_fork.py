"""A program with a pool forks: in the child nothing hangs, and the parent notices nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zenos.threads.runner import Kind

PROGRAM = """
import concurrent.futures, os, sys
from pathlib import Path
from zenos.core.errors import InvalidError
from zenos.threads import Options, Pool, wait_all

kind, gate = sys.argv[1:]

def wait(path, value):
    from pathlib import Path
    import time
    while not Path(path).exists():
        time.sleep(0.005)
    return value

def refused(do):
    try:
        do()
    except InvalidError as error:
        assert "before a fork" in str(error) and "make a pool" in str(error), error
    else:
        sys.exit(f"not refused: {do}")

def in_child(pool, ended, future, results):
    for do in (
        lambda: pool.submit(abs, 1), lambda: list(pool.map(abs, [1])),
        lambda: list(pool.map_unordered(abs, [1])), lambda: pool.reduce(max, [1, 2]),
        lambda: pool.resize(3), pool.snapshot, future.result, future.exception,
        lambda: wait_all([future]), future.__await__, lambda: next(results),
    ):
        refused(do)
    results.close()
    assert not future.cancel() and not future.running() and not future.done()
    assert ended.result() == wait_all([ended])[0] == 1
    with Pool(2, kind=kind) as own:
        assert list(own.map(abs, [-3, 4])) == [3, 4]

child = 0
try:
    with Pool(2, kind=kind) as pool:
        ended = pool.submit(abs, -1)
        assert ended.result() == 1
        results = pool.map(lambda path: wait(path, path), [gate] * 3, chunk=1)
        future = pool.submit(wait, gate, 7)
        child = os.fork()
        if not child:
            in_child(pool, ended, future, results)
            raise KeyError  # which is no reason to cancel what is the parent's
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        pids = {lane.pid for lane in pool.snapshot().lanes}
        Path(gate).touch()
        assert future.result(60) == 7
        assert list(results) == [gate] * 3
        assert {lane.pid for lane in pool.snapshot().lanes} >= pids, "none was replaced"
except KeyError:
    assert not child
    sys.exit(0)
print("done")
"""
RETURNS = """
import os, sys
from zenos.threads import Pool
with Pool(1) as pool:
    child = pool.submit(os.fork).result()
    print("returned", flush=True)
    os.waitpid(child, 0)
"""


def run(program: str, *arguments: object) -> str:
    """What it prints. TimeoutExpired where it hangs."""
    argv = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            said, error = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, error
    assert error == ""
    return said


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_pool_in_a_fork_is_refused_and_closed_and_stays_the_parents(
    kind: Kind, tmp_path: Path
) -> None:
    assert run(PROGRAM, kind, tmp_path / "gate") == "done\n"


def test_a_function_that_forks_on_an_os_thread_returns_once() -> None:
    assert run(RETURNS) == "returned\n"
