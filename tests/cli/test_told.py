"""What a user is told: what is waited for, what went, what was left, what could not be done."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import Daemon, until, zenos
from zenos.cli import demo, output, tasks, waiting
from zenos.cli.rows import task_rows
from zenos.client import Client, TaskHandle, TaskView, connect
from zenos.core.errors import ContextLengthError, InvalidError, NoDaemonError
from zenos.core.specs import DeploymentSpec, ServeSpec
from zenos.core.task import Kind, Outcome, Principal, Task, TaskSpec
from zenos.core.wire import WAITS_FOR_SPACE, Progress


def submitted(name: str) -> str:
    ran = zenos("submit", "--name", name, "--", "work")
    assert ran.code == 0, ran.err
    return ran.out.strip()


def test_cancel_cancels_what_is_there_and_names_the_rest(daemon: Daemon) -> None:
    first, last = submitted("a"), submitted("b")
    ran = zenos("cancel", "a", "nosuch", "b", "--wait")
    assert ran.code == 3
    assert "nosuch" in ran.err
    assert [daemon.state(task) for task in (first, last)] == ["cancelled", "cancelled"]
    assert len(zenos("cancel", "a", "nosuch", "--json").json) == 1


def test_where_to_look_is_said_once(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, count in (("cannot a", 1), ("cannot a; 'zenos logs {}' has the details", 1)):

        def ended(handle: TaskHandle, _: object, error: str = error) -> None:
            until(lambda: daemon.state(handle.id) == "running")
            daemon.end(handle.id, Outcome(exit_code=1, error=error.format(handle.id)))
            until(lambda: daemon.double.view.tasks[handle.id].is_ended)

        monkeypatch.setattr(tasks, "_stream_log", ended)
        ran = zenos("submit", "--follow", "--", "work")
        assert ran.code == 1
        assert ran.err.count("'zenos logs t") == count, ran.err


def test_a_misspelt_name_keeps_no_other_task_from_being_paused(daemon: Daemon) -> None:
    task = submitted("a")
    until(lambda: daemon.state(task) == "running")
    ran = zenos("pause", "nosuch", "a", "--wait")
    assert (ran.code, "nosuch" in ran.err) == (3, True)
    assert daemon.state(task) == "paused"


@pytest.mark.parametrize(("exit_code", "code"), [(0, 0), (7, 1)])
def test_ctrl_c_just_after_the_end_ends_as_the_task_did(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, exit_code: int, code: int
) -> None:
    def interrupted(handle: TaskHandle, _: object) -> None:
        until(lambda: daemon.state(handle.id) == "running")
        daemon.end(handle.id, Outcome(exit_code=exit_code))
        until(lambda: daemon.double.view.tasks[handle.id].is_ended)
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "_stream_log", interrupted)
    ran = zenos("submit", "--follow", "--name", "short", "--", "work")
    assert ran.code == code
    assert "short had ended already" in ran.err
    assert "goes on" not in ran.err


def test_ctrl_c_before_the_end_leaves_the_task(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(handle: TaskHandle, _: object) -> None:
        until(lambda: daemon.state(handle.id) == "running")
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "_stream_log", interrupted)
    ran = zenos("submit", "--follow", "--name", "long", "--", "work")
    assert (ran.code, "long goes on; 'zenos cancel t1'" in ran.err) == (130, True)
    assert daemon.state("t1") == "running"


@pytest.mark.parametrize(
    ("command", "waits"),
    [
        (["submit", "--wait", "--name", "long", "--", "work"], "zenos.cli.waiting.until_end"),
        (["submit", "--follow", "--name", "long", "--", "work"], "zenos.cli.tasks._stream_log"),
        (["create", "long", "--arch", "llama-nano"], "zenos.cli.waiting.until_end"),
    ],
)
def test_who_waits_while_the_daemon_stays_away_is_told_which_task_goes_on(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, command: list[str], waits: str
) -> None:
    def away(*_: object) -> None:
        raise NoDaemonError("cannot reach a daemon: start it with 'zenos up'")

    monkeypatch.setattr(waits, away)
    ran = zenos(*command)
    assert ran.code == 5
    assert re.search(r"start it with 'zenos up'; t1( \(long\))? goes on", ran.err)
    assert "'zenos logs -f t1' follows it" in ran.err


def test_rm_and_stop_do_the_same_and_rm_says_which_aliases_went(daemon: Daemon) -> None:
    assert zenos("alias", "tiny:1", "prod").code == 0
    ran = zenos("rm", "nosuch", "tiny", "other")
    assert ran.code == 3
    assert "nosuch" in ran.err
    assert "tiny:1 is removed" in ran.err
    assert "with it went tiny:prod" in ran.err
    assert zenos("list", "--json").json == []
    ran = zenos("stop", "nosuch", "neither")
    assert (ran.code, "nosuch" in ran.err, "neither" in ran.err) == (3, True, True)


def test_rm_tells_machines_of_aliases_too(daemon: Daemon) -> None:
    assert zenos("alias", "tiny:1", "prod").code == 0
    assert zenos("rm", "tiny", "--json").json[0]["aliases"] == ["tiny:prod"]


def test_rm_all_removes_every_version(daemon: Daemon) -> None:
    for _ in range(3):
        zenos("cp", "tiny", "third")
    ran = zenos("rm", "--all", "third", "nosuch")
    assert (ran.code, "nosuch" in ran.err) == (3, True)
    assert [f"third:{n} is removed" in ran.err for n in (1, 2, 3)] == [True] * 3
    assert "third" not in zenos("list").out


@pytest.mark.parametrize("more", [(), ("--all",)])
def test_a_damaged_model_is_listed_on_stderr_and_can_be_removed(
    daemon: Daemon, more: tuple[str, ...]
) -> None:
    (daemon.home.models / "manifests/tiny/1.json").write_bytes(b"{")
    listed = zenos("list")
    assert (listed.code, "other:1" in listed.out) == (1, True)
    assert "tiny/1.json: Input data was truncated; 'zenos rm tiny:1' removes" in listed.err
    machine = zenos("list", "--json")
    assert [model["name"] for model in machine.json] == ["other"]
    assert json.loads(machine.err)["error"]["code"] == "storage"
    assert "tiny:1 is removed" in zenos("rm", "tiny", *more).err
    assert zenos("list").code == 0


@pytest.mark.parametrize("name", ["", " ", "\t"])
def test_a_name_that_is_given_may_not_be_blank(daemon: Daemon, name: str) -> None:
    ran = zenos("submit", "--name", name, "--", "work")
    assert ran.code == 2
    assert "cannot use an empty task name" in ran.err
    assert not daemon.double.view.tasks


def test_up_in_the_foreground_refuses_beside_a_running_daemon(daemon: Daemon) -> None:
    ran = zenos("up", "--foreground")
    assert ran.code == 4
    assert f"process {os.getpid()}" in ran.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--exclude", ""], "cannot use --exclude"),
        (["--steps", "0"], "cannot use --steps 0: it must be from 1 to 1000000000"),
        (["--eval-fraction", "0.9"], "cannot use --eval-fraction 0.9: it must be from 0 to 0.5"),
    ],
)
def test_errors_name_the_flag_that_was_typed(daemon: Daemon, flags: list[str], says: str) -> None:
    ran = zenos("train", "--model", "m", "--arch", "llama-nano", "--data", "x", *flags)
    assert ran.code == 2
    assert says in ran.err


def test_run_says_what_it_waits_for(
    daemon: Daemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All CPUs are taken, so that the replica is queued; the answer comes when we say so."""
    monkeypatch.setattr(waiting, "LOOK_S", 0.01)
    assert zenos("submit", "--cpu", "4", "--", "all").code == 0
    client.serve("tiny", min_replicas=1)
    until(lambda: any(v.waits for v in client.tasks(kind="serve")))
    told = threading.Event()
    spoken: list[str] = []

    def hear(text: str) -> None:
        spoken.append(text)
        told.set()

    monkeypatch.setattr(waiting, "say", hear)
    with waiting.saying_room("tiny"):
        assert told.wait(20)
    assert spoken[0].startswith("tiny waits for room: waits for ")
    assert "4 of 4" in spoken[0] or "CPU" in spoken[0].upper()


def test_what_has_failed_is_not_said_to_wait_for_room() -> None:
    spec = TaskSpec(work=ServeSpec(model="tiny:1", deployment="tiny"))
    failed = Task(
        id="t1",
        spec=spec,
        principal=Principal(user="u", project="p"),
        submitted=1.0,
        kind=Kind.SERVE,
        outcome=Outcome(error="cannot allocate more memory"),
    )
    view = TaskView(task=failed, waits="starts again in 1 s")
    assert waiting.room("tiny", [view]) == "tiny is started again: cannot allocate more memory"


def test_replicas_of_one_version_under_two_names_are_told_apart() -> None:
    def replica(number: int, model: str, deployment: str) -> TaskView:
        work = ServeSpec(model=model, deployment=deployment)
        spec, by = TaskSpec(work=work), Principal()
        return TaskView(
            task=Task(id=f"t{number}", spec=spec, principal=by, submitted=0, kind=Kind.SERVE)
        )

    views = [replica(1, "docs:1", "docs"), replica(2, "docs:1", "docs:1"), replica(3, "x:1", "x")]
    names = [row[1] for row in task_rows(views)]
    assert names == ["docs:1 as docs", "docs:1 as docs:1", "x:1"]
    assert [row[1] for row in task_rows(views[:1])] == ["docs:1"]


def test_a_key_that_is_typed_again_gives_the_same_task(daemon: Daemon) -> None:
    submit = ("submit", "--key", "once", "--", "work")
    assert zenos(*submit).out == zenos(*submit).out
    assert zenos("submit", "--key", "once", "--", "other").code == 4
    assert len(daemon.double.view.tasks) == 1


def test_a_demo_to_be_kept_says_where_it_is_when_it_is_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told_to_end(*_: object, **__: object) -> str:
        raise SystemExit(128 + signal.SIGTERM)

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: str(tmp_path))
    monkeypatch.setattr(demo, "_check_extra", lambda: None)
    monkeypatch.setattr(demo, "_run", told_to_end)
    ran = zenos("demo", "--keep", "--output", str(tmp_path))
    assert ran.code == 128 + signal.SIGTERM
    assert f"ZENOS_HOME={tmp_path} zenos down" in ran.err


def test_a_model_that_answers_is_not_said_to_wait(daemon: Daemon) -> None:
    ran = zenos("run", "tiny", "say")
    assert (ran.code, ran.out, ran.err) == (0, "Hello, wörld\n", "")


def test_a_prompt_that_is_too_long_is_told_as_openai_does(daemon: Daemon, client: Client) -> None:
    daemon.double.failure = ContextLengthError("cannot fit the prompt: 9 tokens")
    ran = zenos("run", "tiny", "say")
    assert ran.code == 2
    for path, body in (
        ("/v1/completions", {"model": "tiny", "prompt": "x"}),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}),
    ):
        # One of its own for each request: its field is written into it.
        daemon.double.failure = ContextLengthError("cannot fit the prompt: 9 tokens")
        answer = client.http.post(path, json=body)
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == ("messages" if "chat" in path else "prompt")


TRAIN = ("train", "--model", "m", "--arch", "llama-nano", "--data", "x", "--wait")


@pytest.mark.parametrize("command", [TRAIN, ("create", "m", "--arch", "llama-nano")])
def test_who_waits_is_told_why_a_run_is_to_be_started_again(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    spoken: list[str] = []
    told = threading.Event()

    def hear(text: str) -> None:
        spoken.append(text)
        if "waits to be started again" in text:
            told.set()

    monkeypatch.setattr(output, "say", hear)
    full = Outcome(exit_code=1, error="cannot publish m: No space left on device", code="storage")

    def drive() -> None:
        until(lambda: "running" in {str(t.state) for t in daemon.double.view.tasks.values()})
        task = next(iter(daemon.double.view.tasks))
        daemon.end(task, full)
        told.wait(20)
        with connect() as made:
            made.task(task).cancel()

    driver = threading.Thread(target=drive)
    driver.start()
    zenos(*command)
    driver.join()
    assert told.is_set(), spoken
    assert any("No space left on device" in text for text in spoken)


def test_who_waits_is_told_that_a_training_waits_for_space(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken: list[str] = []
    told = threading.Event()

    def hear(text: str) -> None:
        spoken.append(text)
        if "waits for space on the disk" in text:
            told.set()

    monkeypatch.setattr(output, "say", hear)

    def drive() -> None:
        until(lambda: "running" in {str(t.state) for t in daemon.double.view.tasks.values()})
        task = next(iter(daemon.double.view.tasks))
        daemon.report(task, Progress(stage=WAITS_FOR_SPACE, done=4, total=4))
        told.wait(20)
        with connect() as made:
            made.task(task).cancel()

    driver = threading.Thread(target=drive)
    driver.start()
    zenos(*TRAIN)
    driver.join()
    assert told.is_set(), spoken
    assert sum("waits for space" in text for text in spoken) == 1


def test_down_names_the_programs_that_run_on(daemon: Daemon, client: Client) -> None:
    from zenos.cli.system import _going_on

    task = submitted("nightly")
    until(lambda: daemon.state(task) == "running")
    assert [t.id for t in _going_on(client, "suspend")] == [task]
    assert [t.id for t in _going_on(client, "leave")] == [task]
    assert _going_on(client, "drain") == []


def test_demo_makes_its_directory_and_refuses_a_file(tmp_path: Path) -> None:
    from zenos.cli.demo import _make_directory

    _make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidError, match="there is a file"):
            _make_directory(path)


def test_specs_have_the_defaults_that_help_tells_of() -> None:
    assert DeploymentSpec(model="m").min_replicas == 0
    help_ = " ".join(zenos("serve", "--help").out.replace("│", " ").split())
    assert "Typed here: 1" in help_
