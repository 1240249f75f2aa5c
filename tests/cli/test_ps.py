"""What `zenos ps` chooses, what `show` and `logs` find, where `top` can draw."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from tests.cli.conftest import Daemon, Ran, until, zenos
from zenos.cli import models
from zenos.client import Client, TaskView, connect
from zenos.client.display import watching
from zenos.core.specs import ProgramSpec
from zenos.core.task import Kind, Outcome, Principal, State, Task, TaskSpec
from zenos.core.wire import Progress


def ids(ran: Ran) -> list[str]:
    assert ran.code == 0, ran.err
    return [(view.get("task") or view["array"])["id"] for view in ran.json]


@pytest.fixture
def sweep(daemon: Daemon, client: Client) -> str:
    """An array of five, of which four run, beside a task that makes a model, and a program."""
    client.create("fresh", "llama-nano")
    client.submit(["work"], name="alone", cpu=0.1)
    made = client.submit_array(["work"], "0-4%4", name="sweep", cpu=0.1).array.id
    until(lambda: client.array(made).states.get("running") == 4)  # type: ignore[call-overload]
    return made


def test_every_kind_that_is_shown_can_be_asked_for(daemon: Daemon, sweep: str) -> None:
    kinds = {line.split()[2] for line in zenos("ps").out.splitlines()[1:] if "alone" in line}
    assert kinds == {"run"}
    assert ids(zenos("ps", "--kind", "array", "--json")) == [sweep]
    assert ids(zenos("ps", "--kind", "run", "--json")) == [sweep, "t2"]
    assert ids(zenos("ps", "--kind", "preprocess", "--json")) == ["t1"]
    assert ids(zenos("ps", "--kind", "array,preprocess", "--json")) == [sweep, "t1"]
    assert ids(zenos("ps", "--kind", "run,preprocess", "--json")) == [sweep, "t2", "t1"]
    assert ids(zenos("ps", "--all", "--kind", "array", "--json")) == [sweep]
    assert ids(zenos("ps", "--kind", "array", "--state", "failed", "--json")) == []


@pytest.mark.parametrize("more", [[], ["--array", "sweep"], ["--all"]])
def test_an_unknown_kind_is_refused_with_those_there_are(
    daemon: Daemon, sweep: str, more: list[str]
) -> None:
    ran = zenos("ps", "--kind", "run,create", *more)
    assert ran.code == 2
    assert all(kind in ran.err for kind in (*Kind, "array", "'create'"))


def test_the_tasks_of_an_array_are_chosen_from_like_others(daemon: Daemon, sweep: str) -> None:
    of = ("ps", "--array", "sweep", "--json")
    every = ids(zenos(*of))
    assert len(every) == 5
    assert ids(zenos(*of, "--limit", "2")) == every[:2]
    for form in (of, of[:-1]):
        assert "the first 2; --limit shows more" in zenos(*form, "--limit", "2").err
    assert "--limit" not in zenos(*of[:-1], "--limit", "5").err
    assert len(ids(zenos(*of, "--state", "running"))) == 4
    assert ids(zenos(*of, "--kind", "train")) == []
    assert ids(zenos(*of, "--kind", "run")) == every
    assert zenos(*of, "--state", "nonsense").code == 2
    assert zenos(*of, "--kind", "array").code == 2
    assert zenos("ps", "--threads", "--kind", "array").code == 2


def test_show_says_what_it_has_looked_for(daemon: Daemon) -> None:
    ran = zenos("show", "nosuch")
    assert ran.code == 3
    assert "no model and no task of that name" in ran.err
    assert "'zenos list'" in ran.err
    assert "'zenos ps --all'" in ran.err
    assert "task 't99'" in zenos("show", "t99").err
    assert "model" in zenos("show", "nosuch:2").err


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85", "\r"])
def test_only_newlines_end_the_lines_of_a_log(daemon: Daemon, separator: str) -> None:
    with connect() as client:
        client.submit(["work"])
    until(lambda: daemon.state("t1") == "running")
    lines = ["one\n", f"a{separator}b{separator}c\n", "no end"]
    log = daemon.home.root / "t1-1.log"
    log.write_bytes("".join(lines).encode())
    assert zenos("logs", "-n", "2", "t1", "--json").json["log"] == "".join(lines[1:])
    assert zenos("logs", "-n", "9", "t1", "--json").json["log"] == "".join(lines)
    assert zenos("logs", "-n", "0", "t1", "--json").json["log"] == ""
    log.write_bytes("".join(lines[:2]).encode())
    assert zenos("logs", "-n", "1", "t1", "--json").json["log"] == lines[1]


def test_in_a_pipe_a_command_is_shown_whole(daemon: Daemon) -> None:
    words = [f"--option-{number}=value" for number in range(40)]
    assert zenos("submit", "--", "work", *words).code == 0
    line = " ".join(["work", *words])
    until(lambda: daemon.state("t1") == "running")
    for args in (["ps"], ["show", "t1"]):
        assert line in zenos(*args).out
    daemon.end("t1", Outcome(exit_code=1, error=f"cannot do {line}"))
    until(lambda: daemon.state("t1") == "failed")
    for args in (["ps", "-a"], ["show", "t1"]):
        assert f"cannot do {line}" in zenos(*args).out


@pytest.mark.parametrize(
    ("state", "outcome", "shown"),
    [
        (State.RUNNING, Outcome(exit_code=75, log_tail="saved"), {}),
        (State.QUEUED, Outcome(exit_code=75), {}),
        (State.QUEUED, Outcome(exit_code=3, error="cannot a"), {"exit code": 3}),
        (State.FAILED, Outcome(exit_code=3, log_tail="b"), {"exit code": 3, "log ends": "b"}),
        (State.SUCCEEDED, Outcome(exit_code=0), {"exit code": 0}),
    ],
)
def test_how_a_generation_before_has_ended_is_nothing_of_one_that_runs(
    state: State, outcome: Outcome, shown: dict[str, object]
) -> None:
    spec = TaskSpec(work=ProgramSpec(argv=["work"]))
    task = Task(id="t1", spec=spec, principal=Principal(), submitted=0, kind=Kind.RUN)
    view = TaskView(task=msgspec.structs.replace(task, state=state, outcome=outcome))
    found = dict(models._task_facts(view))
    assert {n: found[n] for n in ("exit code", "log ends") if found[n] != ""} == shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("term", "no_terminal", "says"),
    [
        ("dumb", "", "TERM is dumb"),
        ("unknown", "", "TERM is unknown"),
        ("xterm", "stdin", "stdin is no terminal"),
        ("xterm", "stdout", "stdout is no terminal"),
        ("xterm", "stderr", "stderr is no terminal"),
    ],
)
def test_top_needs_a_terminal_that_can_draw(
    monkeypatch: pytest.MonkeyPatch, term: str, no_terminal: str, says: str
) -> None:
    from zenos.cli.system import top
    from zenos.core.errors import InvalidError

    monkeypatch.setenv("TERM", term)
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", io.StringIO() if name == no_terminal else Terminal())
    with pytest.raises(InvalidError, match=f"cannot draw the live screen: {says}") as refused:
        top()
    assert "'zenos ps' and 'zenos status'" in refused.value.message


def test_a_dumb_terminal_gets_lines_of_a_task_s_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    spec = TaskSpec(work=ProgramSpec(argv=["work"]), name="mine")
    task = Task(id="t1", spec=spec, principal=Principal(), submitted=0, kind=Kind.RUN)
    view = TaskView(task=task, progress=Progress(stage="training", done=1, total=4))
    with watching(view, Console(file=file, force_terminal=True)) as show:
        show(view)
        assert "training 1/4" in file.getvalue()  # at once, not only at the end
