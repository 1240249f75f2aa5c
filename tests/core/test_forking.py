"""A fork server by itself: what it says of a shim that fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zenos.core import forking


def said(spec: Path, plan: str = "") -> tuple[str, str]:
    """Ask a launcher for a shim; what that says to the daemon, and what stands in the log."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    with ours, os.fdopen(read, "rb") as heard:
        argv = [sys.executable, "-P", "-m", "zenos.workers.launcher", str(theirs.fileno())]
        with theirs:
            launcher = subprocess.Popen(
                argv,
                stderr=subprocess.PIPE,
                env={**os.environ, "ZENOS_FAILPOINTS": plan},
                pass_fds=[theirs.fileno()],
            )
        with launcher:
            assert ours.recv(100) == b"ready"
            socket.send_fds(ours, [os.fsencode(spec)], [write])
            os.close(write)
            line = heard.read().decode()
            ours.close()
            return line, launcher.communicate(timeout=60)[1].decode()


@pytest.mark.parametrize(
    ("text", "plan", "reason"),
    [
        ("", "", "Expecting value"),
        ("{}", "", "'directory'"),
        ('{"directory": "/no/such/folder/1"}', "", "No such file or directory"),
        ("{}", "shim.claim.before=enospc@1", "No space left on device"),
    ],
)
def test_a_shim_that_fails_says_why(tmp_path: Path, text: str, plan: str, reason: str) -> None:
    spec = tmp_path / "1.json"
    spec.write_text(text)
    heard, log = said(spec, plan)
    assert heard.startswith("failed its shim failed: ")
    assert heard.count("\n") == 1
    assert reason in heard
    assert f"cannot go on with the shim for {spec}: " in log
    assert "Traceback" in log


def test_who_has_a_second_thread_forks_nothing(tmp_path: Path) -> None:
    """A fork would have the locks that the other thread holds, and nobody to release them."""
    over = threading.Event()
    second = threading.Thread(target=over.wait)
    second.start()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            with pytest.raises(RuntimeError, match=r"the zygote has \d+ threads; forking would be"):
                forking.fork("zygote", tmp_path / "1.json", ours.fileno(), theirs, None)
        finally:
            over.set()
            second.join()
