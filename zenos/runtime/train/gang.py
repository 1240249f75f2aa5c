"""A gang: the processes (ranks) that train one model together, and the words between them.

Rank 0 is the task's worker: it alone talks to the daemon, plans, reports, evaluates, saves and
publishes. The others are forked from it before it has run anything of torch or started a thread,
so they are in its process group, under its limits, and end when it does, however it ends. They do
what it says, over a socket for each of them: which checkpoint to begin from, each step with its
learning rate, whether to go on with a step, and when it is over. So all are at the same step.

Rank 0 waits for the others with a deadline, and sees at once when one has ended. The others wait
for rank 0 as long as it lives: while it reads a corpus, evaluates or saves there is nothing to do.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import torch

from zenos.core import limits
from zenos.core.errors import ConflictError, RankError, WorkerError, ZenosError, from_code
from zenos.core.forking import thread_count
from zenos.core.processes import PR_SET_PDEATHSIG, prctl
from zenos.runtime import allocator
from zenos.runtime.reduce import Seat, seats, share
from zenos.runtime.train import common
from zenos.runtime.train.checkpoint import Plan
from zenos.runtime.train.common import Common
from zenos.runtime.train.gradients import DistributedSums, Gradients, SharedSums, Sums, bytes_needed
from zenos.runtime.train.numerics import resolve_backend

RENDEZVOUS: Final = "ranks"  # in the run directory, for torch.distributed
_PACKET_BYTES_MAX: Final = 64 * limits.KIB
_LOOK_S: Final = 0.002
_IDLE_S: Final = 1.0  # nothing comes for so long: it isn't between two steps
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Begin(msgspec.Struct, tag="begin"):
    """Build the model and go on from that checkpoint, if any: the path of its directory."""

    plan: Plan
    checkpoint: str | None


class Meet(msgspec.Struct, tag="meet"):
    """Make the sums, with that backend."""

    backend: str


class Step(msgspec.Struct, tag="step"):
    """Do the next step, with this learning rate."""

    rate: float


class Further(msgspec.Struct, tag="further"):
    """Do the next micro-batch; or drop the step, all of it."""

    drop: bool


class End(msgspec.Struct, tag="end"):
    """It is over."""


class Ready(msgspec.Struct, tag="ready"):
    """The model is there. digest: of its weights."""

    digest: int


class Failed(msgspec.Struct, tag="failed"):
    """This rank cannot go on."""

    code: str
    message: str


Word = Begin | Meet | Step | Further | End
Answer = Ready | Failed


class Ended(Exception):  # noqa: N818 - not an error: the way out of wherever a rank is
    """Rank 0 has said that it is over, or has gone."""


class Gang:
    """This process's place: `rank` of `ranks`, which have `shards` of each batch together.

    Into how many shards a batch is cut is fixed when a training is submitted; in how many processes
    they are computed makes no difference to the result.
    """

    def __init__(self, rank: int, ranks: int, shards: int) -> None:
        self.rank = rank
        self.ranks = ranks
        self.shards = shards
        self.own = share(shards, rank, ranks)
        self._gradients: Gradients | None = None
        self._common: Common | None = None

    @property
    def gradients(self) -> Gradients:
        """Those of the model that was joined with. ConflictError before that."""
        if self._gradients is None:
            raise ConflictError("cannot train together yet: the ranks have not met")
        return self._gradients

    def rows(self, count: int, shard: int) -> slice:
        """A logical shard's part of `count` sequences, the same in every run."""
        return slice(count * shard // self.shards, count * (shard + 1) // self.shards)

    def arm(self) -> None:
        """The next backward pass is the step's last."""
        self.gradients.arm()

    def put(self, shard: int) -> None:
        """A backward pass is over, and another shard's is next. shard: number … of its own."""
        self.gradients.put(shard)

    def sum_up(self, losses: Sequence[float]) -> float:
        """Sum the gradients over all shards, and the losses of this process's. RankError.

        Where the step of the optimiser is shared, only the parameters that this process is to
        update have gradients then.
        """
        total = self.gradients.sum_up(losses)
        if self._common is not None:
            self._common.admit(self.gradients.used)
        return total

    def clip(self, norm_max: float) -> float:
        """The norm of all gradients, which is at most `norm_max` afterwards. RankError."""
        return self.gradients.clip(norm_max)

    def meet(self) -> None:
        """After the optimiser's step: all weights are those of the next. RankError."""
        self.gradients.meet()

    def drop(self) -> None:
        """The step that was begun is thrown away."""
        self.gradients.drop()

    def tell_step(self, rate: float) -> None:
        """Before each step."""
        raise NotImplementedError

    def dropped(self, stopping: Callable[[], bool]) -> bool:
        """Between micro-batches: whether the step is thrown away."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave the others."""
        if self._gradients is not None:
            self._gradients.close()
            self._gradients = None

    def _start(self, sums: Sums, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(sums, SharedSums):
            self._common = Common(sums.common, model, optimizer, first=self.rank == 0)
        self._gradients = Gradients(model, sums)


class _Member:
    """Another rank, as rank 0 sees it. ready, failed: what it has said; status: once reaped."""

    def __init__(self, rank: int, pid: int, link: socket.socket) -> None:
        self.rank = rank
        self.pid = pid
        self.link = link
        self.ready: Ready | None = None
        self.failed: Failed | None = None
        self.status: int | None = None
        self._closed = False

    def listen(self) -> None:
        """Take in what has come."""
        while not self._closed:
            try:
                packet = self.link.recv(_PACKET_BYTES_MAX, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._closed = True
                return
            said = msgspec.msgpack.decode(packet, type=Answer)
            if isinstance(said, Ready):
                self.ready = said
            else:
                self.failed = said

    @property
    def is_lost(self) -> bool:
        """Whether it has said that it fails, or has closed its socket."""
        return self.failed is not None or self._closed

    def reap(self, wait_s: float) -> bool:
        """Whether it has ended, waiting for that at most `wait_s`."""
        end = time.monotonic() + wait_s
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= end:
                return False
            else:
                time.sleep(_LOOK_S)
        return True


class Leader(Gang):
    """Rank 0."""

    def __init__(self, ranks: int, shards: int, members: list[_Member]) -> None:
        super().__init__(0, ranks, shards)
        self._members = members

    def begin(self, plan: Plan, checkpoint: Path | None) -> None:
        """Have the others build the model meanwhile."""
        self._tell(Begin(plan, str(checkpoint) if checkpoint is not None else None))

    def join(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        backend: str,
        rendezvous: Path,
    ) -> None:
        """Wait until all have the same model, and make the sums. RankError."""
        own = digest(model)
        for member in self._members:
            if self._hear(member).digest != own:
                raise WorkerError(
                    f"cannot train together: rank {member.rank} has other weights than rank 0; "
                    "is the model's construction repeatable?"
                )
        backend = resolve_backend(backend, next(model.parameters()).device)
        self._tell(Meet(backend))
        try:
            sums = self._meet(model, backend, rendezvous)
        except (BrokenPipeError, RankError) as error:
            self._lost(error)
        self._start(sums, model, optimizer)

    def _meet(self, model: torch.nn.Module, backend: str, rendezvous: Path) -> Sums:
        if backend != "shared":
            return _distributed(self, backend, rendezvous, model)
        needed = bytes_needed(model), common.bytes_needed(model)
        own, *others = seats(self.ranks, needed[0], self.shards, needed[1])
        for member, seat in zip(self._members, others, strict=True):
            seat.send(member.link)
        return SharedSums(own)

    def tell_step(self, rate: float) -> None:
        """All do a step."""
        self._tell(Step(rate))

    def dropped(self, stopping: Callable[[], bool]) -> bool:
        """As rank 0 decides, for all."""
        drop = stopping()
        self._tell(Further(drop))
        return drop

    def sum_up(self, losses: Sequence[float]) -> float:
        """The same, with what is known of a rank that is lost."""
        try:
            return super().sum_up(losses)
        except RankError as error:
            self._lost(error)

    def clip(self, norm_max: float) -> float:
        """The same, with what is known of a rank that is lost."""
        try:
            return super().clip(norm_max)
        except RankError as error:
            self._lost(error)

    def meet(self) -> None:
        """The same, with what is known of a rank that is lost."""
        try:
            super().meet()
        except RankError as error:
            self._lost(error)

    def check(self) -> None:
        """RankError, or the error that it has told, when another rank has ended."""
        for member in self._members:
            member.listen()
            if member.is_lost:
                self._lost(RankError(f"cannot go on together: rank {member.rank} has ended"))

    def close(self) -> None:
        """Tell all that it is over, and wait until they have ended."""
        for member in self._members:
            _send(member.link, End())
        super().close()
        for member in self._members:
            member.link.close()
            if not member.reap(limits.GANG_END_S):
                os.kill(member.pid, signal.SIGKILL)
                os.waitpid(member.pid, 0)
        self._members = []

    def _tell(self, word: Word) -> None:
        for member in self._members:
            if not _send(member.link, word):
                self._lost(RankError(f"cannot go on together: rank {member.rank} has ended"))

    def _hear(self, member: _Member) -> Ready:
        end = time.monotonic() + limits.REDUCE_TIMEOUT_S
        poll = select.poll()
        for each in self._members:
            poll.register(each.link, select.POLLIN)
        while True:
            self.check()
            if member.ready is not None:
                return member.ready
            left_s = end - time.monotonic()
            if left_s <= 0 or not poll.poll(1000 * left_s):
                raise RankError(
                    f"cannot go on together: rank {member.rank} has not come within "
                    f"{limits.REDUCE_TIMEOUT_S:g} s; the log says why"
                )

    def _lost(self, error: Exception) -> NoReturn:
        """Raise why a rank is lost.

        1. What one has said itself, unless that is only that it has lost another.
        2. That one was killed.
        3. After a moment in which neither has become known: `error`.
        """
        end = time.monotonic() + limits.GANG_END_S
        while time.monotonic() < end:
            for member in self._members:
                member.listen()
                said = member.failed
                if said is not None and said.code != RankError.code:  # 1
                    raise from_code(said.code, said.message) from error
            for member in self._members:
                if member.reap(0) and (member.status or 0) < 0:  # 2
                    name = signal.Signals(-(member.status or 0)).name
                    raise RankError(
                        f"cannot go on together: rank {member.rank} of {self.ranks} was ended by "
                        f"{name}"
                    ) from error
            time.sleep(_LOOK_S)
        raise error  # 3


class Follower(Gang):
    """Any other rank."""

    def __init__(self, rank: int, ranks: int, shards: int, link: socket.socket) -> None:
        super().__init__(rank, ranks, shards)
        self._link = link

    def hear(self) -> Word:
        """The next word of rank 0, however long that takes. Ended when it is over.

        Where it takes long, as in a pause, what is free of this process's memory is given back.
        """
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        if not poll.poll(1000 * _IDLE_S):
            allocator.give_back()
        try:
            packet = self._link.recv(_PACKET_BYTES_MAX)
        except OSError:
            packet = b""
        word: Word = msgspec.msgpack.decode(packet, type=Word) if packet else End()
        if isinstance(word, End):
            raise Ended
        return word

    def join(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, rendezvous: Path
    ) -> None:
        """Say that the model is there, and make the sums. RankError."""
        _send(self._link, Ready(digest(model)))
        word = self.hear()
        if not isinstance(word, Meet):
            raise RankError(f"cannot go on together: rank 0 says {word!r} before the ranks meet")
        if word.backend == "shared":
            sums: Sums = SharedSums(Seat.receive(self._link, timeout_s=limits.REDUCE_TIMEOUT_S))
        else:
            sums = _distributed(self, word.backend, rendezvous, model)
        self._start(sums, model, optimizer)

    def dropped(self, stopping: Callable[[], bool]) -> bool:
        """As rank 0 says."""
        word = self.hear()
        return not isinstance(word, Further) or word.drop

    def tell_step(self, rate: float) -> None:
        """Rank 0 alone does."""

    def fail(self, error: ZenosError) -> None:
        """Tell rank 0 why this one ends."""
        _send(self._link, Failed(error.code, error.message[: limits.ERROR_CHARS_MAX]))


def form(ranks: int, shards: int) -> Leader | Follower:
    """Fork the other ranks; returns in each of them. RuntimeError when forking would be unsafe.

    shards: of each batch, at least as many as ranks.
    Signals to the process group are for rank 0, which decides for all.
    """
    if thread_count() != 1:
        raise RuntimeError(f"this process has {thread_count()} threads; forking would be unsafe")
    parent = os.getpid()
    members: list[_Member] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        for rank in range(1, ranks):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
            if pid == 0:
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:
                    os._exit(1)
                for number in _SIGNALS:
                    signal.signal(number, signal.SIG_IGN)
                for link in (ours, *(member.link for member in members)):
                    link.close()
                return Follower(rank, ranks, shards, theirs)
            theirs.close()
            members.append(_Member(rank, pid, ours))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Leader(ranks, shards, members)


def digest(model: torch.nn.Module) -> int:
    """A checksum (CRC-32) of a model's weights and buffers."""
    found = 0
    for tensor in model.state_dict().values():
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found = zlib.crc32(plain.numpy().data, found)
    return found


def _distributed(gang: Gang, backend: str, rendezvous: Path, model: torch.nn.Module) -> Sums:
    device = next(model.parameters()).device
    return DistributedSums(backend, gang.rank, gang.ranks, rendezvous, device)


def _send(link: socket.socket, message: Word | Answer) -> bool:
    """Whether the other end was there to get it."""
    try:
        link.send(msgspec.msgpack.encode(message))
    except OSError:
        return False
    return True
