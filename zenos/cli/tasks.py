"""Tasks: submit, train, ps, logs, cancel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from zenos.cli.commands import FileOrProgram
from zenos.cli.common import (
    Json,
    client,
    complete_priorities,
    complete_tasks,
    end_with,
    finish,
    for_each,
)
from zenos.cli.train_flags import in_flags, merged, read_spec, with_train_flags
from zenos.cli.when_flags import ARRAY, with_when_flags

if TYPE_CHECKING:
    from zenos.client import TaskHandle

Cpu = Annotated[float, typer.Option(help="Cores, e.g. 0.5.")]
Gpu = Annotated[float, typer.Option(help="GPUs, or a share of one.")]
GpuMemory = Annotated[str, typer.Option(help="Memory on the GPU, e.g. 4GiB.")]
Priority = Annotated[
    str,
    typer.Option(
        help="low, normal, high or 0 to 100; higher goes first.",
        metavar="PRIORITY",
        autocompletion=complete_priorities,
    ),
]
Time = Annotated[
    str | None, typer.Option(help="Expected run time: 90s, 10m, 2h. Short work goes first.")
]
TimeLimit = Annotated[str | None, typer.Option(help="End it after this time: 90s, 10m, 2h.")]
Name = Annotated[str | None, typer.Option(help="A name for it.")]
Topic = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A topic of the bus that it may use; may be repeated."),
]
Retries = Annotated[int, typer.Option(help="How often a failed run is started again.")]
Key = Annotated[
    str | None,
    typer.Option(help="Idempotency-Key: sent again with the same, it gives the same task."),
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show it live until it ends.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait quietly until it ends.")]
TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help="Its id or name.", autocompletion=complete_tasks)
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    panel = "Tasks"
    arguments_follow = {"allow_interspersed_args": False}
    app.command(
        "submit", cls=FileOrProgram, rich_help_panel=panel, context_settings=arguments_follow
    )(with_when_flags(submit, array=ARRAY))
    app.command("train", rich_help_panel=panel)(with_train_flags(with_when_flags(train)))
    app.command("ps", rich_help_panel=panel)(ps)
    app.command("logs", rich_help_panel=panel)(logs)
    app.command("cancel", rich_help_panel=panel)(cancel)


def submit(
    context: typer.Context,
    program: Annotated[
        list[str], typer.Argument(metavar="-- PROGRAM [ARGS]...", help="What to run.")
    ],
    cpu: Cpu = 1.0,
    gpu: Gpu = 0.0,
    memory: Annotated[
        str, typer.Option(help="Memory, e.g. 2GiB; it is ended when it takes more.")
    ] = "512MiB",
    gpu_memory: GpuMemory = "0",
    priority: Priority = "normal",
    time: Time = None,
    time_limit: TimeLimit = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="An environment variable; may be repeated."),
    ] = None,
    cwd: Annotated[Path | None, typer.Option(help="Its working directory; default this.")] = None,
    topic: Topic = None,
    yields: Annotated[
        str,
        typer.Option(
            help="How it saves its state when it is suspended: none, signals or helper.",
            metavar="HOW",
        ),
    ] = "none",
    name: Name = None,
    retries: Retries = 0,
    array: str | None = None,
    key: Key = None,
    follow: Follow = False,
    wait: Wait = False,
    json: Json = False,
    when: Mapping[str, Any] = {},
) -> None:
    """Run any program as a task, or as an array of tasks; or all tasks of a FILE.yaml.

    Example: zenos submit --cpu 2 --memory 4GiB --follow -- python work.py --epochs 3
    """
    from zenos.cli import notes
    from zenos.client import build
    from zenos.client.build import TaskOptions

    if (file := context.meta.get(FileOrProgram.FILE)) is not None:
        _submit_file(context, Path(file), follow=follow, wait=wait, json=json)
        return
    options = TaskOptions(
        name=_named(name),
        cpu=cpu,
        gpu=gpu,
        memory=memory,
        gpu_memory=gpu_memory,
        priority=priority,
        time=time,
        time_limit=time_limit,
        retries=retries,
        **when,
    )
    spec = options.task(build.program(program, _environment(env), cwd, topic or (), yields))
    spec.check()
    with client() as made:
        if array is not None:
            from zenos.cli.arrays import submit as submit_array

            submit_array(made, spec, array, key=key, follow=follow, wait=wait, json=json)
            return
        handle = made.submit(spec, key=key)
        notes.note_programs(made.address, [spec.work], json=json)
        _after_submit(handle, follow=follow, wait=wait, json=json, log=True)


def _submit_file(
    context: typer.Context, file: Path, *, follow: bool, wait: bool, json: bool
) -> None:
    from zenos.cli import batches
    from zenos.core.errors import InvalidError

    if follow:
        raise InvalidError("cannot follow a file of tasks: 'zenos logs -f TASK' follows one")
    with client() as made:
        batches.submit(made, file, given=_flags_given(context), wait=wait, json=json)


def _flags_given(context: typer.Context) -> list[str]:
    """The flags of this command that were given, other than those for any submission."""
    found = []
    for option in context.command.params:
        source = context.get_parameter_source(str(option.name))
        given = source is not None and source.name == "COMMANDLINE"
        if given and option.param_type_name == "option":
            found.append(str(option.opts[0]))
    return [flag for flag in found if flag not in ("--wait", "--json", "--follow")]


def _named(name: str | None) -> str:
    """A name that was given may not be empty; the specification's empty one means none."""
    from zenos.core.names import check_new_name

    return "" if name is None else check_new_name(name, "task name")


def _environment(items: list[str] | None) -> dict[str, str]:
    import os

    from zenos.core.errors import InvalidError

    env: dict[str, str] = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals and name not in os.environ:
            raise InvalidError(f"cannot pass on {name[:60]!r}: it is not set; write NAME=VALUE")
        env[name] = value if equals else os.environ[name]
    return env


def train(
    spec: Annotated[
        Path | None, typer.Argument(metavar="SPEC.yaml", help="A file with the fields below.")
    ] = None,
    cpu: Annotated[float | None, typer.Option(help="Cores, e.g. 0.5. Default 1.")] = None,
    gpu: Annotated[
        float | None, typer.Option(help="GPUs, or a share of one. Default none.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of the run, e.g. 8GiB. Default 2GiB.")
    ] = None,
    gpu_memory: Annotated[str | None, typer.Option(help="Memory on the GPU, e.g. 4GiB.")] = None,
    priority: Annotated[
        str | None,
        typer.Option(
            help="low, normal, high or 0 to 100; higher goes first. Default normal.",
            metavar="PRIORITY",
            autocompletion=complete_priorities,
        ),
    ] = None,
    time: Time = None,
    time_limit: TimeLimit = None,
    name: Annotated[str | None, typer.Option(help="A name for it.")] = None,
    retries: Annotated[
        int | None, typer.Option(help="How often a failed run is started again. Default 0.")
    ] = None,
    key: Key = None,
    follow: Follow = False,
    wait: Wait = False,
    json: Json = False,
    when: Mapping[str, Any] = {},
    **flags: Any,
) -> None:
    """Train a model; the result is registered. Flags win over the file, the file over defaults.

    Example: zenos train --model shakespeare --arch llama-nano --data input.txt --follow
    """
    from zenos.cli import notes
    from zenos.client import build

    given = {
        "name": None if name is None else _named(name),
        "cpu": cpu,
        "gpu": gpu,
        "memory": memory,
        "gpu_memory": gpu_memory,
        "priority": priority,
        "time": time,
        "time_limit": time_limit,
        "retries": retries,
        **when,
    }
    options = {option: value for option, value in given.items() if value is not None}
    values = merged(read_spec(spec) if spec is not None else {}, {**flags, **options})
    with in_flags(flags, has_file=spec is not None):
        work = build.train_task(None, values)
        work.check()
    with client() as made:
        handle = made.submit(work, key=key)
        notes.note_data(work.work)
        _after_submit(handle, follow=follow, wait=wait, json=json, log=False)


def _after_submit(handle: TaskHandle, *, follow: bool, wait: bool, json: bool, log: bool) -> None:
    """Say what was submitted, or stay with it; the exit code is then the task's."""
    import sys

    from zenos.cli.errors import INTERRUPTED
    from zenos.cli.output import put_json, say
    from zenos.cli.waiting import naming, until_end

    if handle.task.warning:
        say(f"note: {handle.task.warning}")
    if not follow and not wait:
        if json:
            put_json(handle.task)
        else:
            _submitted(handle)
        return
    try:
        with naming(handle):
            if not follow:
                until_end(handle)
            elif log:
                # The log is the result of a program; with --json that is the task.
                _stream_log(handle, sys.stderr if json else sys.stdout)
                handle.wait()
            else:
                handle.wait(progress=True)
    except KeyboardInterrupt:
        if not _has_ended(handle):
            say(f"\n{handle.task.name} goes on; 'zenos cancel {handle.id}' ends it")
            raise typer.Exit(INTERRUPTED) from None
        say(f"\n{handle.task.name} had ended already; 'zenos logs {handle.id}' shows all of it")
    if json:
        put_json(handle.task)
    elif not log or not follow:
        _ended(handle)
    finish(handle.task)


def _has_ended(handle: TaskHandle) -> bool:
    """Whether it has by now; where that can't be told at once, as it was last seen."""
    from contextlib import suppress

    from zenos.client import connect
    from zenos.core.errors import ZenosError

    if not handle.task.is_ended:
        # The client at hand is patient with a daemon that is away; who has typed Ctrl-C isn't.
        with suppress(ZenosError), connect(retry_s=0) as made:
            handle.view = made.look(handle.id)
    return handle.task.is_ended


def _submitted(handle: TaskHandle) -> None:
    from zenos.cli.output import put, say

    put(handle.id)
    say(f"{handle.task.name} is {handle.task.state}; 'zenos logs -f {handle.id}' follows it")


def _ended(handle: TaskHandle) -> None:
    from zenos.cli.output import say
    from zenos.client.display import show_seconds, took_s
    from zenos.core.specs import TrainSpec
    from zenos.core.task import State

    task = handle.task
    if task.state is not State.SUCCEEDED:
        return
    result = (task.outcome.result if task.outcome else None) or {}
    made = result.get("model")
    work = task.spec.work
    asked = isinstance(work, TrainSpec) and work.objective == "causal_lm"
    more = f"'zenos run {made}' asks it" if asked else f"'zenos show {made}' tells about it"
    what = f"; registered as {made} ({more})" if made else ""
    say(f"{task.name} succeeded in {show_seconds(took_s(task))}{what}")


def _stream_log(handle: TaskHandle, stream: TextIO) -> None:
    from zenos.cli.output import put_log

    for text in handle.log(follow=True, errors="surrogateescape"):
        put_log(text, stream)


def ps(
    all_: Annotated[
        bool, typer.Option("--all", "-a", help="Ended tasks too, and each task of an array.")
    ] = False,
    state: Annotated[
        str | None, typer.Option(help="Only these states, e.g. queued,running.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only these kinds, e.g. train,serve, or array.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=9999, help="At most so many.")] = 100,
    array: Annotated[
        str | None, typer.Option(metavar="ARRAY", help="The tasks of an array, by its id or name.")
    ] = None,
    threads: Annotated[
        bool, typer.Option("--threads", help="Under each task the threads of its pools.")
    ] = False,
    json: Json = False,
) -> None:
    """List tasks: what runs, what waits, how far it is. An array is one line.

    Where they are of several people, whose each is.

    Example: zenos ps --all --kind train
    """
    from zenos.cli.arrays import ARRAY_KIND, array_row, listed
    from zenos.cli.output import put_json, say, table
    from zenos.cli.rows import TASKS, task_rows, with_owners
    from zenos.cli.threads import put_tree, threads_of
    from zenos.core.errors import InvalidError
    from zenos.core.task import ENDED, State

    if state is None and not all_ and array is None:
        state = ",".join(s for s in State if s not in ENDED)
    if threads and kind is not None and ARRAY_KIND in kind.split(","):
        raise InvalidError("cannot show threads of arrays: 'zenos ps --threads --array' does")
    with client() as made:
        views, arrays = listed(
            made, state, kind, limit + 1, array=array, whole=not (all_ or threads)
        )
        more = len(views) + len(arrays) > limit
        arrays = arrays[:limit]
        views = views[: limit - len(arrays)]
        known = threads_of(made, views) if threads else {}
    hint = "no tasks" if all_ else "no tasks run or wait; 'zenos ps --all' lists ended ones"
    if threads:
        put_tree(views, known, empty=hint, json=json)
    elif json:
        put_json([*arrays, *views])
    else:
        rows = [*map(array_row, arrays), *task_rows(views)]
        owners = [view.array.principal for view in arrays]
        owners += [view.task.principal for view in views]
        table(*with_owners(TASKS, rows, owners), empty=hint)
    if more:
        say(f"the first {limit}; --limit shows more")


def logs(
    task: TaskName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")
    ] = False,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=0, help="Last lines.")] = None,
    generation: Annotated[
        int | None, typer.Option(min=1, help="Of an earlier run of a task that was started again.")
    ] = None,
    json: Json = False,
) -> None:
    """Print what a task has written.

    Example: zenos logs -f t12
    """
    import re
    import sys
    from collections import deque

    from zenos.cli.output import put_json, put_log
    from zenos.core.errors import InvalidError

    if json and follow:
        raise InvalidError("cannot follow with --json: the log is a stream; leave one of them out")
    if follow and generation is not None:
        raise InvalidError("cannot follow --generation: leave one of them out")
    with client() as made:
        handle = made.task(task)
        if json or tail is not None:
            errors = "replace" if json else "surrogateescape"
            whole = "".join(handle.log(generation=generation, errors=errors))
            # `splitlines` would take U+2028, form feeds and others for the end of a line, too.
            lines = deque(filter(None, re.split(r"(?<=\n)", whole)), maxlen=tail)
            if json:
                put_json({"task": handle.id, "log": "".join(lines)})
                return
            put_log("".join(lines), sys.stdout)
            if not follow:
                return
        skip = 0 if tail is None else handle.log_offset
        for text in handle.log(
            follow=follow, offset=skip, generation=generation, errors="surrogateescape"
        ):
            put_log(text, sys.stdout)


def cancel(
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...", help="Ids or names, of arrays too.", autocompletion=complete_tasks
        ),
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until they have ended.")] = False,
    json: Json = False,
) -> None:
    """Cancel tasks: their whole process groups are ended within the grace time.

    Of several names those that are there and yours are cancelled; the others are named, and the
    exit code is that of the first of them.

    Example: zenos cancel t12
    """
    from zenos.cli import arrays as arrays_
    from zenos.cli.output import put_json, say

    def act(handle: TaskHandle) -> TaskHandle:
        handle.cancel()
        return handle

    with client() as made:
        ids, names = arrays_.split(made, tasks)
        arrays, failed = for_each(ids, lambda array: arrays_.cancel(made, array, wait=wait))
        found, unknown = for_each(names, made.task)
        over = {handle.id for handle in found if handle.task.is_ended}
        handles, refused = for_each(found, act)
        failed += [*unknown, *refused]
        if wait:
            for handle in handles:
                handle.wait()
        if json:
            put_json([*arrays, *(handle.task for handle in handles)])
    for view in [] if json else arrays:
        say(f"{view.array.name} is cancelled: {view.ended} of {view.array.indices.count} ended")
    for handle in [] if json else handles:
        task = handle.task
        if handle.id in over:
            say(f"{task.name} has ended already: {task.state}")
        else:
            say(f"{task.name} is {task.state if task.is_ended else 'being ended'}")
    end_with(failed)
