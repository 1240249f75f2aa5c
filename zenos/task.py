"""For programs that run as tasks and save their own state: `zenos submit --yields helper`.

    import zenos

    while work_is_left():
        do_some_of_it()
        if zenos.task.should_yield():
            save()
            zenos.task.yielded()

Standard library only. A program that was not started by zenos is never asked to yield.
"""

from __future__ import annotations

import os
import sys
from typing import Final, NoReturn

__all__ = ["EXIT_YIELDED", "should_yield", "yielded"]

# In the run directory, made by the daemon when the task is to be suspended.
YIELD: Final = "yield"
# The task has saved its state because it was asked to (EX_TEMPFAIL of sysexits.h).
EXIT_YIELDED: Final = 75


def should_yield() -> bool:
    """Whether this task is to save its state and end. Costs one look at the file system.

    False in a program that zenos did not start.
    """
    home, task = os.environ.get("ZENOS_HOME"), os.environ.get("ZENOS_TASK")
    generation = os.environ.get("ZENOS_GENERATION")
    if not (home and task and generation):
        return False
    return os.path.exists(os.path.join(home, "runs", task, generation, YIELD))  # noqa: PTH110, PTH118


def yielded() -> NoReturn:
    """End: the state is saved, and a later start of this program goes on from it.

    Raises SystemExit with code 75, so that `finally` clauses run. Without having been asked to
    yield, a task that ends so has failed.
    """
    sys.exit(EXIT_YIELDED)
