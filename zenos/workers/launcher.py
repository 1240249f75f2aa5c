"""The launcher: forks shims for programs. `python -P -m zenos.workers.launcher FD HOME`.

An interpreter's start costs more than all the rest of a short program's life as a task; here it is
paid once. HOME is only there to be seen in a list of processes.
"""

from __future__ import annotations

import ctypes  # noqa: F401 - a shim's, as the next one
import resource  # noqa: F401
import socket
import sys

from zenos.core import forking

if __name__ == "__main__":
    forking.ignore_signals()
    forking.serve("launcher", socket.socket(fileno=int(sys.argv[1])), None)
