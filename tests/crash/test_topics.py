"""kill -9 of who keeps durable messages: what was answered is there, each message once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import labels
from zenos.bus import topics as ev
from zenos.bus.durable_topics import DurableTopics
from zenos.bus.topics import Accepted
from zenos.core import failpoints
from zenos.core.clock import SystemClock
from zenos.core.messages import Message, TopicSettings
from zenos.store.sqlite import SqliteStore

ROOT = Path(__file__).parent.parent.parent
IDS = ["a", "b", "c", "d"]


async def send_all(path: Path) -> None:
    """Send the messages one by one, and print those that were accepted."""
    store = await SqliteStore.open(path)
    known = await store.load_messages()
    topics = DurableTopics(store, SystemClock(), known, lambda _: TopicSettings())
    looping = asyncio.create_task(topics.run())
    for id_ in IDS:
        message = Message(number=0, topic="t", id=id_, body=b"x")
        said = await topics.ask(ev.Send(request=topics.next_request(), message=message))
        assert isinstance(said, Accepted)
        print(id_, int(said.duplicate), flush=True)
    topics.close()
    await looping
    await store.close()


def run(path: Path, plan: str) -> tuple[int, dict[str, bool]]:
    """In a process of its own: how it ended, and what it was told of each message."""
    code = (
        "import asyncio, sys; from pathlib import Path;"
        "from tests.crash.test_topics import send_all;"
        "asyncio.run(send_all(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, failpoints.VARIABLE: plan, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = dict(line.split() for line in done.stdout.splitlines())
    return done.returncode, {id_: duplicate == "1" for id_, duplicate in said.items()}


@pytest.mark.parametrize("label", labels.TOPICS)
def test_what_was_accepted_is_kept_and_nothing_is_there_twice(tmp_path: Path, label: str) -> None:
    path = tmp_path / "db"
    code, accepted = run(path, f"{label}=kill@3")
    assert code == -signal.SIGKILL
    assert len(accepted) < len(IDS)
    code, again = run(path, "")
    assert code == 0
    assert list(again) == IDS
    known = {id_ for id_, duplicate in again.items() if duplicate}
    assert set(accepted) <= known
    # One more was committed, and nobody had been told.
    assert len(known) == len(accepted) + (label == "topics.committed")
