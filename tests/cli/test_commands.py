"""The commands, as typed, against the real API."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.main

from tests.cli.conftest import Daemon, Ran, until, zenos
from zenos.cli import errors, plot
from zenos.cli.main import app
from zenos.cli.train_flags import fields, flag_of
from zenos.client import ModelVersion, connect
from zenos.core import errors as core_errors
from zenos.core import events, limits
from zenos.core.home import Home
from zenos.core.specs import CreateSpec, ProgramSpec, TrainSpec
from zenos.core.task import Outcome, Task
from zenos.core.wire import Progress


def commands(one: Any, *path: str) -> list[str]:
    """Every command there is, with the words before it."""
    if not (below := getattr(one, "commands", None)):
        return [" ".join(path)]
    return [found for name in below for found in commands(below[name], *path, name)]


COMMANDS = sorted(commands(typer.main.get_command(app)))
# It shows what the others do, to people; what it measures, they print as JSON.
FOR_PEOPLE = {"demo"}


def task_of(ran: Ran) -> Task:
    assert ran.code == 0, ran.err
    return msgspec.json.decode(ran.out, type=Task)


def finishing(daemon: Daemon, outcome: Outcome) -> threading.Thread:
    """Ends the first task of the daemon as soon as it runs."""

    def drive() -> None:
        until(lambda: "running" in {str(t.state) for t in daemon.double.view.tasks.values()})
        daemon.end(next(iter(daemon.double.view.tasks)), outcome)

    thread = threading.Thread(target=drive)
    thread.start()
    return thread


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_json(command: str) -> None:
    ran = zenos(*command.split(), "--help")
    assert ran.code == 0
    assert f"Example: zenos {command}" in " ".join(ran.out.split())
    assert ("--json" in ran.out) != (command in FOR_PEOPLE)


def test_every_field_of_a_training_run_has_a_flag_and_a_help() -> None:
    lines = [" ".join(line.split()) for line in zenos("train", "--help").out.splitlines()]
    for name in fields():
        mine = [line for line in lines if re.match(rf"│ [*]? ?{flag_of(name)} ", line)]
        assert any(len(line.split()) > 4 for line in mine), f"{name} has no help: {mine}"
    assert len({flag_of(name) for name in fields()}) == len(fields())


def test_every_code_has_an_exit_code_and_none_too_many() -> None:
    kinds = {core_errors.ZenosError}
    while more := {c for k in kinds for c in k.__subclasses__()} - kinds:
        kinds |= more
    assert {kind.code for kind in kinds} == set(errors.EXIT_CODES)


def test_without_a_daemon_every_command_says_how_to_start_one(home: Home) -> None:
    for args in (
        ["status"],
        ["ps"],
        ["list"],
        ["logs", "t1"],
        ["cancel", "t1"],
        ["run", "m", "hi"],
        ["submit", "--", "ls"],
        ["serve", "m"],
        ["show", "m"],
        ["why", "t1"],
        ["plan"],
        ["top", "--json"],
    ):
        ran = zenos(*args)
        assert ran.code == 5, args
        assert "zenos up" in ran.err
        assert "Traceback" not in ran.err
    down = zenos("down")
    assert (down.code, "zenos is down already: cannot reach a daemon" in down.err) == (0, True)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["nonsense"], 2),
        (["submit"], 2),
        (["submit", "--cpu", "many", "--", "ls"], 2),
        (["submit", "--cpu", "nan", "--", "ls"], 2),
        (["submit", "--memory", "-1", "--", "ls"], 2),
        (["submit", "--priority", "urgent", "--", "ls"], 2),
        (["submit", "--time", "soon", "--", "ls"], 2),
        (["submit", "--env", "NOT_SET_ANYWHERE", "--", "ls"], 2),
        (["submit", "--gpu", "64", "--", "ls"], 4),
        (["train"], 2),
        (["train", "nowhere.yaml"], 3),
        (["train", "--model", "m", "--arch", "a", "--data", "x", "--steps", "0"], 2),
        (["logs", "t99"], 3),
        (["show", "nobody"], 3),
        (["rm", "nobody"], 3),
        (["run", "nobody", "hi"], 3),
        (["stop", "nobody"], 3),
        (["cp", "../../etc", "x"], 2),
        (["alias", "tiny", "a/b"], 2),
        (["show", "tiny", "x.png"], 2),
        (["show", "tiny", "--plot", "x.bmp"], 2),
        (["schema", "nothing"], 2),
        (["down", "--drain", "--leave"], 2),
        (["down", "--timeout", "-1"], 2),
        (["submit", "--time", "0s", "--", "ls"], 2),
        (["logs", "t1", "-f", "--json"], 2),
        (["pull", "./nowhere"], 3),
    ],
)
def test_exit_codes(daemon: Daemon, args: list[str], code: int) -> None:
    ran = zenos(*args)
    assert ran.code == code, ran.err
    assert ran.err
    assert "Traceback" not in ran.err + ran.out


def test_submit_takes_the_program_as_it_is(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PASSED", "on")
    monkeypatch.chdir(tmp_path)
    args = (
        "--cpu 0.5 --gpu 0.25 --memory 1GiB --priority low --time 2m --time-limit 1h --retries 3"
        " --json"
    )
    ran = zenos(
        *("submit", "--name", "job", "--env", "A=b=c", "--env", "PASSED", *args.split(), "--"),
        *("python", "-c", "print()", "--cpu", "9", "--help", "--"),
    )
    spec = task_of(ran).spec
    assert isinstance(spec.work, ProgramSpec)
    assert spec.work.argv == ["python", "-c", "print()", "--cpu", "9", "--help", "--"]
    assert spec.work.env == {"A": "b=c", "PASSED": "on"}
    assert spec.work.cwd == str(tmp_path)
    assert (spec.name, spec.priority, spec.retries) == ("job", 25, 3)
    assert (spec.expected_s, spec.time_limit_s) == (120.0, 3600.0)
    held = spec.resources
    assert (held.cpu, held.gpu, held.memory) == (500, 250, 2**30)


def test_submit_says_the_id_alone_on_stdout(daemon: Daemon) -> None:
    ran = zenos("submit", "--", "sleep", "1")
    assert ran.out.strip() in daemon.double.view.tasks
    assert "zenos logs -f" in ran.err


@pytest.mark.parametrize(("exit_code", "code"), [(0, 0), (7, 1)])
def test_wait_ends_as_the_task_ends(daemon: Daemon, exit_code: int, code: int) -> None:
    driver = finishing(daemon, Outcome(exit_code=exit_code))
    ran = zenos("submit", "--wait", "--", "work")
    driver.join()
    assert ran.code == code
    assert ("exit code 7" in ran.err) == (exit_code == 7)


def test_follow_prints_the_log(daemon: Daemon) -> None:
    def drive() -> None:
        until(lambda: "running" in {str(t.state) for t in daemon.double.view.tasks.values()})
        task = next(iter(daemon.double.view.tasks))
        path = daemon.double.log_path(task)
        assert path is not None
        path.write_text("one\ntwo\nthree\n")
        daemon.end(task)

    driver = threading.Thread(target=drive)
    driver.start()
    ran = zenos("submit", "--follow", "--", "work")
    driver.join()
    assert (ran.code, ran.out) == (0, "one\ntwo\nthree\n")
    task = next(iter(daemon.double.view.tasks))
    assert zenos("logs", task).out == ran.out
    assert zenos("logs", task, "--tail", "2").out == "two\nthree\n"
    assert zenos("logs", task, "-n", "1", "-f").out == "three\n"
    assert zenos("logs", task, "--json").json == {"task": task, "log": ran.out}


SPEC = """
model: shakespeare
arch: llama-nano
settings: {hidden_size: 128, tie: true}
learning_rate: 1e-3
steps: 10
data:
  paths: [corpus/*.txt, /abs/x.txt]
  text_column: body
"""


def test_flags_win_over_the_file_and_paths_are_meant_from_where_they_stand(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "specs"
    folder.mkdir()
    (folder / "run.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    work = task_of(zenos("train", "specs/run.yaml", "--json")).spec.work
    assert isinstance(work, TrainSpec)
    assert work.data.paths == [str(folder / "corpus/*.txt"), "/abs/x.txt"]
    assert (work.learning_rate, work.steps, work.batch_size) == (1e-3, 10, 8)
    more = ["--steps", "20", "--set", "hidden_size=64", "--set", "kind=x", "--compile"]
    work = task_of(
        zenos("train", "specs/run.yaml", *more, "--encoding", "gb18030", "--json")
    ).spec.work
    assert isinstance(work, TrainSpec)
    assert (work.steps, work.compile, work.data.encoding) == (20, True, "gb18030")
    assert work.settings == {"hidden_size": 64, "tie": True, "kind": "x"}
    assert (work.data.text_column, work.data.paths[1]) == ("body", "/abs/x.txt")
    work = task_of(
        zenos("train", "specs/run.yaml", "--data", "here.txt", "--json", "--dtype", "float32")
    ).spec.work
    assert isinstance(work, TrainSpec)
    assert (work.data.paths, work.dtype) == ([str(tmp_path / "here.txt")], "float32")


def test_data_that_is_not_there_yet_is_noted(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("text")
    argv = ["train", "--model", "m", "--arch", "llama-nano"]
    there = ["--data", str(tmp_path / "there.txt"), "--data", str(tmp_path / "**" / "*.txt")]
    assert "note" not in zenos(*argv, *there).err
    (tmp_path / "directory.md").mkdir()
    ran = zenos(*argv, *there, "--data", str(tmp_path / "*.md"))
    assert ran.code == 0
    assert f"note: no file matches {tmp_path / '*.md'} yet" in ran.err
    # What can't be looked at from here, or is too much, is the run's to see.
    for odd in ("x" * 300 + "*", "*/*/*/*.zzz"):
        ran = zenos(*argv, "--data", str(tmp_path / odd))
        assert (ran.code, "note: no file" in ran.err) == (0, False), ran.err
    ran = zenos(*argv, *there, "--data", str(tmp_path / "ther.txt"))
    assert ran.code == 0
    assert f"note: there is no {tmp_path / 'ther.txt'} yet" in ran.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: m\nlerning_rate: 1", "did you mean 'learning_rate'?"),
        ("model: m\narch: a\ndata: {path: x}", "did you mean 'paths'?"),
        ("model: m\narch: a\ndata: x\nsteps: many", "cannot use steps"),
        ("model: m\narch: a\ndata: x\nsteps: .nan", "cannot use steps"),
        ("model: m\narch: a\ndata: x\nlearning_rate: .inf", "cannot use learning_rate"),
        ("model: m\narch: a\ndata: x\nlearning_rate: -1", "cannot use learning_rate"),
        ("model: a/b\narch: a\ndata: x", "cannot use the model name"),
        ("model: m\ndata: x", "either 'arch'"),
        ("arch: m\ndata: x", "cannot do without the field 'model'"),
        ("type: serve\nmodel: m", "type"),
        ("- a list", "must be a mapping"),
        ("{unclosed", "not YAML"),
        ("\x00", "not YAML"),
        ("", "must be a mapping"),
        ("model: m\narch: a\ndata: x\nsteps: " + "9" * 400, "cannot use steps"),
    ],
)
def test_a_bad_spec_is_told_in_a_line(daemon: Daemon, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    ran = zenos("train", str(path))
    assert ran.code == 2
    assert says in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert daemon.double.view.tasks == {}


def test_a_spec_that_is_no_text(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "big").write_bytes(b"#" * (1024 * 1024 + 1))
    for name, says in (("x", "not UTF-8"), ("big", "1 MiB"), (".", "directory")):
        ran = zenos("train", str(tmp_path / name))
        assert ran.code == 2
        assert says in ran.err


def test_train_follow_shows_progress_and_the_result(daemon: Daemon) -> None:
    def drive() -> None:
        until(lambda: "running" in {str(t.state) for t in daemon.double.view.tasks.values()})
        task = next(iter(daemon.double.view.tasks))
        daemon.report(task, Progress(stage="training", done=3, total=10, loss=2.0))
        daemon.end(task, Outcome(exit_code=0, result={"model": "m:1"}))

    driver = threading.Thread(target=drive)
    driver.start()
    ran = zenos("train", "--model", "m", "--arch", "a", "--data", "x", "--follow")
    driver.join()
    assert ran.code == 0
    assert "registered as m:1" in ran.err


def test_ps_lists_what_runs_and_all_what_ended(daemon: Daemon) -> None:
    first = zenos("submit", "--name", "first", "--", "work").out.strip()
    zenos("submit", "--name", "second", "--", "other", "\x1b[31mred")
    until(lambda: daemon.state(first) == "running")
    far = Progress(
        stage="crunching",
        done=1,
        total=4,
        loss=2.5,
        learning_rate=2.5e-4,
        tokens_per_s=1234,
        left_s=65,
    )
    daemon.report(first, far)
    until(lambda: "crunching 1/4" in zenos("ps").out)
    said = " ".join(zenos("ps").out.split())
    for part in ("loss 2.5000", "lr 2.50e-04", "1,234 tok/s", "1:05 left"):
        assert part in said
    daemon.end(first)
    until(lambda: daemon.state(first) == "succeeded")
    listed = zenos("ps").out
    assert "second" in listed
    assert "first" not in listed
    assert "\x1b" not in listed
    assert "first" in zenos("ps", "--all").out
    assert [v["task"]["id"] for v in zenos("ps", "--all", "--state", "succeeded", "--json").json]
    assert zenos("ps", "--state", "runing").code == 2


def test_cancel_and_show_a_task(daemon: Daemon) -> None:
    task = zenos("submit", "--name", "job", "--", "work").out.strip()
    shown = zenos("show", "job").out
    assert "work" in shown
    assert "10:00, nobody knows: the default" in shown
    assert "none has finished" in shown
    assert zenos("cancel", "job", "--wait").code == 0
    assert daemon.state(task) == "cancelled"
    assert zenos("show", task, "--json").json["task"]["state"] == "cancelled"
    assert zenos("show", task, "--plot").code == 2


def test_status(daemon: Daemon) -> None:
    zenos("submit", "--", "work")
    found = zenos("status", "--json").json
    assert {"pid", "version", "uptime_s", "nodes", "tasks", "deployments"} <= set(found)
    assert found["nodes"][0]["node"]["capacity"]["cpu"] == 4000
    assert "local" in zenos("status").out


def test_status_says_when_the_disk_is_nearly_full_and_only_then(daemon: Daemon) -> None:
    assert "nearly full" not in zenos("status").out
    daemon.double.disk_free = 3 * limits.MIB
    assert "nearly full: 3 MiB free; free some space there" in zenos("status").out
    assert zenos("status", "--json").json["disk_free"] == 3 * limits.MIB


def test_status_says_that_the_daemon_goes_down(daemon: Daemon) -> None:
    assert "going down" not in zenos("status").out
    with connect() as client:
        client.shut_down("drain")
    assert "drain: until running tasks have ended" in zenos("status").out
    assert zenos("status", "--json").json["going_down"] == "drain"


def test_who_looks_for_a_task_is_told_of_tasks(daemon: Daemon) -> None:
    assert "cannot find the task 't99'" in zenos("show", "t99").err
    assert "cannot find 'nobody': there is no model and no task" in zenos("show", "nobody").err


def test_show_says_who_cancelled(daemon: Daemon) -> None:
    task, other = (zenos("submit", "--", "work").out.strip() for _ in range(2))
    zenos("cancel", task, "--wait")
    assert re.search(r"cancelled by\s+local, \d{4}-\d\d-\d\d", zenos("show", task).out)
    assert "cancelled by" not in zenos("show", other).out


def test_what_has_ended_does_nothing_any_more(daemon: Daemon) -> None:
    task = zenos("submit", "--", "work").out.strip()
    until(lambda: daemon.state(task) == "running")
    daemon.report(task, Progress(stage="publishing", done=4, total=4, left_s=3, loss=2.5))
    assert "publishing" in zenos("show", task).out
    daemon.end(task)
    until(lambda: daemon.state(task) == "succeeded")
    shown = zenos("show", task).out
    assert "publishing" not in shown
    assert "ended 4/4, loss 2.5" in shown


def test_models(daemon: Daemon, tmp_path: Path) -> None:
    assert "tiny:1" in zenos("list").out
    assert zenos("cp", "tiny", "third").out.strip() == "third:1"
    assert zenos("alias", "tiny:1", "prod").code == 0
    assert zenos("show", "tiny:prod", "--json").json["version"] == 1
    assert "metrics" in zenos("show", "tiny").out
    zenos("cp", "tiny", "third")
    several = zenos("rm", "third")
    assert several.code == 2
    assert "2 versions" in several.err
    assert zenos("rm", "third:1").code == 0
    assert zenos("rm", "third").code == 0
    assert "third" not in zenos("list").out
    pulled = zenos("pull", str(tmp_path))
    assert pulled.code == 2
    assert "cannot import" in pulled.err


def test_create_makes_what_was_asked_for(daemon: Daemon) -> None:
    driver = finishing(daemon, Outcome(exit_code=0, result={"model": "fresh:1"}))
    more = ("--set", "hidden_size=256", "--set", "tie_word_embeddings=true", "--seed", "7")
    ran = zenos("create", "fresh", "--arch", "llama-nano", *more, "--tokenizer", "tiny")
    driver.join()
    assert (ran.code, ran.out) == (0, "fresh:1\n")
    (task,) = daemon.double.view.tasks.values()
    work = task.spec.work
    assert isinstance(work, CreateSpec)
    assert (work.name, work.arch, work.seed, work.tokenizer) == ("fresh", "llama-nano", 7, "tiny")
    assert work.settings == {"hidden_size": 256, "tie_word_embeddings": True}


CURVE = ModelVersion(name="m", version=3, curve=[(1, 5.0, None), (50, 3.0, 3.2), (100, 2.0, 2.4)])


def test_the_curve_is_drawn_in_the_terminal() -> None:
    text = plot.rendered(CURVE, colours=False)
    assert "m:3" in text
    assert "held out" in text
    assert "100" in text
    assert "\x1b" not in text
    assert "\x1b" in plot.rendered(CURVE, colours=True)


def test_steps_are_whole_numbers_on_the_axis_each_once() -> None:
    assert plot.step_ticks(1, 3) == [1, 2, 3]
    assert plot.step_ticks(1, 60) == [1, 11, 21, 30, 40, 50, 60]
    assert plot.rendered(CURVE, colours=False).splitlines()[-1].split()[:2] == ["1", "18"]


def test_the_curve_is_written_as_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    plot.write_picture(CURVE, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    saved: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot.pictures, "save", lambda figure, _: saved.append(figure))
        plot.write_picture(CURVE, path)
    (axes,) = saved[0].axes
    drawn = {str(line.get_label()): list(map(tuple, line.get_xydata())) for line in axes.lines}
    assert drawn == {
        "training": [(1, 5.0), (50, 3.0), (100, 2.0)],
        "held out": [(50, 3.2), (100, 2.4)],
    }
    with pytest.raises(core_errors.StorageError):
        plot.write_picture(CURVE, tmp_path / "nowhere" / "loss.png")
    with pytest.raises(core_errors.NotFoundError, match="not trained here"):
        plot.write_picture(ModelVersion(name="m", version=1), path)


def test_a_missing_matplotlib_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(core_errors.InvalidError, match=r"pip install 'zenos\[plot\]'"):
        plot.write_picture(CURVE, tmp_path / "loss.png")


@pytest.mark.parametrize(("columns", "rows"), [(20, 5), (12, 6), (10, 3), (39, 40), (100, 12)])
def test_where_no_curve_fits_its_numbers_are_shown(
    monkeypatch: pytest.MonkeyPatch, columns: int, rows: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(rows))
    text = plot.rendered(CURVE, colours=False)
    assert "training:" in text
    last = next(value for point in CURVE.curve[::-1] if (value := point[1]) is not None)
    assert f"{CURVE.curve[-1][0]:,.0f} {last:.3f}" in text.splitlines()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "13")
    lines = plot.rendered(CURVE, colours=False).splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 40
    assert any(any("\u2800" < letter <= "\u28ff" for letter in line) for line in lines)


def test_show_plot(daemon: Daemon, tmp_path: Path) -> None:
    drawn = zenos("show", "tiny", "--plot")
    assert drawn.code == 0, drawn.err
    assert "loss over steps" in drawn.out
    for number, order in enumerate((("tiny", "--plot", "{}"), ("--plot", "{}", "tiny"))):
        path = tmp_path / f"{number}.png"
        written = zenos("show", *(word.format(path) for word in order))
        assert written.code == 0, written.err
        assert path.read_bytes().startswith(b"\x89PNG")


def test_run_streams_and_counts(daemon: Daemon) -> None:
    assert zenos("run", "tiny", "Say", "--complete").out == "Hello, wörld\n"
    ran = zenos("run", "tiny", "Say", "--json", "-n", "3", "--temperature", "0")
    assert ran.json["text"] == "Hello, wörld"
    assert ran.json["usage"]["completion_tokens"] == 3
    assert zenos("run", "tiny", stdin="from stdin").out == "Hello, wörld\n"
    assert daemon.double.asked[-1][1].prompt == "from stdin"
    zenos("run", "tiny", "Hi", "--chat", "--system", "Be kind")
    assert daemon.double.asked[-1][1].messages == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "Hi"},
    ]
    assert zenos("run", "tiny", "Hi", "--temperature", "9").code == 2


def test_serve_and_stop(daemon: Daemon) -> None:
    made = zenos("serve", "tiny", "--no-wait", "--priority", "60", "--keep-alive", "2m", "--json")
    assert made.json["spec"]["priority"] == 60
    assert made.json["spec"]["keep_alive_s"] == 120
    assert "tiny" in zenos("status").out
    assert zenos("stop", "tiny").code == 0


def test_schemas_need_no_daemon(home: Home) -> None:
    for name, field in (("train", "sequence_length"), ("deployment", "min_replicas")):
        assert field in json.dumps(zenos("schema", name).json)


def test_an_unexpected_fault_is_one_line(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("wires\x1b[2J crossed")

    monkeypatch.setattr("zenos.client.sync.Client.status", broken)
    ran = zenos("status")
    assert ran.code == 1
    assert ran.err.startswith("zenos: cannot go on: RuntimeError: wires")
    assert "Traceback" not in ran.err
    assert "\x1b[2J" not in ran.err


def test_serve_waits_until_a_replica_is_ready(daemon: Daemon) -> None:
    def drive() -> None:
        until(lambda: any(t.state == "running" for t in daemon.double.view.tasks.values()))
        task = next(iter(daemon.double.view.tasks.values()))
        ready = events.WorkerReady(task=task.id, generation=task.generation)
        daemon.do(daemon.double.inbox.put, ready)

    driver = threading.Thread(target=drive)
    driver.start()
    ran = zenos("serve", "tiny")
    driver.join()
    assert ran.code == 0
    assert "tiny is served at http://127.0.0.1" in ran.out
    assert "tiny" in zenos("ps", "--kind", "serve").out


@pytest.mark.parametrize("text", ["\udcff", "a\0b"])
def test_arguments_that_are_no_text_are_told(daemon: Daemon, text: str) -> None:
    ran = zenos("submit", "--", "echo", text)
    assert ran.code == 2
    assert ran.err.startswith("zenos: cannot ")
    assert daemon.double.view.tasks == {}
