"""A fork server: has everything imported that its children need, and forks shims on request.

There are two of them: the zygote (zenos/runtime/zygote.py) for torch work, and the launcher
(zenos/workers/launcher.py) for programs. Each packet on their SOCK_SEQPACKET socket to the daemon
is the path of a spec, with a descriptor for the shim to talk on. They end when the daemon's end
closes.

A fork copies one thread alone, with whatever locks the others held. So a fork server runs nothing
that starts threads, and refuses to fork when it has a second one.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from zenos.core import failpoints, shim
from zenos.core.processes import name_process

REASON_SHOWN_MAX = 1000
# A fork server ends when the daemon does, whatever a terminal or a service manager sends to all of
# a group: if it died before, what is just being started would be started a second time.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ignore_signals() -> None:
    """The first thing that a fork server does. It was started with these signals blocked."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)


def thread_count() -> int:
    """Threads of this process, as the operating system counts them."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - pathlib is slower to import


def fork(
    name: str, path: Path, notify: int, listener: socket.socket, work: shim.Target | None
) -> None:
    """Fork a shim for the spec at `path`. Without `work` it executes the spec's program."""
    if thread_count() != 1:
        raise RuntimeError(f"the {name} has {thread_count()} threads; forking would be unsafe")
    failpoints.passing(f"{name}.fork.before")
    try:
        pid = os.fork()
    except OSError as error:
        with suppress(OSError):
            os.write(notify, f"failed cannot fork: {error.strerror}\n".encode(errors="replace"))
        print(f"cannot fork for {path}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return
    if pid != 0:
        failpoints.passing(f"{name}.fork.after")
        return
    code = 1
    try:
        listener.close()
        os.setsid()
        spec = json.loads(path.read_bytes())
        if work is not None:
            os.environ.clear()
            os.environ.update(spec["env"])
        shim.run(spec, notify, work)
        code = 0
    except BaseException as error:  # noqa: BLE001 - a fork must not go on in its parent's code
        _report(path, error, notify)
    finally:
        os._exit(code)


def _report(path: Path, error: BaseException, notify: int) -> None:
    """Say why a shim has failed: to the daemon in a line `failed REASON`, in the log with where."""
    told = error.strerror if isinstance(error, OSError) else str(error)
    reason = " ".join((told or type(error).__name__).split())[:REASON_SHOWN_MAX]
    with suppress(OSError):
        os.write(notify, f"failed its shim failed: {reason}\n".encode(errors="replace"))
    with suppress(OSError, ValueError):
        print(f"cannot go on with the shim for {path}: {reason}", file=sys.stderr)  # noqa: T201
        sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()


def serve(name: str, listener: socket.socket, work: shim.Target | None) -> None:
    """Say `ready`, then fork on request until the other end closes."""
    # Shims are reaped by the system; they have their own children to wait for, and undo this.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    name_process(f"zenos:{name}")
    listener.send(b"ready")
    while True:
        packet, descriptors, _, _ = socket.recv_fds(listener, 8192, 1)
        if not packet:
            return
        try:
            fork(name, Path(os.fsdecode(packet)), descriptors[0], listener, work)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
