"""Room for groups with limits in cgroup v2, wherever the daemon is started.

On a fake with the kernel's rules, and on the kernel's own hierarchy where one may be mounted: with
whatever controller it has there, since memory's may belong to version 1.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.processes import until
from tests.workers.groups import ME, TOP, FakeGroups
from zenos.core import cgroups
from zenos.core.cgroups import Files, Room, close_room, make_room, own_directories

NAME = "zenos-0123456789ab"
LEAF = f"{NAME}-daemon"
OTHER = "zenos-ba9876543210"


def room_in(files: FakeGroups, own: str, name: str = NAME) -> Room:
    """Room for a daemon that is in `own`, and a worker's group that has its limit."""
    directory = own_directories(TOP, own, files)[0]
    room = make_room(directory, name, "memory", ["cpu"], files)
    assert room is not None
    worker = room.base / "t1-1"
    files.make(worker)
    assert "memory" in files.available(worker)
    files.groups[worker].add(77)  # it can be entered
    return room


def end(files: FakeGroups, room: Room) -> None:
    files.groups[room.base / "t1-1"].clear()
    files.remove(room.base / "t1-1")
    close_room(room, files)


def test_in_a_scope_with_the_command_that_waits_for_it() -> None:
    files = FakeGroups("cpu memory pids")
    scope = files.add("user.slice/run-r1.scope", ME, 50)
    room = room_in(files, "/user.slice/run-r1.scope")
    assert room.controllers == {"memory", "cpu"}
    assert files.groups[scope] == set()
    assert files.groups[scope / LEAF] == {ME, 50}
    end(files, room)
    # As it was: whoever goes on there can be in a group of its own.
    assert files.groups[scope] == {ME, 50}
    assert files.given[scope] == set()
    assert files.children(scope) == []


def test_in_a_container_that_is_its_own_root() -> None:
    files = FakeGroups("cpu memory", namespace=True)
    files.groups[TOP] |= {1, ME, 50}
    room = room_in(files, "/")
    assert files.groups[TOP / LEAF] == {1, ME, 50}
    end(files, room)
    assert files.groups == {TOP: {1, ME, 50}}


def test_at_the_true_root_nothing_is_moved() -> None:
    files = FakeGroups("memory")
    files.groups[TOP] |= {1, 2, ME}
    room = room_in(files, "/")
    assert room.leaf is None
    assert files.groups[TOP] == {1, 2, ME}
    end(files, room)
    assert "memory" in files.given[TOP]  # others may count on it


def test_a_container_that_sees_only_the_end_of_its_name() -> None:
    files = FakeGroups("memory", namespace=True)
    inner = files.add("group", ME)
    assert own_directories(TOP, "/docker/0a1b/group", files)[0] == inner
    assert room_in(files, "/docker/0a1b/group").base == inner / NAME


@pytest.mark.parametrize("name", [NAME, OTHER])
def test_the_next_daemon_makes_its_room_beside_the_leaf_of_the_last(name: str) -> None:
    files = FakeGroups("memory", namespace=True)
    files.groups[TOP].add(ME)
    first = room_in(files, "/")
    # It was killed, and the shell that was moved with it starts another.
    second = room_in(files, f"/{LEAF}", name)
    assert second.base == TOP / name
    assert files.groups[TOP / LEAF] == {ME}
    if name == OTHER:  # two homes: the first that ends leaves the other its limits
        end(files, second)
        assert "memory" in files.given[TOP]
        second = first
    end(files, second)
    assert files.groups == {TOP: {ME}}


def test_workers_that_go_on_keep_their_groups() -> None:
    files = FakeGroups("memory", namespace=True)
    files.groups[TOP].add(ME)
    room = room_in(files, "/")
    close_room(room, files)
    assert files.groups[room.base / "t1-1"] == {77}
    assert "memory" in files.given[TOP]


def test_processes_of_others_are_not_moved() -> None:
    files = FakeGroups("memory")
    scope = files.add("a.scope", ME, 50)
    files.strangers.add(50)
    with pytest.raises(OSError, match="processes of others"):
        room_in(files, "/a.scope")
    assert files.groups[scope] == {ME, 50}
    assert files.children(scope) == []


def test_what_may_not_be_written_stays_as_it_is() -> None:
    files = FakeGroups("memory")
    scope = files.add("a.scope", ME)
    files.read_only.add(scope)
    with pytest.raises(PermissionError):
        room_in(files, "/a.scope")
    assert files.groups[scope] == {ME}
    files = FakeGroups("pids")
    files.add("a.scope", ME)
    assert make_room(TOP / "a.scope", NAME, "memory", [], files) is None


@pytest.fixture
def mounted() -> Iterator[Path]:
    """The kernel's own version 2, with a group that we may do everything in."""
    top = Path(tempfile.mkdtemp(prefix="zt-cgroup-"))
    done = subprocess.run(["mount", "-t", "cgroup2", "none", top], capture_output=True)
    try:
        if done.returncode or not (top / "cgroup.controllers").read_text().split():
            pytest.skip("no cgroup v2 with a controller can be mounted here")
        group = top / f"zenos-test-{os.getpid()}"
        group.mkdir()
        controller = (top / "cgroup.controllers").read_text().split()[0]
        given = (top / "cgroup.subtree_control").read_text().split()
        (top / "cgroup.subtree_control").write_text(f"+{controller}")
        yield group
        with suppress(FileNotFoundError):
            group.rmdir()
        if controller not in given:
            with suppress(OSError):  # another's test needs it still
                (top / "cgroup.subtree_control").write_text(f"-{controller}")
    finally:
        subprocess.run(["umount", top], capture_output=True)
        top.rmdir()


def test_the_kernel_itself_gives_room_among_running_processes(mounted: Path) -> None:
    controller = (mounted / "cgroup.controllers").read_text().split()[0]
    files = Files()
    # Not ourselves: the whole suite would be moved.
    with subprocess.Popen(["sleep", "600"]) as first, subprocess.Popen(["sleep", "600"]) as second:
        try:
            for process in (first, second):
                (mounted / "cgroup.procs").write_text(str(process.pid))
            with pytest.raises(OSError, match="busy"):
                (mounted / "cgroup.subtree_control").write_text(f"+{controller}")
            room = make_room(mounted, NAME, controller, [], files)
            assert room is not None
            assert (mounted / "cgroup.procs").read_text() == ""
            worker = room.base / "t1-1"
            worker.mkdir()
            assert controller in (worker / "cgroup.controllers").read_text().split()
            (worker / "cgroup.procs").write_text(str(second.pid))
            close_room(room, files)  # a worker goes on
            assert worker.exists()
            second.kill()
            second.wait()
            until(lambda: (worker / "cgroup.procs").read_text() == "")
            worker.rmdir()
            close_room(room, files)
            assert (mounted / "cgroup.procs").read_text().split() == [str(first.pid)]
            assert [path for path in mounted.iterdir() if path.is_dir()] == []
        finally:
            for process in (first, second):
                process.kill()
                process.wait()
            until(lambda: not (mounted / "cgroup.procs").read_text())


def test_a_process_finds_itself_under_its_own_name() -> None:
    for controller, group in cgroups.own_groups().items():
        base = cgroups.ROOT / controller
        if (base / "cgroup.procs").exists():
            own = own_directories(base, group)[0]
            assert str(os.getpid()) in (own / "cgroup.procs").read_text().split()
