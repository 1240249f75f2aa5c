"""How long Ray takes until a driver is connected to a head of its own. Prints seconds."""

import importlib
import time
from typing import Any

ray: Any = importlib.import_module("ray")  # in an environment of its own

begun = time.perf_counter()
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(time.perf_counter() - begun)
ray.shutdown()
