"""Mixed work with random kills of workers and of the daemon: all of it ends rightly.

Programs with and without retries, programs that save their state, trainings, and work that comes
after other work; paused, suspended, cancelled, and the machine drained, while something is killed
every now and then.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.crash.test_training import text, train, weights  # noqa: F401 - a fixture
from tests.processes import until
from tests.system.harness import AT_REST, System, family
from zenos.core import shim
from zenos.core.errors import ConflictError, NotFoundError, RefusedError
from zenos.core.task import HOLDING, State, Task

UNITS = 40
COUNTS = f"""
import os, sys, time
import zenos

path = sys.argv[1]
done = int(open(path).read()) if os.path.exists(path) else 0
while done < {UNITS}:
    time.sleep(0.02)
    done += 1
    with open(path + ".part", "w") as file:
        file.write(str(done))
    os.replace(path + ".part", path)
    if zenos.task.should_yield():
        zenos.task.yielded()
"""
RETRIES = 5  # of what saves its state: never killed more often here
KINDS = ("plain", "plain", "plain", "child", "counts", "train")
VERBS = ("pause", "suspend", "resume", "resume", "resume", "cancel")
KILLS = ("daemon", "shim", "started", "started")


class Mixture:
    """What was submitted under which name, and what was done to it."""

    def __init__(self, system: System, corpus: Path, seed: int) -> None:
        self.system = system
        self.corpus = corpus
        self.source = random.Random(seed)  # noqa: S311 - to be repeated
        self.kinds: dict[str, str] = {}
        self.retries: dict[str, int] = {}
        self.parents: dict[str, str] = {}
        self.hit: Counter[str] = Counter()
        self.cancelled: set[str] = set()
        self.drained = False

    def rage(self, tasks: int, trainings: int, over_s: float) -> None:
        """Submit all of it in so many seconds, and do something after each."""
        self.system.start()
        kinds = [self.source.choice(KINDS[:-1]) for _ in range(tasks - trainings)]
        kinds += ["train"] * trainings
        self.source.shuffle(kinds)
        began = time.monotonic()
        for number, kind in enumerate(kinds):
            self.submit(number, kind)
            self.happens()
            due = began + over_s * (number + 1) / tasks
            while time.monotonic() < due:
                self.happens()
        self.system.ask(lambda client: client.uncordon("local"))

    def submit(self, number: int, kind: str) -> None:
        name = f"n{number}"
        self.kinds[name], self.retries[name] = kind, self.source.choice([0, 0, 3])
        script = f"sleep {self.source.random():.3f}"
        match kind:
            case "train":
                train(self.system, self.corpus, name, steps=40, memory="700MiB")
            case "counts":
                self.retries[name] = RETRIES
                argv = [sys.executable, "-c", COUNTS, str(self.counted(name))]
                usual = {"name": name, "key": name, "cpu": 0.1, "memory": "256MiB"}
                self.system.ask(
                    lambda client: client.submit(argv, yields="helper", retries=RETRIES, **usual)  # type: ignore[arg-type]
                )
            case "child" if len(self.kinds) > 1:
                parent = self.source.choice([n for n in self.kinds if n != name])
                self.parents[name] = parent
                retries = self.retries[name]
                self.system.submit(
                    number, script, memory="16MiB", retries=retries, after=[self.id(parent)]
                )
            case _:
                retries = self.retries[name]
                self.system.submit(number, script, memory="16MiB", retries=retries)

    def counted(self, name: str) -> Path:
        return self.system.ran.with_name(f"count-{name}")

    def id(self, name: str) -> str:
        return self.system.tasks()[name].id

    def happens(self) -> None:
        """Mostly nothing; else something is said to a task or to the machine, or is killed."""
        what = self.source.random()
        if what < 0.15:
            self.kill(self.source.choice(KILLS))
        elif what < 0.35:
            self.say(self.source.choice(VERBS))
        elif what < 0.40 or (self.drained and what < 0.60):
            self.drained = not self.drained
            verb = "drain" if self.drained else "uncordon"
            self.system.ask(lambda client: getattr(client, verb)("local"))
        else:
            time.sleep(0.02)

    def say(self, verb: str) -> None:
        live = [task for task in self.system.tasks().values() if not task.is_ended]
        if not live:
            return
        task = self.source.choice(live)
        with suppress(ConflictError, RefusedError):
            self.system.ask(lambda client: getattr(client, verb)(task.id))
        if verb == "cancel":
            self.cancelled.add(task.name)

    def kill(self, what: str) -> None:
        if what == "daemon":
            self.system.restart()
            return
        found = []
        for name, task in self.system.tasks().items():
            may = self.kinds[name] != "counts" or self.hit[name] < RETRIES
            said = shim.read_record(str(self.system.home.run(task.id, task.generation)), what)
            if may and task.state in HOLDING and said and shim.start_time(said["pid"]):
                found.append((name, int(said["pid"])))
        if found:
            name, pid = self.source.choice(sorted(found))
            self.hit[name] += 1
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def finish(self) -> dict[str, Task]:
        """Everything that is held goes on; then all of it ends."""

        def ended() -> bool:
            tasks = self.system.tasks().values()
            for task in tasks:
                if task.held is not None:
                    with suppress(ConflictError, RefusedError, NotFoundError):
                        self.system.ask(lambda client, task=task: client.resume(task.id))  # type: ignore[misc]
            return all(task.is_ended for task in tasks)

        until(ended, 300)
        return self.system.tasks()

    def check(self) -> None:
        tasks, lines = self.finish(), self.system.lines()
        assert set(tasks) == set(self.kinds), "a task was forgotten"
        for name, task in tasks.items():
            where = (name, self.kinds[name], self.hit[name], task)
            parent = tasks[self.parents[name]] if name in self.parents else None
            if parent is not None and parent.state is not State.SUCCEEDED:
                assert (task.state, task.generation) == (State.CANCELLED, 0), where
            elif name in self.cancelled:
                assert task.is_ended, where
            elif self.kinds[name] == "train" or self.hit[name] <= self.retries[name]:
                assert task.state is State.SUCCEEDED, where
            else:
                assert task.state in (State.SUCCEEDED, State.FAILED, State.LOST), where
            if self.kinds[name] in ("plain", "child"):
                assert lines[int(name[1:])] <= min(task.generation, 1 + self.retries[name]), where
            if self.kinds[name] == "counts" and task.state is State.SUCCEEDED:
                assert int(self.counted(name).read_text()) == UNITS, where
        models = [n for n in tasks if self.kinds[n] == "train"]
        done = [name for name in models if tasks[name].state is State.SUCCEEDED]
        assert len({weights(self.system, name) for name in done}) <= 1, "weights differ"
        until(lambda: len(family(self.system.home)) <= AT_REST + 1)  # the zygote, with trainings


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[System]:
    """A machine with room for some of it at once."""
    made = System(tmp_path, "zygote=lazy", "cpus=4", "residence_s=0", "cancel_grace_s=2")
    yield made
    made.close()


def test_mixed_work_ends_rightly_under_kills(roomy: System, text: Path) -> None:  # noqa: F811
    mixture = Mixture(roomy, text, 1)
    mixture.rage(tasks=40, trainings=3, over_s=10.0)
    mixture.check()


@pytest.mark.soak
@pytest.mark.parametrize("seed", [2, 3])
def test_much_mixed_work_for_five_minutes(
    roomy: System,
    text: Path,  # noqa: F811
    seed: int,
) -> None:
    mixture = Mixture(roomy, text, seed)
    mixture.rage(tasks=200, trainings=20, over_s=240.0)
    mixture.check()
