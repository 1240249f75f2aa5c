"""Ray: seconds until an actor in a fresh process answers, of a program, and programs in a second.

Not durable: nothing is on disk when a call returns.
"""

import importlib
import json
import os
import subprocess
import time
from typing import Any

ray: Any = importlib.import_module("ray")  # in an environment of its own

ACTORS, ALONE, PROGRAMS = 8, 25, 200


class Worker:
    """A fresh process."""

    def pid(self) -> int:
        """Its id."""
        return os.getpid()


def program() -> int:
    """A program run by a worker."""
    return subprocess.run(["true"], check=True).returncode


lane, remote = ray.remote(num_cpus=1)(program), ray.remote(num_cpus=0.1)(Worker)
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.get([lane.remote() for _ in range(4)])
# More than Ray keeps warm, so that each is a process that was started for it.
actors, times = [], []
for _ in range(ACTORS):
    begun = time.perf_counter()
    actors.append(remote.remote())
    ray.get(actors[-1].pid.remote())
    times.append(time.perf_counter() - begun)
alone = []
for _ in range(ALONE):
    begun = time.perf_counter()
    ray.get(lane.remote())
    alone.append(time.perf_counter() - begun)
begun = time.perf_counter()
ray.get([lane.remote() for _ in range(PROGRAMS)])
rate = PROGRAMS / (time.perf_counter() - begun)
print(json.dumps({"rate": rate, "actors": times, "programs": alone}))
ray.shutdown()
