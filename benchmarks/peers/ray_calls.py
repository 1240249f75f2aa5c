"""Ray: no-op tasks in a second with many in flight, one alone, and a map in chunks.

Not durable: nothing is on disk when a call returns.
"""

import importlib
import json
import time
from typing import Any

ray: Any = importlib.import_module("ray")  # in an environment of its own

CALLS, ALONE, ITEMS, LANES, ROUNDS = 10_000, 500, 100_000, 2, 3


def increment(number: int) -> int:
    """A function that costs nothing but being called."""
    return number + 1


def many(numbers: list[int]) -> list[int]:
    """A chunk."""
    return [increment(number) for number in numbers]


one, chunk = ray.remote(num_cpus=1)(increment), ray.remote(num_cpus=1)(many)
ray.init(num_cpus=LANES, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.get([one.remote(n) for n in range(200)])
rate, alone_us, mapped = [], [], []
size = -(-ITEMS // (4 * LANES))
for _ in range(ROUNDS):
    begun = time.perf_counter()
    ray.get([one.remote(n) for n in range(CALLS)])
    rate.append(CALLS / (time.perf_counter() - begun))
    begun = time.perf_counter()
    parts = [chunk.remote(list(range(at, min(at + size, ITEMS)))) for at in range(0, ITEMS, size)]
    found = [number for part in ray.get(parts) for number in part]
    mapped.append(ITEMS / (time.perf_counter() - begun))
    if found != list(range(1, ITEMS + 1)):
        raise RuntimeError("cannot measure: the results are wrong")
for number in range(ALONE):
    begun = time.perf_counter()
    ray.get(one.remote(number))
    alone_us.append(1e6 * (time.perf_counter() - begun))
print(json.dumps({"rate": rate, "alone_us": alone_us, "map": mapped}))
ray.shutdown()
