"""What decides when a task may start, at the command line and in both clients."""

from __future__ import annotations

import json
from pathlib import Path

import zenos as package
from tests.cli.conftest import Daemon, Ran, until, zenos
from zenos.core.task import Outcome


def submit(*flags: str) -> str:
    ran = zenos("submit", "--cpu", "0.1", *flags, "--", "work")
    assert ran.code == 0, ran.err
    return ran.out.strip()


def refused(*flags: str) -> Ran:
    return zenos("submit", *flags, "--", "work")


def test_after(daemon: Daemon) -> None:
    first = submit("--name", "first")
    until(lambda: daemon.state(first) == "running")
    child = submit("--name", "child", "--after", "first")
    other = submit("--after", f"{child},any:{first}", "--after", "first")
    assert "comes after first (running)" in zenos("ps").out
    assert "comes after first (running)" in zenos("show", "child").out
    daemon.end(first, Outcome(exit_code=1))
    until(lambda: daemon.state(other) == "cancelled")
    assert f"cancelled: {first} has failed" in zenos("ps", "--all").out
    ran = zenos("submit", "--wait", "--after", "first", "--", "work")
    assert ran.code == 1
    assert f"was cancelled: {first} has failed" in ran.err
    assert refused("--after", "nobody").code == 3
    assert refused("--after", "a b").code == 2


def test_a_file_of_tasks(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "night.yaml"

    def submitted(text: str, *flags: str) -> Ran:
        file.write_text(text)
        return zenos("submit", *flags, str(file))

    ran = submitted(
        "tasks:\n  report: {run: [work, 1], after: clean, cpu: 0.1}\n"
        "  clean: {run: [work], cpu: 0.1, env: {A: b}, priority: high}\n"
    )
    assert ran.code == 0, ran.err
    clean, report = ran.out.split()
    there = daemon.do(lambda: dict(daemon.double.view.tasks))
    task = there[clean]
    assert (task.spec.name, task.spec.priority) == ("clean", 75)
    assert task.spec.work.cwd == str(tmp_path)  # type: ignore[union-attr]
    assert there[report].after == (clean,)
    for text, said in (
        ("tasks: {a: {run: [x], after: b}, b: {run: [x], after: a}}", "→"),
        ("tasks: {a: {run: [x]}, a: {run: [y]}}", "'a' is there twice"),
        ("tasks: {a: {run: x}}", "give a list of arguments"),
        ("tasks: {a: {run: [x], cpus: 1}}", "cpus"),
        ("tasks: {a: {cpu: 1}}", "either 'run' or 'train'"),
        ("tasks: {a: {cpu: 1, nonsense: 2}}", "either 'run' or 'train'"),
        ("tasks: {a: {rn: [x]}}", "the field 'rn': it is unknown; did you mean 'run'? (task a)"),
        ("tasks: {a: {cpu: 1, tran: {}}}", "'tran': it is unknown; did you mean 'train'?"),
        ("tasks: {a: {run: [x], evn: {}}}", "'evn': it is unknown; did you mean 'env'?"),
        ("tasks: {a: {run: [x], name: b}}", "cannot name it twice"),
        ("tasks: {a: {run: [x], cwd: }}", "cannot use the path None"),
        ("tasks: {a: {run: [x], cwd: ~nobody.here}}", "'~nobody.here': nobody here is called so"),
        ("tasks: {a: {train: {data: ~nobody.here/x}}}", "nobody here is called so"),
        (
            "tasks: {a: {train: {}, cwd: x}}",
            "the field 'cwd' beside 'train': leave it out (task a)",
        ),
        ("tasks: {a: {train: {}, env: {}}}", "the field 'env' beside 'train': leave it out"),
        ("task: {}", "the file has 'tasks:'"),
        ("tasks: {a: {run: [x]}, b: {run: [x], cpu: 900}}", "cannot ever fit"),
    ):
        ran = submitted(text)
        assert ran.code in (2, 4), text
        assert said in ran.err, text
    assert "write it into the file" in submitted("tasks: {a: {run: [x]}}", "--cpu", "2").err
    assert "cannot find" in zenos("submit", str(tmp_path / "none.yaml")).err
    assert daemon.do(lambda: len(daemon.double.view.tasks)) == 2


def test_arguments_in_a_file_of_tasks_are_given_as_they_stand_there(
    daemon: Daemon, tmp_path: Path
) -> None:
    file = tmp_path / "night.yaml"
    file.write_text(
        "tasks: {a: {run: [work, &n 3, 1.10, yes, 1e3, 010, '5'], cpu: 0.1, retries: *n}}"
    )
    ran = zenos("submit", str(file))
    assert ran.code == 0, ran.err
    spec = daemon.do(lambda: dict(daemon.double.view.tasks))[ran.out.strip()].spec
    assert spec.work.argv == ["work", "3", "1.10", "yes", "1e3", "010", "5"]  # type: ignore[union-attr]
    assert spec.retries == 3


def test_a_file_of_tasks_may_be_json_as_programs_write_it(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "night.json"
    argv = ["work", "\U0001f600", 1.10, True]
    tasks = {"tasks": {"a": {"run": argv, "cpu": 0.1, "time": None, "env": {}}}}
    file.write_text(json.dumps(tasks, indent="\t"))
    ran = zenos("submit", str(file))
    assert ran.code == 0, ran.err
    spec = daemon.do(lambda: dict(daemon.double.view.tasks))[ran.out.strip()].spec
    assert spec.work.argv == ["work", "\U0001f600", "1.1", "true"]  # type: ignore[union-attr]
    assert spec.resources.cpu == 100
    for text, says in (
        ('{"tasks": {"a": {"run": ["x"]}, "a": {"run": ["y"]}}}', "'a' is there twice"),
        ('{"tasks": {"a": {"run": ["x"], "cpu": NaN}}}', "cannot use cpu nan"),
        ('{"tasks": ' + "[" * 100_000, "it is nested too deeply"),
    ):
        file.write_text(text)
        assert says in zenos("submit", str(file)).err, text


def test_flags_may_follow_a_file_of_tasks(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "night.json"
    file.write_text('{"tasks": {"a": {"run": ["work"], "cpu": 0.1}}}')
    ran = zenos("submit", str(file), "--json")
    assert (ran.code, [task["spec"]["name"] for task in ran.json]) == (0, ["a"]), ran.err
    for words, said in (
        (["--cpu", "2"], "cannot use --cpu with a file of tasks"),
        (["--follow"], "cannot follow a file of tasks"),
        (["--wiat"], "cannot use the option --wiat: there is none; did you mean '--wait'?"),
        (["--wait", "other.yaml"], "cannot use 'other.yaml' after the file of tasks"),
        ([str(file)], "give one file, and flags"),
        (["--cpu"], "option '--cpu' requires an argument"),
        (["--cpu", "2", "--name"], "option '--name' requires an argument"),
        (["epochs=3"], "to run"),
    ):
        for before in ([], ["--name", "x.yaml"]):
            ran = zenos("submit", *before, str(file), *words)
            assert ran.code == 2, words
            assert said in ran.err or before, words
    ran = zenos("submit", str(file), "--json", "--wiat")
    assert json.loads(ran.err)["error"]["code"] == "invalid"
    assert daemon.do(lambda: len(daemon.double.view.tasks)) == 1
    # After -- it is a program, with arguments of its own.
    for arguments in ([], ["--wait"]):
        ran = zenos("submit", "--", str(file), *arguments)
        there = daemon.do(lambda: dict(daemon.double.view.tasks))
        work = there[ran.out.strip()].spec.work
        assert work.argv == [str(file), *arguments]  # type: ignore[union-attr]


async def test_both_clients_take_them(daemon: Daemon) -> None:
    with package.connect() as client:
        first = client.submit(["work"], cpu=0.1, name="first")
        child = client.submit(["work"], cpu=0.1, after=[first.id])
    async with package.connect_async() as other:
        grandchild = await other.submit(["work"], cpu=0.1, after=f"any:first,{child.id}")
        assert grandchild.task.after == (f"any:{first.id}", child.id)
        until(lambda: daemon.state(first.id) == "running")
        daemon.end(first.id)
        until(lambda: daemon.state(child.id) == "running")
        daemon.end(child.id)
        until(lambda: daemon.state(grandchild.id) == "running")


def test_an_array_is_one_line_until_it_is_asked_for(daemon: Daemon) -> None:
    array = submit("--name", "sweep", "--array", "0-4:2%1")
    assert array == "array-1"
    until(lambda: daemon.state("t1") == "running")
    line = next(line for line in zenos("ps").out.splitlines() if "array-1" in line)
    assert "1 running, 2 queued of 3: work" in line or "2 queued, 1 running of 3: work" in line
    assert "sweep[0]" not in zenos("ps").out
    for flags in (("--array", "sweep"), ("--array", array), ("--all",)):
        assert "sweep[4]" in zenos("ps", *flags).out
    assert zenos("ps", "--json").json[0]["array"]["id"] == array
    assert "waits for its turn: 1 of array-1 at once" in zenos("ps", "--array", array).out
    assert "sweep[2]" in zenos("show", "sweep[2]").out
    ran = zenos("cancel", "--wait", "sweep", "nobody")
    assert (ran.code, "sweep is cancelled: 3 of 3 ended" in ran.err) == (3, True)
    assert {daemon.state(f"t{n}") for n in (1, 2, 3)} == {"cancelled"}
    child = submit("--after", "any:sweep")
    until(lambda: daemon.state(child) == "running")


def test_arrays_that_cannot_be(daemon: Daemon) -> None:
    for flags, code, said in (
        (("--array", "0-9999999"), 2, "at most 10000"),
        (("--array", "x"), 2, "write 0-99"),
        (("--array", "5-1"), 2, "it is less"),
        (("--array", "0-3", "--follow"), 2, "cannot follow an array"),
        (("--array", "0-3", "--name", "array-1"), 2, "ids look like that"),
    ):
        ran = refused(*flags)
        assert (ran.code, said in ran.err) == (code, True), (flags, ran.err)
    assert zenos("ps", "--array", "nobody").code == 3


async def test_both_clients_have_arrays(daemon: Daemon) -> None:
    with package.connect() as client:
        view = client.submit_array(["work"], "0-2", cpu=0.1, name="sweep", key="k")
        assert client.submit_array(["work"], "0-2", cpu=0.1, name="sweep", key="k") == view
        until(lambda: client.array("sweep").states == {"running": 3})
        daemon.end("t2")
        until(lambda: client.array("sweep").ended == 1)
    async with package.connect_async() as other:
        assert (await other.array(view.array.id)).array == view.array
        assert len(await other.array_tasks("sweep")) == 3
        tasks, arrays = await other.collapsed()
        assert (tasks, [one.array for one in arrays]) == ([], [view.array])
        await other.cancel_array("sweep")
        made = await other.submit_array(["work"], "7", cpu=0.1)
        assert made.array.indices.count == 1
    until(lambda: daemon.state("t3") == "cancelled")


def test_start_times_and_deadlines(daemon: Daemon) -> None:
    later = submit("--at", "+2h", "--by", "+3h")
    view = zenos("show", later, "--json").json
    assert view["waits"].startswith(("starts in 1:59:", "starts in 2:00:00"))
    assert 3590 < view["task"]["spec"]["deadline"] - view["task"]["spec"]["start_at"] < 3610
    ran = zenos("submit", "--cpu", "0.1", "--by", "+5m", "--time", "10m", "--", "work")
    assert ran.code == 0
    assert "note: it is expected to run for 600 s, and its deadline leaves " in ran.err
    for flags, said in (
        (("--by", "2020-01-01"), "the deadline is in the past"),
        (("--at", "+3h", "--by", "+2h"), "give a deadline after start_at"),
        (("--at", "nan"), "write 18:00"),
        (("--by", "soon"), "write 18:00"),
    ):
        ran = refused(*flags)
        assert (ran.code, said in ran.err) == (2, True), (flags, ran.err)


def test_nodes_and_labels(daemon: Daemon) -> None:
    task = submit("--node", "local")
    until(lambda: daemon.state(task) == "running")
    for flags, code, said in (
        (("--node", "big"), 4, "no node is called 'big'; there are local"),
        (("--label", "disk=fast", "--label", "zone=a"), 4, "no node has disk=fast, zone=a"),
        (("--label", "disk"), 2, "write KEY=VALUE"),
        (("--label", "a=1", "--label", "a=2"), 2, "cannot want a=1 and a=2 of one node"),
        (("--label", "a b=1"), 2, "cannot use the label"),
        (("--node", "../x"), 2, "cannot use the node name"),
    ):
        ran = refused(*flags)
        assert (ran.code, said in ran.err) == (code, True), (flags, ran.err)
