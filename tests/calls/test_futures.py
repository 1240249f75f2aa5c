"""What a future of a call says to who waits for it, or no longer does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import zenos
from tests.calls import work
from tests.processes import until
from zenos.core.errors import WorkerError

pytestmark = pytest.mark.usefixtures("shared")
WAITS = """
import sys, zenos
from tests.calls import work
way, *paths = sys.argv[1:]
call = zenos.call(work.note_and_wait, *paths, durable=False)
print(getattr(call, way)())
"""


def test_what_is_not_kept_on_the_disk_is_accepted_at_once(tmp_path: Path) -> None:
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    future = zenos.call(work.note_and_wait, str(ran), str(gate), "x", durable=False)
    try:
        assert future.wait_accepted(10)
        assert not future.done()
    finally:
        gate.touch()
    assert future.result(60) == "x"


@pytest.mark.parametrize("way", ["result", "exception"])
def test_who_is_interrupted_hears_that_the_call_goes_on_and_how_to_end_it(
    tmp_path: Path, way: str
) -> None:
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    argv = [sys.executable, "-c", WAITS, way, str(ran), str(gate)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as program:
        until(lambda: work.lines(ran))
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=60)
    gate.touch()
    assert "KeyboardInterrupt" in said
    assert "zenos: the call that was waited for goes on" in said
    assert "'zenos cancel' its host, which 'zenos ps --kind call' shows" in said


def test_an_error_that_cannot_be_made_again_here_is_told_in_words() -> None:
    with pytest.raises(WorkerError, match=r"function raised .*OddError: this and that") as caught:
        zenos.call(work.odd).result(60)
    assert "in odd" in str(caught.value.__cause__)
