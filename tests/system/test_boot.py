"""kill -9 while the daemon boots, recovers or ends a task: the next one finds all as it was."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.crash import labels
from tests.crash.test_training import train
from tests.models.files import litter, state, write_model
from tests.processes import until
from tests.system.harness import AT_REST, System, family
from zenos.core import durable
from zenos.core.specs import ProgramSpec
from zenos.core.task import State, TaskSpec
from zenos.models.registry import Registry


def fewer(label: str, most: int, wanted: int) -> list[int]:
    """The first count, and others that the label's name chooses: always the same ones."""
    source = random.Random(label)  # noqa: S311 - a choice of tests
    return sorted({1, *source.sample(range(1, most + 1), min(wanted, most))})


def killed(system: System, plan: str) -> bool:
    """Start a daemon with a plan; whether it met it before it answered."""
    system.start(plan)
    return system.dead


@pytest.mark.parametrize("label", labels.DURABLE)
def test_a_first_boot_that_is_cut_off_anywhere_is_made_up_for(system: System, label: str) -> None:
    count = 0
    while killed(system, f"{label}=kill@{count + 1}"):
        assert system.gone() == -signal.SIGKILL
        count += 1
        # Each time it begins from nothing, but for what the last one has left.
        for path in (system.home.token, system.home.daemon):
            path.unlink(missing_ok=True)
    assert count >= 2, "the label isn't passed: this test proves nothing"
    system.restart()  # without a plan: what an end writes isn't meant
    system.submit(1)
    assert system.finish()["n1"].state is State.SUCCEEDED
    # What a write that was cut off has left beside its file: a task's goes with the task.
    assert not list(system.home.root.glob(f"{durable.TEMPORARY_PREFIX}*"))


PLANS = [f"{label}=kill@{count}" for label in labels.DAEMON for count in fewer(label, 3, 1)]


@pytest.mark.parametrize("plan", PLANS)
def test_recovery_that_is_cut_off_too_loses_nothing(system: System, plan: str) -> None:
    """One task goes on, one has ended meanwhile, some wait, one is finished, one was cancelled."""
    ended = system.ran.with_name("ended")
    system.start()
    (cpus,) = (node.node.capacity.cpu for node in system.ask(lambda client: client.nodes()))
    half = cpus / 2000
    system.submit(1)
    until(lambda: system.task(1).is_ended)
    finished = system.task(1)
    system.submit(2, system.hold, cpu=half)
    system.submit(3, f"while [ ! -e {ended} ]; do sleep 0.01; done; exit 4", cpu=half)
    workers = system.runs(2, 3)
    for number in (4, 5, 6):
        system.submit(number, cpu=half)
    # Tasks are counted in the order of their submission.
    system.ask(lambda client: client.cancel("t6"))
    system.kill()
    ended.touch()
    until(lambda: (system.home.run("t3", 1) / "exit").exists())
    for _ in range(2):  # the second recovery is cut off like the first
        system.start(plan)
        until(lambda: system.dead or not waits(system))
        if not system.dead:
            system.kill()
    system.start()
    # One that waited may run beside it already.
    assert len(set(workers).intersection(system.pids("started"))) == 1
    assert system.task(1) == finished
    system.released.touch()
    tasks = system.finish()
    states = {name: task.state for name, task in tasks.items()}
    done = dict.fromkeys(("n1", "n2", "n4", "n5"), State.SUCCEEDED)
    assert states == {**done, "n3": State.FAILED, "n6": State.CANCELLED}
    outcome = tasks["n3"].outcome
    assert outcome is not None
    assert outcome.exit_code == 4
    assert system.lines() == dict.fromkeys(range(1, 6), 1)


def waits(system: System) -> bool:
    """Whether something still waits that could run beside the one that goes on."""
    states = [task.state for task in system.tasks().values()]
    return states.count(State.SUCCEEDED) < 3


@pytest.mark.parametrize(
    "plan", [f"{name}=kill@{n}" for name in labels.group("loop.") for n in (3, 4, 5)]
)
def test_a_cancel_that_was_heard_holds(system: System, plan: str) -> None:
    system.start(plan)
    system.submit(1, system.hold, retries=3)
    system.runs(1)
    cancelled = system.ask(lambda client: client.cancel("t1"))
    assert cancelled.id == "t1"
    until(lambda: system.dead or system.task(1).is_ended)
    # From here on nobody asks for it again.
    if not system.dead:
        system.kill()
    system.start()
    assert system.finish()["n1"].state is State.CANCELLED
    until(lambda: len(family(system.home)) == AT_REST)
    assert system.lines() == {1: 1}


def test_where_it_is_started_from_means_nothing(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "torch.py").write_text("raise SystemExit('led astray')")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(tmp_path))
    system.start(afresh=True)
    assert system.process is not None
    assert Path(f"/proc/{system.process.pid}/cwd").readlink() == system.home.root
    made = system.ask(lambda client: client.create("m", "llama-nano").wait())
    assert made.state is State.SUCCEEDED, made
    spec = TaskSpec(work=ProgramSpec(argv=["/bin/sh", "-c", "pwd > where"]))
    told = system.ask(lambda client: client.submit(spec, key="where").wait())
    assert told.state is State.SUCCEEDED, told
    assert (tmp_path / "where").read_text().strip() == str(tmp_path)


def test_what_lies_in_the_home_is_its_owner_s_alone(system: System) -> None:
    system.home.root.mkdir(parents=True, exist_ok=True)
    system.home.root.chmod(0o755)
    system.start()
    system.submit(1)
    system.finish()
    readable = [
        path
        for path in system.home.root.rglob("*")
        if not path.is_symlink() and path.stat().st_mode & 0o077 and not path.is_socket()
    ]
    inside = (system.home.runs, system.home.models, system.home.checkpoints, system.home.cache)
    assert not [path for path in readable if not any(path.is_relative_to(f) for f in inside)]
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in inside)


def test_what_was_forgotten_just_before_a_crash_is_removed(system: System) -> None:
    system.start()
    system.submit(1)
    system.finish()
    system.kill()
    left = [system.home.runs / "t0", system.home.checkpoints / "t0"]
    stays = [system.home.runs / "t1", system.home.runs / "notes"]
    for path in (*left, *stays):
        path.mkdir(exist_ok=True)
    system.start()
    until(lambda: not any(path.exists() for path in left))
    assert all(path.exists() for path in stays)


def test_what_a_crash_has_left_of_a_model_is_removed(system: System, tmp_path: Path) -> None:
    registry = Registry(system.home.models)
    registry.publish("m", write_model(tmp_path / "m"))
    before = state(registry)
    orphan = system.home.models / "blobs" / "sha256" / "ab" / ("ab" * 32)
    half = orphan.parent.parent / f"{durable.TEMPORARY_PREFIX}1-abc"
    orphan.parent.mkdir(exist_ok=True)
    for path in (orphan, half):
        path.write_bytes(b"of a model that was never registered")
    assert len(litter(system.home.models)) == 2
    system.start()
    until(lambda: not litter(system.home.models))
    assert state(registry) == before


def test_what_a_training_saved_goes_with_its_end(system: System, tmp_path: Path) -> None:
    system.start()
    task = train(system, tmp_path / "nowhere", "failing")
    saved = system.home.checkpoint(task)
    saved.mkdir()  # long before its worker has said that there is no such text
    assert system.finish()["failing"].state is State.FAILED
    until(lambda: not saved.exists())
    # The daemon died between the end and the removal.
    system.kill()
    (saved / "step-1").mkdir(parents=True)
    system.start()
    until(lambda: not saved.exists())
    assert system.home.run(task, 1).exists()
