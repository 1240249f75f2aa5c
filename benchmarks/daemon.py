"""From nothing to a daemon that answers, and the memory it then has."""

from __future__ import annotations

import time
from pathlib import Path

import zenos
from benchmarks import homes
from benchmarks.report import Row, compare, target
from zenos.cli import daemon_process
from zenos.core.home import Home

START_S_MAX = 1.0
MEMORY_MB_MAX = 120.0


def rows(*, quick: bool) -> list[Row]:
    """Start in seconds, resident memory in MB. The zygote holds torch for the workers."""
    starts, memory, zygotes, heads = [], [], [], []
    for _ in range(2 if quick else 7):
        with homes.temporary() as root:
            begun = time.perf_counter()
            process = daemon_process.start(Home(root), ["--port", "0"])
            starts.append(time.perf_counter() - begun)
            with zenos.connect(home=root) as client:
                client.status()
                memory.append(
                    resident_mb(process.pid)
                    + resident_mb(child(process.pid, b"zenos.workers.launcher"))
                )
                while not client.status().zygote_ready:
                    time.sleep(0.1)
                zygotes.append(resident_mb(child(process.pid, b"zenos.runtime.zygote")))
                client.shut_down("suspend")
            daemon_process.wait_gone(process, 60)
        lines = homes.ray("ray_head.py")
        heads += [float(line) for line in lines or ()]
    start = compare("daemon: start until it answers", "s", starts, "Ray head (ray.init)", heads)
    size = compare("daemon and launcher: resident memory", "MB", memory)
    return [
        target(start, f"≤ {START_S_MAX:g} s", start.ours.median <= START_S_MAX),
        target(size, f"≤ {MEMORY_MB_MAX:g} MB", size.ours.median <= MEMORY_MB_MAX),
        compare("zygote (torch and transformers): resident memory", "MB", zygotes),
    ]


def child(daemon: int, module: bytes) -> int:
    """The pid of a daemon's child that runs this module."""
    for task in Path(f"/proc/{daemon}/task").iterdir():
        for pid in (task / "children").read_text(encoding="ascii").split():
            if module in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    raise RuntimeError(f"cannot find the daemon's {module.decode()}")


def resident_mb(pid: int) -> float:
    """Resident memory in 10⁶ bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("cannot read the memory of the daemon: it has gone")
