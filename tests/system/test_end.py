"""How the daemon ends: by request in each mode, by signals, at any time."""

from __future__ import annotations

import signal
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest

from tests.processes import until
from tests.system.harness import System, family, popen
from zenos.client import Client, connect
from zenos.core.errors import UnavailableError
from zenos.core.home import Home
from zenos.core.task import State


def test_leave_lets_programs_go_on_and_the_next_daemon_adopts_them(system: System) -> None:
    system.start()
    system.submit(1, f"{system.hold}; echo said without a daemon; exit 3")
    system.submit(2, system.hold)
    workers = system.runs(1, 2)
    assert system.shut_down("leave") == 0
    assert not system.home.daemon.exists()
    system.start()
    assert sorted(system.pids("started")) == workers
    assert system.shut_down("leave") == 0
    system.released.touch()
    until(lambda: not family(system.home))
    system.start()
    tasks = system.finish()
    outcome = tasks["n1"].outcome
    assert outcome is not None
    assert (tasks["n1"].state, outcome.exit_code) == (State.FAILED, 3)
    assert outcome.log_tail == "said without a daemon\n"
    assert tasks["n2"].state is State.SUCCEEDED
    assert system.lines() == {1: 1, 2: 1}


def test_drain_waits_for_what_runs_and_keeps_what_waits(system: System) -> None:
    system.start()
    (cpus,) = (node.node.capacity.cpu for node in system.ask(lambda client: client.nodes()))
    system.submit(1, system.hold, cpu=cpus / 1000)
    system.runs(1)
    system.submit(2, cpu=cpus / 1000)
    system.ask(lambda client: client.shut_down("drain"))
    with connect(home=system.home.root, retry_s=0) as client:
        until(lambda: "going down: drain" in system.log)
        with pytest.raises(UnavailableError, match="cannot take new tasks: the daemon is going"):
            client.submit(["true"])
        assert client.look(client.tasks()[0].task.id).task.name in {"n1", "n2"}
    assert not system.dead
    system.released.touch()
    assert system.gone() == 0
    assert not family(system.home)
    assert system.lines() == {1: 1}
    system.start()
    assert {name: task.state for name, task in system.finish().items()} == {
        "n1": State.SUCCEEDED,
        "n2": State.SUCCEEDED,
    }
    assert system.lines() == {1: 1, 2: 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_that_takes_too_long_can_be_cut_short(
    system: System, number: signal.Signals
) -> None:
    system.start()
    system.submit(1, system.hold)
    workers = system.runs(1)
    system.ask(lambda client: client.shut_down("drain"))
    until(lambda: "going down: drain" in system.log)
    assert system.signal(number) == 0
    system.start()
    assert sorted(system.pids("started")) == workers
    system.released.touch()
    assert system.finish()["n1"].state is State.SUCCEEDED
    assert system.lines() == {1: 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_daemon_with_open_streams_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    # The zygote too, which still imports: only the settings say that it is started at once.
    system = System(tmp_path, "zygote=eager")
    system.start()
    heard = threading.Event()
    client = connect(home=system.home.root, retry_s=0)

    def listen() -> None:
        for _ in client.events(after=0):
            heard.set()

    def listen_until_the_end() -> None:
        try:
            listen()
        except Exception as error:  # noqa: BLE001 - however it is told
            endings.append(error)

    endings: list[Exception] = []
    listening = threading.Thread(target=listen_until_the_end)
    listening.start()
    system.submit(1)
    system.finish()
    assert heard.wait(30)
    assert system.signal(number) == 0
    assert not family(system.home)
    listening.join(30)
    assert not listening.is_alive()
    assert len(endings) == 1
    client.close()
    system.close()


def _has_made(process: subprocess.Popen[str], path: Path) -> bool:
    return path.exists() or process.poll() is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_that_boots_can_be_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    # At different moments of its boot, told by what it has made so far.
    for name in ("root", "token", "database", "daemon"):
        home = Home(tmp_path / name)
        with popen(home.root) as process:
            until(partial(_has_made, process, getattr(home, name)))
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode in (0, -number), (name, process.returncode, said)
        assert said == "", (name, said)
        until(partial(_is_gone, home))
        assert not home.daemon.exists()


@pytest.mark.parametrize("name", ["root", "token", "database", "daemon"])
def test_a_daemon_that_boots_goes_on_when_its_terminal_hangs_up(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path / "home")
    with popen(home.root) as process:
        try:
            until(partial(_has_made, process, getattr(home, name)))
            process.send_signal(signal.SIGHUP)
            with _up(home) as made:
                assert made.status().pid == process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    assert process.returncode == 0


def _up(home: Home) -> Client:
    """A client of the daemon that is to come up."""
    until(home.daemon.exists)
    return connect(home=home.root, retry_s=30)


def _is_gone(home: Home) -> bool:
    return not family(home)


def test_a_zygote_that_cannot_start_is_said_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('no such library: libgomp')")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    system = System(tmp_path, "zygote=lazy")
    try:
        system.start()
        task = system.ask(lambda client: client.create("made", arch="llama-nano").id)
        until(lambda: "cannot start" in str(system.tasks()[task].outcome))
        assert "zygote.log" in str(system.tasks()[task].outcome)
        system.submit(1)
        until(lambda: system.task(1).is_ended)
        assert system.signal(signal.SIGTERM) == 0
        system.start()
        # It would be tried for some minutes; nobody has to wait for that.
        system.ask(lambda client: client.cancel(task))
        assert system.finish()[task].state is State.CANCELLED
        assert "libgomp" in (system.home.root / "zygote.log").read_text()
    finally:
        system.close()
