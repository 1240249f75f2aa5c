"""Ray: how long a call of an actor in another process takes, 64 bytes there and back, in µs.

`ray_actor.py COUNT` prints the times as JSON.
"""

import importlib
import json
import sys
import time
from typing import Any

ray: Any = importlib.import_module("ray")  # in an environment of its own

BODY, WARM = b"x" * 64, 200


class Echo:
    """A process of its own."""

    def echo(self, body: bytes) -> bytes:
        """The same bytes."""
        return body


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
actor = ray.remote(Echo).remote()
times = []
for number in range(WARM + int(sys.argv[1])):
    begun = time.perf_counter()
    ray.get(actor.echo.remote(BODY))
    if number >= WARM:
        times.append(1e6 * (time.perf_counter() - begun))
print(json.dumps(times))
ray.shutdown()
