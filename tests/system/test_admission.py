"""A process outside zenos takes memory, for real: in a control group with room for little more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.processes import until
from tests.system.harness import System
from zenos.core import cgroups
from zenos.core.limits import MIB
from zenos.core.outlook import Why
from zenos.core.task import State

V1 = cgroups.ROOT / "memory"
LIMIT = 1024 * MIB


def parent() -> Path | None:
    """Where we may make a group with a memory limit."""
    if os.access(V1 / "cgroup.procs", os.W_OK):
        return V1
    with suppress(OSError):
        given = (cgroups.ROOT / "cgroup.subtree_control").read_text().split()
        if "memory" in given and os.access(cgroups.ROOT / "cgroup.procs", os.W_OK):
            return cgroups.ROOT
    return None


@contextmanager
def limited(base: Path) -> Iterator[Path]:
    """A group with `LIMIT` bytes of memory."""
    group = base / f"zenos-test-{os.getpid()}"
    group.mkdir()
    try:
        name = "memory.limit_in_bytes" if base == V1 else "memory.max"
        (group / name).write_text(str(LIMIT))
        yield group
    finally:
        until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@contextmanager
def inside(group: Path) -> Iterator[None]:
    """What is started here is started in that group."""
    controller = "memory" if group.parent == V1 else ""
    home = group.parent / cgroups.own_groups()[controller].lstrip("/")
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        back = home if home.exists() else group.parent
        (back / "cgroup.procs").write_text(str(os.getpid()))


def hog(size: int) -> subprocess.Popen[str]:
    """A process that holds so many bytes until its input ends."""
    code = f"held = bytearray({size}); print('there', flush=True); import sys; sys.stdin.read()"
    made = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert made.stdout is not None
    assert made.stdout.readline() == "there\n", made.wait(60)
    return made


@pytest.mark.skipif(parent() is None, reason="no memory cgroup that we may write")
def test_nothing_is_oversold_while_a_foreign_process_takes_memory(tmp_path: Path) -> None:
    base = parent()
    assert base is not None
    settings = ("memory=700MiB", "memory_margin=64MiB", "zygote=lazy", "enforcement=watchdog")
    with limited(base) as group:
        system = System(tmp_path, *settings)
        try:
            with inside(group):
                system.start(afresh=True)  # a fork would be where its server is
            # What zenos' own tasks use isn't foreign: it was given out.
            code = f"import signal; held = bytearray({250 * MIB}); signal.pause()"
            own = system.submit(1, f"{sys.executable} -c '{code}'", memory="300MiB")
            system.runs(1)
            with inside(group):
                other = hog(350 * MIB)
            with other:
                assert other.stdin is not None
                try:
                    until(lambda: withheld(system) > 100 * MIB)
                except AssertionError:
                    pytest.fail(seen(system, group, other.pid))
                large = system.submit(2, memory="400MiB")  # together with the first all there is
                system.submit(3, memory="64MiB")
                until(lambda: system.task(3).state is State.SUCCEEDED)
                assert system.task(2).state is State.QUEUED
                assert "is used by processes outside zenos" in why(system, large).reason
                other.stdin.close()
            until(lambda: system.task(2).state is State.SUCCEEDED)
            assert system.task(1).state is State.RUNNING
            system.ask(lambda client: client.cancel(own))
        finally:
            system.close()


def withheld(system: System) -> int:
    """Bytes of the node's capacity that are there for no task."""
    node = system.ask(lambda client: client.status()).nodes[0].node
    assert node.measured is not None
    return node.capacity.memory - min(node.capacity.memory, node.measured.memory_left)


def seen(system: System, group: Path, pid: int) -> str:
    """What there is to know where the daemon doesn't see that memory is used."""
    (usage,) = (*group.glob("memory.usage_in_bytes"), *group.glob("memory.current"))
    node = system.ask(lambda client: client.status()).nodes[0].node
    smaps = Path(f"/proc/{pid}/smaps_rollup").read_text()
    members = (group / "cgroup.procs").read_text().split()
    return (
        f"used: {usage.read_text()}; its members: {members}; of the process {pid}: {smaps}; "
        f"measured: {node.measured}; the log: {system.log}"
    )


def why(system: System, task: str) -> Why:
    return system.ask(lambda client: client.why(task))
