"""A daemon of its own for a measurement."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zenos
from zenos.cli import daemon_process
from zenos.client import Client
from zenos.core.home import Home

PEERS = Path(__file__).parent.parent / ".venv-peers" / "bin" / "python"


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder that goes again."""
    root = Path(tempfile.mkdtemp(prefix="zenos-bench-"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def daemon(root: Path, *flags: str) -> Iterator[Client]:
    """A running daemon with its zygote warm; ended afterwards."""
    process = daemon_process.start(Home(root), ["--port", "0", *flags])
    with zenos.connect(home=root) as client:
        try:
            deadline = time.monotonic() + 60
            while not client.status().zygote_ready and time.monotonic() < deadline:
                time.sleep(0.05)
            yield client
        finally:
            client.shut_down("suspend")
            daemon_process.wait_gone(process, 60)


def ray(script: str, *arguments: str) -> list[str] | None:
    """Run one of peers/*.py where the peers are installed: its lines; None where they aren't."""
    if not PEERS.exists():
        return None
    path = Path(__file__).parent / "peers" / script
    with tempfile.TemporaryDirectory(prefix="r-") as folder:  # Ray leaves its own
        done = subprocess.run(
            [str(PEERS), str(path), *arguments],
            env={**os.environ, "RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
    return done.stdout.split()


def python(script: str, *arguments: str) -> str:
    """Run a fresh process of this Python: what it wrote."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stdout
