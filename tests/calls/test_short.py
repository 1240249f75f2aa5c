"""No descriptors are left: in a host, or in a lane. Calls end rightly or with an error that says
so, and all goes on once there are some."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import zenos
from tests.calls import work
from tests.processes import until
from tests.system.harness import System
from zenos.core import processes, shim
from zenos.core.errors import LaneError

LARGE = 100_000  # goes beside a packet, by descriptor


def host_pid(system: System) -> int:
    """The process of the host that has just been used."""
    (view,) = system.ask(lambda client: client.tasks(kind="call", state="running"))
    run = system.home.run(view.task.id, view.task.generation)
    record = shim.read_record(str(run), "started")
    assert record is not None
    return int(record["pid"])


@contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))  # it has those below
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_a_host_without_descriptors_goes_on(system: System, tmp_path: Path) -> None:
    system.start()
    assert zenos.call(work.increment, 1, lanes=2, keep_alive_s=600).result(60) == 2
    host = host_pid(system)
    until(lambda: len(processes.children(host)) == 2)
    with without_descriptors(host):
        durable = [zenos.call(work.increment, n, lanes=2, keep_alive_s=600) for n in range(500)]
        assert [future.result(60) for future in durable] == list(range(1, 501))
        with pytest.raises(LaneError, match=r"cannot take the result.*Too many open files"):
            zenos.call(bytes, LARGE, lanes=2, keep_alive_s=600).result(60)
        with pytest.raises(LaneError, match="SIGKILL"):
            zenos.call(work.note_and_die, os.devnull, lanes=2, keep_alive_s=600).result(60)
        again = zenos.call(work.increment, 1, lanes=2, keep_alive_s=600)
        assert again.result(60) == 2
        with pytest.raises(LaneError, match="SIGKILL"):
            zenos.call(work.note_and_die, os.devnull, lanes=2, keep_alive_s=600).result(60)
        with pytest.raises(LaneError, match=r"no lane can be started.*Too many open files"):
            zenos.call(work.increment, 1, lanes=2, keep_alive_s=600).result(60)
        large = zenos.call(len, bytes(LARGE), lanes=2, keep_alive_s=600)
        assert large.wait_accepted(60)
    assert large.result(60) == LARGE
    assert len(zenos.call(bytes, LARGE, lanes=2, keep_alive_s=600).result(60)) == LARGE
    until(lambda: len(processes.children(host)) == 2)
    assert host_pid(system) == host


def test_a_call_waits_for_descriptors(system: System) -> None:
    system.start()
    assert zenos.call(work.increment, 1, lanes=2, keep_alive_s=600).result(60) == 2
    with without_descriptors(host_pid(system)):
        large = zenos.call(len, bytes(LARGE), lanes=2, keep_alive_s=600)
        assert large.wait_accepted(60)
    assert large.result(60) == LARGE


@pytest.mark.parametrize("durable", [False, True])
def test_a_lane_without_descriptors_gives_way_to_another(shared: System, durable: bool) -> None:
    assert zenos.call(work.use_up_descriptors, durable=False).result(60) == b""
    calls = [zenos.call(len, bytes(LARGE), durable=durable) for _ in range(8)]
    assert [call.result(60) for call in calls] == [LARGE] * 8
    end_lane(durable)
    calls = [zenos.call(bytes, LARGE, durable=durable) for _ in range(8)]
    assert [call.result(60) for call in calls] == [bytes(LARGE)] * 8
    end_lane(durable)
    assert zenos.call(work.use_up_descriptors, durable=False).result(60) == b""
    small = [zenos.call(work.increment, 1, durable=durable) for _ in range(8)]
    assert [call.result(60) for call in small] == [2] * 8


def end_lane(durable: bool) -> None:
    """It can't send a result, says so, and ends: the next one begins with all descriptors."""
    with pytest.raises(LaneError, match=r"cannot send a result of .* bytes back"):
        zenos.call(work.use_up_descriptors, LARGE, durable=durable).result(60)
