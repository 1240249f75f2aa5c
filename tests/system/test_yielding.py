"""Real programs are paused, suspended and resumed, and the daemon is killed meanwhile."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import until
from tests.system.harness import System
from zenos.core import processes, shim
from zenos.core.errors import ConflictError, RefusedError
from zenos.core.task import State, Task

# Two writers, one of them in a session of its own: `count` files grow while they run.
COUNTS = """
count() { while true; do echo x >> "$1"; sleep 0.01; done; }
export -f count
setsid bash -c "count {0}/child" &
count {0}/parent
"""
SAVES = """
import os, signal, sys, time
import zenos

path, how, released = sys.argv[1:]
done = int(open(path).read()) if os.path.exists(path) else 0
asked = []
if how == "signals":
    signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
print(f"begins at {done}\\n", end="", flush=True)
while not os.path.exists(released):
    done += 1
    time.sleep(0.01)
    if asked or zenos.task.should_yield():
        with open(path, "w") as file:
            file.write(str(done))
        print(f"saved {done}\\n", end="", flush=True)
        zenos.task.yielded()
"""


def sizes(folder: Path) -> list[int]:
    """How much each counter has written."""
    return [
        (folder / name).stat().st_size if (folder / name).exists() else 0
        for name in ("parent", "child")
    ]


def grows(folder: Path) -> None:
    """Wait until both counters have written more than now."""
    before = sizes(folder)
    until(lambda: all(now > then for now, then in zip(sizes(folder), before, strict=True)), 60)


def all_stopped(system: System, task: Task) -> bool:
    """Whether every process of the task is stopped by the kernel."""
    record = shim.read_record(str(system.home.run(task.id, task.generation)), "shim")
    assert record is not None
    found = shim.descendants(int(record["pid"]))
    return bool(found) and all((processes.stat_fields(pid) or "X")[0] in "TtX" for pid in found)


def submit(system: System, argv: list[str], name: str = "n1", **options: object) -> str:
    """A program by its arguments; its id."""
    usual: dict[str, object] = {"cpu": 0.1, "memory": "256MiB", "name": name, "key": name}
    return system.ask(lambda client: client.submit(argv, **{**usual, **options}).id)  # type: ignore[arg-type]


def say(system: System, verb: str, task: str) -> Task:
    """`pause`, `suspend` or `resume`."""
    return system.ask(lambda client: getattr(client, verb)(task))


def state(system: System) -> State:
    return system.task(1).state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "counts"
    made.mkdir()
    return made


def counts(system: System, folder: Path) -> str:
    """A program of two processes that count; its id, once both do."""
    script = COUNTS.replace("{0}", str(folder)).strip()
    task = submit(system, ["bash", "-c", script])
    grows(folder)
    return task


def test_a_paused_program_does_nothing_across_the_daemons_end_and_goes_on(
    system: System, folder: Path
) -> None:
    system.start()
    task = counts(system, folder)
    say(system, "pause", task)
    until(lambda: state(system) is State.PAUSED)
    assert all_stopped(system, system.task(1))
    then = sizes(folder)
    with pytest.raises(ConflictError, match="paused already"):
        say(system, "pause", task)
    with pytest.raises(RefusedError, match="--yields"):
        say(system, "suspend", task)
    assert system.shut_down("suspend") == 0
    system.start()
    assert state(system) is State.PAUSED
    assert system.shut_down("drain") == 0  # it doesn't wait for what somebody paused
    system.start()
    assert all_stopped(system, system.task(1))
    assert sizes(folder) == then
    view = system.ask(lambda client: client.look(task))
    assert view.waits == f"paused; zenos resume {task}"

    say(system, "resume", task)
    until(lambda: state(system) is State.RUNNING)
    grows(folder)
    assert system.task(1).generation == 1

    say(system, "pause", task)
    until(lambda: state(system) is State.PAUSED)
    system.ask(lambda client: client.cancel(task))
    until(lambda: state(system) is State.CANCELLED)
    outcome = system.task(1).outcome
    assert outcome is not None
    assert outcome.signal == signal.SIGTERM  # it was heard, though it was frozen


class Lethal(System):
    """Its daemons are killed by files in `armed`, each named after where one dies."""

    def start(self, plan: str = "") -> None:
        self.armed.mkdir(exist_ok=True)
        super().start(plan or f"dir:{self.armed}")

    @property
    def armed(self) -> Path:
        return self.ran.with_name("armed")


@pytest.fixture
def lethal(tmp_path: Path) -> Iterator[Lethal]:
    made = Lethal(tmp_path, "zygote=lazy")
    made.start()
    yield made
    made.close()


def insist(system: System, verb: str, task: str) -> None:
    """Ask for it until it has been decided, whoever dies meanwhile."""
    try:
        say(system, verb, task)
    except ConflictError:
        return  # decided before the one that was asked died


def die(system: Lethal, label: str, verb: str, task: str) -> None:
    """The daemon is killed at that label as it does what `verb` asks; another one has started."""
    assert system.process is not None
    first = system.process
    (system.armed / f"{label}=kill").touch()
    insist(system, verb, task)
    until(lambda: first.poll() is not None, 60)
    assert first.returncode == -signal.SIGKILL
    insist(system, verb, task)


@pytest.mark.parametrize(
    ("pausing", "resuming"),
    [
        ("loop.decided", "loop.performed"),
        ("loop.committed", "worker.resume.signalled"),
        ("worker.pause.marked", "loop.decided"),
        ("worker.pause.stopped", "loop.committed"),
    ],
)
def test_the_daemon_is_killed_while_it_pauses_and_while_it_resumes(
    lethal: Lethal, folder: Path, pausing: str, resuming: str
) -> None:
    task = counts(lethal, folder)
    die(lethal, pausing, "pause", task)
    until(lambda: state(lethal) is State.PAUSED, 60)
    assert all_stopped(lethal, lethal.task(1))
    die(lethal, resuming, "resume", task)
    until(lambda: state(lethal) is State.RUNNING, 60)
    grows(folder)
    until(lambda: not (lethal.home.run(task, 1) / "frozen").exists(), 60)
    assert lethal.task(1).generation == 1
    lethal.ask(lambda client: client.cancel(task))
    assert lethal.finish()["n1"].state is State.CANCELLED


@pytest.mark.parametrize(
    ("suspending", "resuming"),
    [("loop.decided", "loop.committed"), ("loop.committed", "loop.decided")],
)
def test_the_daemon_is_killed_while_it_suspends(
    lethal: Lethal, tmp_path: Path, suspending: str, resuming: str
) -> None:
    saved = tmp_path / "saved"
    argv = [sys.executable, "-c", SAVES, str(saved), "helper", str(lethal.released)]
    task = submit(lethal, argv, yields="helper")
    begun(lethal, task, 1)
    die(lethal, suspending, "suspend", task)
    until(lambda: state(lethal) is State.QUEUED, 60)
    now = lethal.task(1)
    assert (now.held, now.generation) == ("suspend", 1)
    die(lethal, resuming, "resume", task)
    assert f"begins at {int(saved.read_text())}\n" in begun(lethal, task, 2)
    lethal.released.touch()
    ended = lethal.finish()["n1"]
    assert (ended.state, ended.generation) == (State.SUCCEEDED, 2)


def begun(system: System, task: str, generation: int) -> str:
    """The log of a generation of SAVES, once it has begun."""
    log = system.home.run(task, generation) / "log"
    until(lambda: log.exists() and "\n" in log.read_text(), 60)
    return log.read_text()


@pytest.mark.parametrize("how", ["signals", "helper"])
def test_a_program_that_yields_saves_and_goes_on_from_there(
    system: System, tmp_path: Path, how: str
) -> None:
    system.start()
    saved = tmp_path / "saved"
    script = [sys.executable, "-c", SAVES, str(saved), how, str(system.released)]
    # A shell around it neither hears the signal nor dies of it.
    task = submit(system, ["sh", "-c", '"$@"; exit $?', "sh", *script], yields=how)
    log = system.home.run(task, 1) / "log"
    assert begun(system, task, 1) == "begins at 0\n"
    say(system, "suspend", task)
    until(lambda: state(system) is State.QUEUED, 60)
    now = system.task(1)
    assert (now.held, now.allocation, now.attempts) == ("suspend", None, 0)
    done = int(saved.read_text())
    assert f"saved {done}" in log.read_text()
    system.restart()
    say(system, "resume", task)
    assert begun(system, task, 2) == f"begins at {done}\n"

    # Frozen, it hears of the suspension as it is let go.
    say(system, "pause", task)
    until(lambda: state(system) is State.PAUSED, 60)
    say(system, "suspend", task)
    until(lambda: state(system) is State.QUEUED, 60)
    assert int(saved.read_text()) > done
    system.released.touch()
    say(system, "resume", task)
    assert system.finish()["n1"].state is State.SUCCEEDED


def test_a_program_that_ignores_every_signal_is_frozen_or_killed_all_the_same(
    tmp_path: Path,
) -> None:
    system = System(tmp_path, "zygote=lazy", "pause_grace_s=0.5", "suspend_grace_s=0.5")
    try:
        system.start()
        deaf = (
            "import signal, time\n"
            "for n in (signal.SIGUSR1, signal.SIGTSTP, signal.SIGTERM, signal.SIGCONT):\n"
            "    signal.signal(n, signal.SIG_IGN)\n"
            "print('deaf', flush=True)\n"
            "while True: time.sleep(0.01)\n"
        )
        task = submit(system, [sys.executable, "-c", deaf], yields="signals")
        log = system.home.run(task, 1) / "log"
        until(lambda: log.exists() and "deaf" in log.read_text(), 60)
        pid = system.pids("started")[0]
        say(system, "pause", task)
        until(lambda: processes.stat_fields(pid)[0] == "T", 60)
        # On a machine so busy that the grace time was over before, it goes on and is told again.
        until(lambda: state(system) in (State.PAUSED, State.RUNNING), 60)
        say(system, "suspend", task)
        until(lambda: state(system) is State.QUEUED, 60)
        now = system.task(1)
        assert now.held == "suspend"
        assert now.outcome is not None
        assert now.outcome.signal == signal.SIGKILL
        assert not shim.start_time(pid)
        system.ask(lambda client: client.cancel(task))
        assert state(system) is State.CANCELLED
    finally:
        system.close()


def test_the_helper_is_never_asked_outside_of_a_task() -> None:
    import zenos

    assert "ZENOS_TASK" not in os.environ
    assert not zenos.task.should_yield()
    with pytest.raises(SystemExit) as caught:
        zenos.task.yielded()
    assert caught.value.code == 75
