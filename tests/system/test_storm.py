"""A storm of kills: each task is run as often as its retries say, no more, and none is lost."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from contextlib import suppress

import pytest

from tests.processes import until
from tests.system.harness import AT_REST, System, family
from zenos.core import shim
from zenos.core.task import HOLDING, State


class Storm:
    """Tasks are submitted one by one, and after some of them something is killed."""

    def __init__(self, system: System, seed: int) -> None:
        self.system = system
        self.source = random.Random(seed)  # noqa: S311 - seeded, to be repeated
        self.hit: Counter[str] = Counter()
        self.retries: dict[str, int] = {}

    def rage(self, tasks: int, kills: int) -> None:
        """Submit all tasks, with so many kills in between."""
        self.system.start()
        when = set(self.source.sample(range(tasks), kills))
        for number in range(tasks):
            retries = self.source.choice([0, 0, 3])
            pause = self.source.random() / 5
            self.system.submit(number, f"sleep {pause:.3f}", memory="16MiB", retries=retries)
            self.retries[f"n{number}"] = retries
            if number in when:
                self.kill(self.source.choice(["daemon", "shim", "started"]))

    def kill(self, what: str) -> None:
        """Kill the daemon, and go on with another; or one shim or worker of those that live."""
        if what == "daemon":
            self.system.restart()
            return
        found = []
        for name, task in self.system.tasks().items():
            directory = str(self.system.home.run(task.id, task.generation))
            said = shim.read_record(directory, what)
            if task.state in HOLDING and said and shim.start_time(said["pid"]):
                found.append((name, int(said["pid"])))
        if found:
            name, pid = self.source.choice(sorted(found))
            self.hit[name] += 1
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def check(self) -> None:
        """None is lost, none is run more often than its retries say, the rest ran once."""
        tasks = self.system.finish()
        lines = self.system.lines()
        assert set(tasks) == set(self.retries), "a task was forgotten"
        for name, task in tasks.items():
            ran, retries = lines[int(name[1:])], self.retries[name]
            if name not in self.hit:
                assert (task.state, task.generation, ran) == (State.SUCCEEDED, 1, 1), (name, task)
            elif self.hit[name] <= retries:
                assert task.state is State.SUCCEEDED, (name, self.hit[name], task)
                assert ran >= 1, (name, task)
            else:
                # It may have ended just before, or not begun: then it was started again.
                assert task.state in (State.SUCCEEDED, State.FAILED, State.LOST), (name, task)
            # Where a shim dies before its worker begins, it is started again at no charge.
            assert ran <= min(task.generation, 1 + retries), (name, ran, task)
        # What has ended stays so, and nobody is left.
        until(lambda: len(family(self.system.home)) == AT_REST)
        self.system.restart()
        assert self.system.tasks() == tasks


@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm(system: System, seed: int) -> None:
    storm = Storm(system, seed)
    storm.rage(tasks=100, kills=20)
    storm.check()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3, 9))
def test_a_long_storm(system: System, seed: int) -> None:
    storm = Storm(system, seed)
    storm.rage(tasks=600, kills=150)
    storm.check()
