"""A worker as a process of its own, for tests that kill it: says each step on its standard output.

`python -m tests.runtime.train.child HOME GENERATION SPEC` with SPEC a TrainSpec in JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from zenos.core.specs import TrainSpec
from zenos.core.wire import Progress
from zenos.runtime import context as context_module
from zenos.runtime import worker
from zenos.runtime.train.main import main

from .helpers import Bus, make_context, make_task


def say(progress: Progress) -> None:
    print(progress.stage, int(progress.done), progress.note, flush=True)


if __name__ == "__main__":
    context_module.REPORT_EVERY_S = 0.0  # type: ignore[misc]
    task = make_task(msgspec.json.decode(sys.argv[3], type=TrainSpec), generation=int(sys.argv[2]))
    worker.use_threads(worker.thread_count(task))
    bus = Bus()
    bus.on_progress = say
    sys.exit(worker.run(make_context(Path(sys.argv[1]), task, bus), main))
