"""Shared memory: a full pool waits or refuses, only the writer writes, and what lies is refused."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from tests.bus.memory_peers import fork, held, in_fork, segments
from tests.processes import until
from zenos.bus import parcel, segment
from zenos.bus.memory import Buffer, Pool, size_class
from zenos.bus.view import View
from zenos.core import limits
from zenos.core.errors import (
    BusyError,
    ConflictError,
    DeadlineError,
    TooLargeError,
)

CANNOT = r"^cannot "
SMALL = limits.SEGMENT_BYTES_MIN
WHOLE = SMALL + segment.HEADER_BYTES


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Room for two of the smallest segments."""
    gc.collect()  # what earlier tests have left in cycles goes now, not meanwhile
    before = held()
    with Pool(2 * WHOLE) as made:
        yield made
    assert held() == before


# -- what a pool promises


def test_a_full_pool_refuses_or_is_waited_for_with_a_deadline(pool: Pool) -> None:
    kept = [pool.allocate(SMALL), pool.allocate(1)]
    with pytest.raises(BusyError, match=r"^cannot allocate \d+ bytes .* in use"):
        pool.allocate(1)
    with pytest.raises(DeadlineError, match=r"^cannot allocate .* in use for 0.01 s"):
        pool.allocate(1, wait_s=0.01)
    with pytest.raises(TooLargeError, match=r"^cannot allocate .* the pool has"):
        pool.allocate(3 * SMALL)
    kept.pop().release()
    with pytest.raises(BusyError, match=f": {WHOLE} of {2 * WHOLE} are in use"):
        pool.allocate(2 * SMALL)
    assert pool.state.written == len(kept)


@pytest.mark.parametrize("how", ["unlent", "reader", "writer's array", "parcel in a dead socket"])
def test_who_waits_gets_what_is_let_go(pool: Pool, how: str) -> None:
    _, buffer = pool.allocate(1), pool.allocate(1)
    with ExitStack() as last:
        if how == "unlent":
            last.callback(buffer.release)
        elif how == "writer's array":
            arrays = [buffer.memory[:1]]
            buffer.lend().close()
            last.callback(arrays.clear)
        elif how == "reader":
            last.enter_context(View(given := buffer.lend()))
            given.close()
        else:
            left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            last.enter_context(left)
            last.enter_context(right)
            with buffer.lend() as given:
                parcel.send(left, given)
        del buffer, _
        kept = pool.allocate(1)
        with pytest.raises(BusyError):
            pool.allocate(1)
        found: list[Buffer] = []
        waiting = threading.Thread(target=lambda: found.append(pool.allocate(1, wait_s=60)))
        waiting.start()
        until(lambda: pool._waiting)
        assert not found
    waiting.join(60)
    assert found
    del kept


def test_nobody_who_waits_is_overtaken(pool: Pool) -> None:
    kept = [pool.allocate(1), pool.allocate(1)]
    order: list[str] = []

    def wait(name: str, size: int) -> None:
        buffer = pool.allocate(size, wait_s=60)
        order.append(name)
        buffer.release()

    large = threading.Thread(target=wait, args=("large", SMALL + 10_000))
    large.start()
    until(lambda: len(pool._waiting) == 1)
    small = threading.Thread(target=wait, args=("small", 1))
    small.start()
    until(lambda: len(pool._waiting) == 2)
    kept.pop().release()
    with pytest.raises(BusyError):
        pool.allocate(1)
    assert order == []
    kept.pop().release()
    for thread in (large, small):
        thread.join(60)
    assert order == ["large", "small"]


def test_a_closed_pool_ends_the_waiting(pool: Pool) -> None:
    kept = [pool.allocate(1), pool.allocate(1)]
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            pool.allocate(1, wait_s=60)
        except ConflictError as error:
            failed.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(pool._waiting) == 3)
    pool.close()
    for thread in threads:
        thread.join(60)
    assert len(failed) == 3
    with pytest.raises(ConflictError):
        kept[0].lend()


class Between:
    """A pool's epoll, before whose waiting something else happens, once."""

    def __init__(self, pool: Pool, happens: Callable[[], object]) -> None:
        self.real, self.happens = pool._poll, happens
        pool._poll = self  # type: ignore[assignment]

    def poll(self, timeout_s: float, count: int = -1) -> list[tuple[int, int]]:
        if timeout_s > 0:
            happens, self.happens = self.happens, lambda: None
            happens()
        return self.real.poll(timeout_s, count)

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


def test_who_waits_hears_of_what_another_thread_has_collected(pool: Pool) -> None:
    kept, given = pool.allocate(1), pool.allocate(1).lend()
    Between(pool, lambda: (given.close(), pool.collect()))
    pool.allocate(1, wait_s=60).release()
    kept.release()


def test_a_pool_is_not_closed_under_those_who_wait(pool: Pool) -> None:
    kept = [pool.allocate(1), pool.allocate(1)]
    closing = threading.Thread(target=pool.close)

    def begin() -> None:
        closing.start()
        until(lambda: pool._closed)

    Between(pool, begin)
    with pytest.raises(ConflictError, match="cannot use a pool that was closed"):
        pool.allocate(1, wait_s=60)
    closing.join(60)
    del kept


def test_memory_that_the_system_does_not_give_is_an_error_and_not_a_signal() -> None:
    script = (
        "import resource; from zenos.bus.memory import Pool; from zenos.core.errors import *\n"
        "pool = Pool(2**40)\n"
        "for limited in (False, True):\n"
        "    if limited: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "    try: pool.allocate(2**21 if limited else 2**39)\n"
        "    except BusyError as error: print(error)\n"
        "assert pool.state.bytes == 0\n"
        "pool.allocate(2**10).memory[:] = bytes(2**10)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    told = run.stdout.splitlines()
    assert len(told) == 2
    assert all(line.startswith("cannot allocate ") for line in told), told


def test_idle_memory_is_used_again_and_given_back_on_demand(pool: Pool) -> None:
    first = pool.allocate(5).lend()
    number = first.handles[0].segment
    first.close()
    second = pool.allocate(SMALL).lend()
    assert second.handles[0].segment == number
    assert second.handles[0].generation == first.handles[0].generation + 1
    second.close()
    assert pool.trim() == WHOLE
    assert pool.state.bytes == 0


def resident(address: int) -> int:
    """Bytes of the mapping at that address that can be written without a page fault."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.startswith(f"{address:x}-"))
    return int(next(line for line in lines if line.startswith("Rss:")).split()[1]) * 1024


@pytest.mark.parametrize("prefault", [True, False])
def test_a_new_segment_s_pages_are_in_before_it_is_given_out(prefault: bool) -> None:
    with Pool(limits.MIB + WHOLE, prefault=prefault) as pool, pool.allocate(limits.MIB) as buffer:
        there = resident(buffer._use.segment.mapping._address)
        assert (there >= limits.MIB) == prefault, there


@hypothesis_given(st.integers(1, 2**40))
def test_a_size_class_wastes_at_most_a_quarter(size: int) -> None:
    found = size_class(size)
    assert size <= found <= max(SMALL, size * 1.25)
    assert size_class(found) == found


def test_an_event_loop_hears_that_there_is_something_to_collect(pool: Pool) -> None:
    poll = select.poll()
    poll.register(pool.fileno(), 1)
    given = pool.allocate(1).lend()
    pool.collect()
    assert poll.poll(0) == []
    given.close()
    assert poll.poll(10_000)
    assert pool.collect() == 1


# -- who may write


def test_only_the_writer_can_write(pool: Pool) -> None:
    with pool.allocate(8192).lend() as given, View(given) as view:
        fd = given.descriptors[0]
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 4096)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 5000)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 100)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 2**20)
        libc = ctypes.CDLL(None, use_errno=True)
        punch_hole, keep_size = 2, 1
        punched = libc.fallocate(fd, punch_hole | keep_size, ctypes.c_long(4096), ctypes.c_long(9))
        assert punched == -1
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0)
        with pytest.raises(TypeError, match="read-only"):
            view.memory()[0] = 1


def test_a_write_through_the_address_ends_its_process(pool: Pool) -> None:
    with pool.allocate(8).lend() as given, View(given) as view:
        mapping = view._mapping
        assert mapping is not None
        assert in_fork(lambda: ctypes.memset(mapping._address, 1, 1)) == -signal.SIGSEGV


def test_private_writes_stay_private(pool: Pool) -> None:
    buffer = pool.allocate(8)
    buffer.memory[:] = b"original"
    with buffer.lend() as given, View(given) as one, View(given) as other:
        one.private_memory()[:4] = b"mine"
        assert bytes(one.memory()) == b"mineinal"
        assert bytes(other.memory()) == b"original"
        with pytest.raises(TypeError, match="read-only"):
            one.memory()[0] = 1


def test_a_lent_or_released_buffer_is_not_written_or_lent_again(pool: Pool) -> None:
    lent, released = pool.allocate(1), pool.allocate(1)
    given = lent.lend()
    released.release()
    for buffer in (lent, released):
        with pytest.raises(ConflictError, match="cannot write"):
            _ = buffer.memory
        with pytest.raises(ConflictError, match="cannot lend"):
            buffer.lend()
    given.close()
    with pytest.raises(ConflictError):
        View(given)


# -- forks


def test_a_fork_holds_nothing_of_its_parents_pool(pool: Pool) -> None:
    others = segments()  # of other tests in this process, if there are any
    buffer = pool.allocate(10)
    memory = buffer.memory
    given = pool.allocate(10).lend()

    def look() -> bool:
        with pytest.raises(ConflictError):
            pool.allocate(1)
        with pytest.raises(ConflictError):
            buffer.lend()
        assert given._close.alive is False
        return segments() == others

    assert segments() - others == 5  # two, of which one is in a parcel
    assert in_fork(look) == 0
    assert in_fork(lambda: memory[0]) == -signal.SIGSEGV
    memory[0] = 1


def test_a_fork_of_a_reader_is_a_reader(pool: Pool) -> None:
    buffer = pool.allocate(4)
    buffer.memory[:] = b"text"
    ask, answer = os.pipe()
    with buffer.lend() as given:
        view = View(given)
    pid = fork()
    if pid == 0:
        os.close(answer)
        os.read(ask, 1)
        os._exit(0 if bytes(view.memory()) == b"text" else 1)
    os.close(ask)
    view.release()
    assert pool.state.lent == 1
    os.close(answer)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    until(lambda: pool.state.lent == 0)
