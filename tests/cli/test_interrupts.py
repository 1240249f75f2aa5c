"""One Ctrl-C ends it, at whatever moment it comes: also at those that CPython loses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_process import PROGRAM, environment

LIMIT_S = 60

# Nobody hears of a signal that another thread is interrupted by: just so it is with one that comes
# between the last look for signals and the call that waits.
BESIDE_THE_CALL = """
import os, signal, socket, threading, time
here, there = socket.socketpair()
beside = threading.Thread(target=time.sleep, args=(600,), daemon=True)
beside.start()
threading.Timer(0.3, lambda: signal.pthread_kill(beside.ident, signal.SIGINT)).start()
here.settimeout(600)
here.recv(1)
"""
IN_A_DESTRUCTOR = """
import os, signal, time
class Thing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
thing = Thing()
del thing
time.sleep(600)
"""
IN_A_DESTRUCTOR_THAT_EXITS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
class Thing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass
thing = Thing()
del thing
time.sleep(600)
"""


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


# Libraries have threads of their own, by which a signal comes that the main one blocks.
AS_IT_BEGINS = """
import os, signal, sys, threading, time
from pathlib import Path
from zenos.cli import daemon_process, interrupts
from zenos.core.home import Home
interrupts.watch()
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
made = []
def spawn(argv, log):
    made.append(os.posix_spawn(sys.executable, ["python", "-c", "pass"], {}))
    signal.raise_signal(signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    return made[0]
daemon_process._spawn = spawn
try:
    daemon_process.start(Home(Path(sys.argv[1])), [])
except KeyboardInterrupt:
    os.kill(made[0], 0)
"""


@pytest.mark.parametrize("code", [BESIDE_THE_CALL, IN_A_DESTRUCTOR], ids=["call", "destructor"])
def test_an_interrupt_that_would_be_lost_is_noticed(code: str) -> None:
    watched = "\n".join(f"    {line}" for line in code.splitlines())
    ran = python(
        "from zenos.cli import interrupts\ninterrupts.watch()\n"
        f"try:{watched}\nexcept KeyboardInterrupt:\n    print('noticed')"
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "noticed\n", "")


def test_so_is_the_exit_that_a_handler_asks_for() -> None:
    ran = python(
        f"from zenos.cli import interrupts\ninterrupts.watch()\n{IN_A_DESTRUCTOR_THAT_EXITS}"
    )
    assert (ran.returncode, ran.stderr) == (128 + signal.SIGTERM, "")


def test_an_interrupt_just_as_the_daemon_begins_ends_that(tmp_path: Path) -> None:
    ran = python(AS_IT_BEGINS, str(tmp_path))
    assert "the daemon that was starting was ended" in ran.stderr
    assert "ProcessLookupError" in ran.stderr  # its process is there no more


def test_other_errors_in_destructors_are_shown() -> None:
    code = "class Thing:\n    def __del__(self): raise ValueError('odd')\ndel [Thing()][0]"
    ran = python(f"from zenos.cli import interrupts\ninterrupts.watch()\n{code}")
    assert ran.returncode == 0
    assert "ValueError: odd" in ran.stderr


def test_an_interrupt_while_it_imports_ends_it_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(600)"
    )
    path = os.pathsep.join((str(tmp_path), environment()["PYTHONPATH"]))
    with subprocess.Popen(
        [*PROGRAM, "ps"],
        env={**environment(), "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as ran:
        assert ran.stdout is not None
        assert ran.stdout.readline() == "importing\n"
        ran.send_signal(signal.SIGINT)
        _, said = ran.communicate(timeout=LIMIT_S)
    assert (ran.returncode, said) == (-signal.SIGINT, "")


def test_who_started_it_may_have_interrupts_ignored() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from zenos.cli import interrupts; interrupts.end_by_default(); interrupts.watch()\n"
        "signal.raise_signal(signal.SIGINT); print('goes on')"
    )
    assert python(code).stdout == "goes on\n"


def test_a_signal_ends_it_also_when_what_is_still_buffered_has_no_reader() -> None:
    code = """
import os, signal, sys
from zenos.cli import interrupts, streams
streams.set_up()
sys.stdout.write("still buffered")
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
interrupts.end_as_told(interrupts.Ended(signal.SIGTERM))
"""
    ran = python(code)
    assert (ran.returncode, ran.stderr) == (-signal.SIGTERM, "")
