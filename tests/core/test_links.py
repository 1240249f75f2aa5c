"""Between daemon and workers there is one protocol: what opens another link is named here.

docs/design.md, "Workers", says why these don't go over the bus.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
OPENS = {
    *("socket.socket", "socket.socketpair", "socket.create_server", "socket.create_connection"),
    *("os.pipe", "os.pipe2", "os.mkfifo", "asyncio.start_unix_server", "asyncio.start_server"),
    *("asyncio.open_unix_connection", "asyncio.open_connection"),
}
BUS = {"bus/aio", "bus/broker", "bus/direct", "bus/meetings", "bus/parcel", "bus/stream"}
# Before there is a worker, and beside it: what forks its shim, and what the shim says and keeps.
SHIMS = {
    *("core/output", "core/shim", "runtime/zygote"),
    *("workers/executor", "workers/fork_server", "workers/launcher"),
}
# Within a task, or between programs: the daemon reads none of it.
TASKS = {
    *("calls/door", "calls/finding", "runtime/reduce", "runtime/train/gang", "runtime/weights"),
    *("threads/inherited", "threads/starting"),
}
WAKES = {"bus/polling", "calls/host", "cli/interrupts"}  # its own threads, and nobody else
HTTP = {"daemon"}


def links() -> set[str]:
    """The modules that open a link between processes."""
    found = set()
    for path in sorted((ROOT / "zenos").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = path.relative_to(ROOT / "zenos").with_suffix("").as_posix()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in OPENS:
                found.add(name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", "") or "", *(one.name for one in node.names)]
                assert not any(one.startswith("multiprocessing") for one in names), name
    return found


def test_who_opens_a_link_of_its_own_is_named() -> None:
    assert links() == BUS | SHIMS | TASKS | WAKES | HTTP
