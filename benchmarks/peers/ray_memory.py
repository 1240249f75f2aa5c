"""Ray: milliseconds to put 256 MiB and have an actor in another process read both ends of them."""

import importlib
import json
import time
from typing import Any

ray: Any = importlib.import_module("ray")  # in an environment of its own
np: Any = importlib.import_module("numpy")

ROUNDS, BYTES = 10, 256 * 2**20


class Reader:
    """A process of its own."""

    def ends(self, array: Any) -> float:
        """The array lies in the object store; nothing of it is copied here."""
        return float(array[0] + array[-1])


ray.init(
    num_cpus=2,
    include_dashboard=False,
    log_to_driver=False,
    logging_level="ERROR",
    object_store_memory=4 * BYTES,
)
reader = ray.remote(Reader).remote()
array = np.random.default_rng(0).random(BYTES // 4, np.float32)
times = []
for _ in range(ROUNDS + 1):
    begun = time.perf_counter()
    ray.get(reader.ends.remote(ray.put(array)))
    times.append(1000 * (time.perf_counter() - begun))
print(json.dumps(times[1:]))
ray.shutdown()
