"""What tries each failpoint: every label is in one of these groups, and each group has its tests.

test_labels.py fails for a label that no group has, or that nothing passes.
"""

from __future__ import annotations

from typing import Final

from zenos.core import failpoints


def group(*prefixes: str) -> tuple[str, ...]:
    """The labels that begin so."""
    return tuple(sorted(label for label in failpoints.LABELS if label.startswith(prefixes)))


# Between decide, commit, act and fork, in the daemon: test_crash.py, tests/system/test_boot.py.
DAEMON: Final = group("loop.", "store.", "worker.")
# Between claim and exit, in shims: test_crash.py for programs, test_torch.py for the other kinds.
SHIM: Final = group("shim.")
LAUNCHER: Final = group("launcher.")  # test_crash.py
ZYGOTE: Final = group("zygote.")  # test_training.py
# In a first boot and in a later one: tests/system/test_boot.py. While a model is made and
# registered: tests/models/test_crash.py, tests/runtime.
DURABLE: Final = group("durable.")
TOPICS: Final = group("topics.")  # test_topics.py
BUS: Final = group("bus.")  # tests/bus/test_kills.py
CALLS: Final = group("calls.")  # tests/calls/test_kills.py
TRIED: Final = (*DAEMON, *SHIM, *LAUNCHER, *ZYGOTE, *DURABLE, *TOPICS, *BUS, *CALLS)
