"""The suite leaves nothing behind: no process, no segment of memory, no temporary folder.

It may run in several processes (pytest-xdist), each with temporary folders of its own.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.disks import called_elsewhere
from tests.processes import mentioning, until

SEGMENTS = Path("/dev/shm")


def segments() -> set[Path]:
    """Segments of shared memory that have names."""
    return set(SEGMENTS.iterdir()) if SEGMENTS.is_dir() else set()


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """No segment of memory is left. Asked by the process that leads: its workers run at once."""
    before = segments()
    result = yield
    if not hasattr(session.config, "workerinput") and (left := segments() - before):
        session.shouldfail = f"segments of shared memory are left: {left}"
        raise session.Failed(session.shouldfail)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that needs a mount runs where one can be made."""
    return called_elsewhere(pyfuncitem)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sockets, and whatever is put into a temporary folder, go into one of this session's own."""
    # Under nohup, or in the background, these are ignored, in all that the tests start as well.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    base = tmp_path_factory.getbasetemp()  # pytest's own, which it cleans up by itself
    with tempfile.TemporaryDirectory(prefix="zt-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(base / "inductor"))
        yield
        until(lambda: not mentioning(str(base)))
        assert list(Path(folder).iterdir()) == []
