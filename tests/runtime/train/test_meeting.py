"""How a gang meets, and how long a rank waits for one that is there and does nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from zenos.core import limits
from zenos.core.errors import RankError, WorkerError
from zenos.core.processes import children
from zenos.runtime.train.gang import Leader, Ready, _Member, digest

WAIT_S = 120.0
# Two ranks meet and sum; then one of them does nothing any more, though it lives.
STUCK = """
import os, signal, sys
from pathlib import Path
import torch
from zenos.core import limits
limits.REDUCE_TIMEOUT_S = 4.0
from zenos.core.errors import RankError
from zenos.runtime.reduce import seats
from zenos.runtime.train.gradients import DistributedSums, SharedSums
made = seats(2, 4096)
pid = os.fork()
rank = 0 if pid else 1
made[1 - rank].close()
if sys.argv[1] == "shared":
    sums = SharedSums(made[rank])
else:
    sums = DistributedSums("gloo", rank, 2, Path(sys.argv[2]), torch.device("cpu"))
bucket = sums.bucket(10, 0)
bucket.fill_(1.0)
sums.wait(bucket)
assert bucket.tolist() == [2.0] * 10
if not pid:
    signal.pause()
try:
    sums.wait(bucket)
except RankError as error:
    print(error, flush=True)
finally:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
os._exit(0)
"""


@pytest.fixture
def links() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("backend", ["shared", "gloo"])
def test_a_rank_that_hangs_is_given_up_at_the_deadline(tmp_path: Path, backend: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", STUCK, backend, str(tmp_path / "ranks")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, error = process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            for pid in children(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.kill()
            raise
    assert said.startswith("cannot go on "), error[-2000:]
    assert process.returncode == 0


def test_ranks_with_other_weights_do_not_train_together(
    links: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    ours, theirs = links
    model = torch.nn.Linear(2, 2)
    leader = Leader(2, 2, [_Member(1, 0, ours)])
    theirs.send(msgspec.msgpack.encode(Ready(digest(model) ^ 1)))
    with pytest.raises(WorkerError, match="rank 1 has other weights than rank 0"):
        leader.join(model, torch.optim.AdamW(model.parameters()), "shared", tmp_path / "ranks")


def test_a_rank_that_never_comes_is_given_up_at_the_deadline(
    links: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REDUCE_TIMEOUT_S", 0.05)
    leader = Leader(2, 2, [_Member(1, 0, links[0])])
    model = torch.nn.Linear(2, 2)
    with pytest.raises(RankError, match=r"rank 1 has not come within 0\.05 s"):
        leader.join(model, torch.optim.AdamW(model.parameters()), "shared", tmp_path / "ranks")
