"""pause, suspend, resume and nice at the command line and in both clients."""

from __future__ import annotations

import pytest

import zenos as package
from tests.cli.conftest import Daemon, until, zenos
from zenos.core.errors import ConflictError, InvalidError
from zenos.core.home import Home


def submit(daemon: Daemon, name: str, *flags: str) -> str:
    task = zenos("submit", "--name", name, "--cpu", "0.1", *flags, "--", "work").out.strip()
    until(lambda: daemon.state(task) == "running")
    return task


def test_pause_and_resume_several(daemon: Daemon) -> None:
    tasks = [submit(daemon, "one"), submit(daemon, "two")]
    assert zenos("pause", "--wait", *tasks).err == "one is paused\ntwo is paused\n"
    assert {daemon.state(task) for task in tasks} == {"paused"}
    listed = zenos("ps").out
    assert "paused; zenos resume" in listed
    assert "paused; zenos resume" in zenos("show", "one").out
    ran = zenos("resume", "one", "--json")
    assert [task["name"] for task in (t["spec"] for t in ran.json)] == ["one"]
    until(lambda: daemon.state(tasks[0]) == "running")
    # What can't be for one is done for the others, and the exit code says so.
    mixed = zenos("pause", "two", "one", "--json")
    assert mixed.code == 4
    assert '"message": "cannot pause' in mixed.err
    assert [task["id"] for task in mixed.json] == [tasks[0]]
    assert zenos("cancel", "--wait", *tasks).code == 0


def test_what_is_refused_is_said_with_its_exit_code(daemon: Daemon) -> None:
    submit(daemon, "job")
    for args, code, said in (
        (("suspend", "job"), 4, "--yields signals or helper"),
        (("resume", "job"), 4, "neither paused nor held"),
        (("resume", "job", "--inexact"), 2, "no training"),
        (("nice", "job", "-p", "nan"), 2, "low, normal, high or 0 to 100"),
        (("nice", "job", "-p", "101"), 2, "from 0 to 100"),
        (("nice", "job"), 2, "--priority"),
        (("pause", "nobody"), 3, "cannot find"),
        (("submit", "--yields", "maybe", "--", "ls"), 2, "yields"),
    ):
        ran = zenos(*args)
        assert ran.code == code, (args, ran.err)
        assert said in ran.err, (args, ran.err)
    assert zenos("nice", "job", "-p", "high").err == "job has priority 75\n"


def test_suspend_in_the_queue_holds_it_there(daemon: Daemon) -> None:
    first = zenos("submit", "--name", "first", "--cpu", "4", "--", "work").out.strip()
    second = zenos("submit", "--name", "second", "--cpu", "4", "--", "work").out.strip()
    until(lambda: daemon.state(first) == "running")
    said = zenos("suspend", "--wait", "second").err
    assert said == f"second is held; 'zenos resume {second}' lets it go on\n"
    assert zenos("cancel", "--wait", "first").code == 0
    assert daemon.state(second) == "queued"
    assert "held: suspended" in zenos("show", "second").out
    zenos("resume", "second")
    until(lambda: daemon.state(second) == "running")


async def test_both_clients_have_them(daemon: Daemon, home: Home) -> None:
    with package.connect() as client:
        handle = client.submit(["work"], name="job", cpu=0.1, yields="helper")
        until(lambda: daemon.state(handle.id) == "running")
        assert handle.nice("low").spec.priority == 25
        assert handle.pause().state == "pausing"
        until(lambda: daemon.state(handle.id) == "paused")
        with pytest.raises(ConflictError):
            client.pause(handle.id)
        handle.resume()
        until(lambda: daemon.state(handle.id) == "running")
        with pytest.raises(InvalidError):
            client.nice(handle.id, 101)
    async with package.connect_async() as other:
        again = await other.task("job")
        assert (await again.nice(80)).spec.priority == 80
        assert (await again.pause()).state == "pausing"
        until(lambda: daemon.state(again.id) == "paused")
        await again.resume()
        until(lambda: daemon.state(again.id) == "running")
        assert (await again.suspend()).held == "suspend"
