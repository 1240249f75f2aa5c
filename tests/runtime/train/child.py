"""Workers as processes of their own, for tests that kill them.

Torch takes seconds to import, so one process imports it and forks a worker for each request (a line
of JSON on its standard input). It answers with the worker's pid, and, when that has ended, with its
exit code. A worker writes each step into the named pipe of its request, and its log beside that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from zenos.core import failpoints
from zenos.core.home import Home
from zenos.core.specs import TrainSpec
from zenos.core.wire import Progress
from zenos.runtime import context as context_module
from zenos.runtime import worker, zygote
from zenos.runtime.train.gang import Follower
from zenos.runtime.train.main import main
from zenos.runtime.train.ranks import main as follow

from .helpers import Bus, make_context, make_task


class Request(msgspec.Struct):
    """One generation of task t1. workers: how many of an elastic training. armed: the stage that it
    must have told of before failpoints count; the beginning without one."""

    home: str
    generation: int
    spec: TrainSpec
    pipe: str
    failpoints: str = ""
    armed: str = ""
    workers: int = 0


def work(request: Request) -> int:
    """In the fork: the task's work; returns the exit code."""
    pipe = os.open(request.pipe, os.O_WRONLY)
    log = os.open(f"{request.pipe}.log", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)

    left = [request.armed] if request.armed else []

    def say(progress: Progress) -> None:
        stage, _, _ = progress.stage.partition(",")  # without how many lanes it has
        if left == [stage]:
            left.clear()
            failpoints.arm(request.failpoints)
        os.write(pipe, f"{stage} {int(progress.done)} {progress.note}\n".encode())

    context_module.REPORT_EVERY_S = 0.0  # type: ignore[misc]
    failpoints.arm("" if request.armed else request.failpoints)
    count = request.workers or request.spec.workers
    task = make_task(request.spec, generation=request.generation, cpu=1000 * count, workers=count)
    gang = worker.form_gang(task)
    worker.use_threads(worker.thread_count(task))
    if isinstance(gang, Follower):
        home = Home(Path(request.home))
        return follow(task, home, home.run(task.id, task.generation), gang)
    bus = Bus()
    bus.on_progress = say
    context = make_context(Path(request.home), task, bus)
    context.gang = gang
    try:
        return worker.run(context, main)
    finally:
        if gang is not None:
            gang.close()


def serve() -> None:
    """Fork a worker for each line of standard input."""
    zygote.preload()
    for line in sys.stdin:
        request = msgspec.json.decode(line, type=Request)
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = work(request)
            finally:
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
