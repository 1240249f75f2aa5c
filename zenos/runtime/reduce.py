"""All-reduce between the ranks of one machine, in place in shared memory.

One segment is divided into slots, in which the buckets lie: a slot for each rank, or several, as
neighbours. To reduce a bucket, each rank waits until all have written theirs, sums its own part of
it over all slots, writes the sum into every slot, and waits until all have done so. The terms are
added in the order of the slots, whoever does it: the result is the same on all ranks, bit for bit,
in every run, and with however many ranks the slots are shared. After the slots comes memory that
all ranks have in common, for what only one of them writes at a time.

Or only one rank needs the sum of a bucket, and makes it alone (`reduce_here`), as soon as all the
others have told it (`tell`, `heard`) that theirs is written: that may be long before they meet.

The ranks tell each other where they are by messages of a few bytes, over a socket for each pair.
That is counter, doorbell and lifeline in one: a message orders the memory around it on every
processor, waiting for one after a short spin costs nothing, and the end of a rank, however it
ends, is seen at once by all others. (Counters in the segment would be a microsecond faster per
meeting, against milliseconds of summing, would need fences that Python hasn't got, and would tell
nothing of the dead.)
"""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, Self

import msgspec
import torch

from zenos.bus import passing, segment
from zenos.bus.handle import ALIGNMENT_BYTES
from zenos.core import limits
from zenos.core.errors import ConflictError, HandleError, InvalidError, RankError, TooLargeError

DTYPES: Final = (torch.float32, torch.bfloat16)
BLOCK_BYTES: Final = 512 * limits.KIB  # summed at once: what was read is still in the cache
_SLICE_ITEMS: Final = 32  # no two ranks write to one cache line
_MESSAGE: Final = struct.Struct("<BIQQQ")  # kind, step or rank, offset or count, bytes, dtype
_MEET, _LOST, _LEFT, _DONE = range(4)


class Seat(msgspec.Struct):
    """One rank's place: number `rank` of `ranks`, which share `slots` of `bytes` for their buckets.

    common: bytes behind the slots, which all ranks have. segment: the memory's inode number.
    descriptors: the memory, then a socket to each of the others, in their order. Whoever has a seat
    open, forks included, keeps its place from being seen as empty: so send it, close it, and let
    only its rank have it.
    """

    rank: int
    ranks: int
    slots: int
    bytes: int
    common: int
    segment: int
    descriptors: list[int] = []

    def send(self, link: socket.socket, *, timeout_s: float = limits.PASS_TIMEOUT_S) -> None:
        """Give it to the process at the other end, and close it here. Errors: `passing.send`."""
        numbers = (self.rank, self.ranks, self.slots, self.bytes, self.common, self.segment)
        body = msgspec.msgpack.encode(numbers)
        passing.send(link, body, self.descriptors, timeout_s=timeout_s)
        self.close()

    @classmethod
    def receive(cls, link: socket.socket, *, timeout_s: float = limits.PASS_TIMEOUT_S) -> Seat:
        """The seat that was sent. HandleError when there is none; else as `passing.receive`."""
        got = passing.receive(link, timeout_s=timeout_s)
        if got is None:
            raise HandleError("cannot take a seat: the other end has gone")
        body, descriptors = got
        try:
            values = msgspec.msgpack.decode(body, type=tuple[int, int, int, int, int, int])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            passing.close_all(descriptors)
            raise HandleError(f"cannot take a seat: {error}") from None
        return cls(*values, descriptors)

    def close(self) -> None:
        """Leave it empty, unless it was sent or taken."""
        descriptors, self.descriptors = self.descriptors, []
        passing.close_all(descriptors)


def share(slots: int, rank: int, ranks: int) -> range:
    """Which slots a rank has: neighbours, as many as any other rank or one more or less."""
    return range(slots * rank // ranks, slots * (rank + 1) // ranks)


def seats(ranks: int, bytes_max: int, slots: int | None = None, common: int = 0) -> list[Seat]:
    """Places for so many ranks, with `bytes_max` bytes for buckets in each slot.

    slots: as many as there are ranks, or more, which they share. common: bytes for all together.
    InvalidError for numbers that cannot be; errors of `segment.create` where there is no memory.
    """
    if not 1 <= ranks <= limits.RANKS_MAX:
        raise InvalidError(f"cannot make a group of {ranks} ranks: from 1 to {limits.RANKS_MAX}")
    if not (1 <= bytes_max <= limits.SEGMENT_BYTES_MAX and common >= 0):
        raise InvalidError(f"cannot make a group with {bytes_max} bytes for each rank")
    slots = ranks if slots is None else slots
    if not ranks <= slots <= limits.RANKS_MAX:
        raise InvalidError(
            f"cannot share {slots} slots among {ranks} ranks: give each at least one"
        )
    slot = -(-bytes_max // segment.PAGE_BYTES) * segment.PAGE_BYTES
    memory = segment.create(slot * slots + common)
    number = os.fstat(memory).st_ino
    made = [
        Seat(rank, ranks, slots, slot, common, number, [os.dup(memory)]) for rank in range(ranks)
    ]
    os.close(memory)
    for low in range(ranks):
        for high in range(low + 1, ranks):
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            # Each pair is made once, by its lower rank: so each list is in the order of the ranks.
            made[low].descriptors.append(ends[0].detach())
            made[high].descriptors.append(ends[1].detach())
    return made


_DONE_BYTE: Final = bytes([_DONE])
_groups: weakref.WeakSet[Group] = weakref.WeakSet()


class _Peer:
    """The socket to another rank, and what it has said. gone: it has closed the socket.

    done: how much it has told that it has done, since which meeting: what it said last.
    """

    def __init__(self, rank: int, descriptor: int) -> None:
        self.rank = rank
        self.link = socket.socket(fileno=descriptor)
        self.link.setblocking(False)
        self.said: deque[bytes] = deque()
        self.done = (0, 0)
        self.gone = False

    def say(self, message: bytes, end: float) -> bool:
        """Whether there was room for it until `end`, by the monotonic clock."""
        while True:
            try:
                self.link.send(message)
            except BlockingIOError:
                left_s = end - time.monotonic()
                if left_s <= 0:
                    return False
                poll = select.poll()
                poll.register(self.link, select.POLLOUT)
                poll.poll(1000 * left_s)
            except OSError:  # it has ended: reading says so, after what it said last
                return True
            else:
                return True

    def mention(self, message: bytes) -> None:
        """Say it if there is room."""
        try:
            self.link.send(message)
        except OSError:
            return  # there is none, or it has ended, which reading tells

    def done_since(self, step: int) -> float:
        """How much it has done since that meeting; all, where it is at the next one."""
        if self.said and self.said[0][0] == _MEET:
            return math.inf
        since, count = self.done
        return count if since == step else 0

    def listen(self) -> bool:
        """Take in what has come; whether more can."""
        while not self.gone:
            try:
                message = self.link.recv(_MESSAGE.size)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                continue  # it has ended without reading all; what it said is still there
            if message[:1] == _DONE_BYTE:
                _, since, count, *_ = _MESSAGE.unpack(message)
                self.done = (since, count)
            elif message:
                self.said.append(message)
            self.gone = not message
        return False


class Group:
    """This process' place among the ranks. Used from one thread at a time; all ranks do the same
    in the same order.

    Every wait has a deadline. When a rank has ended, has left, is late or does something else, all
    others get RankError, with its number, and the group is of no more use; what is in the buckets
    is then anything.
    """

    def __init__(self, seat: Seat) -> None:
        """Take the seat, whose descriptors it takes over. HandleError when it is none."""
        descriptors, seat.descriptors = seat.descriptors, []
        try:
            if len(descriptors) != seat.ranks or not 0 <= seat.rank < seat.ranks:
                raise HandleError("cannot take this seat: it has not a socket to each other rank")
            size = segment.check(descriptors[0], seat.segment, seals=segment.FIXED_SIZE)
            slots = seat.bytes * seat.slots
            fits = size == slots + seat.common and min(seat.bytes, seat.common + 1) > 0
            if not fits or seat.slots < seat.ranks:
                raise HandleError("cannot take this seat: its memory is not of the size it says")
            mapping = segment.Mapping(descriptors[0], size, writable=True)
        except BaseException:
            passing.close_all(descriptors)
            raise
        os.close(descriptors[0])
        mapping.populate()
        self.rank, self.ranks = seat.rank, seat.ranks
        memory = torch.frombuffer(mapping.memory, dtype=torch.uint8)
        self.own = share(seat.slots, seat.rank, seat.ranks)
        self._slots = [memory[start : start + seat.bytes] for start in range(0, slots, seat.bytes)]
        # Bytes, zeros at first. Who writes what when is for the ranks to agree on, by meeting.
        self.common: torch.Tensor = memory[slots:]
        others = [rank for rank in range(self.ranks) if rank != self.rank]
        self._peers = [_Peer(r, fd) for r, fd in zip(others, descriptors[1:], strict=True)]
        self._poll = select.poll()
        for peer in self._peers:
            self._poll.register(peer.link, select.POLLIN)
        self._taken = dict.fromkeys(self.own, 0)
        _groups.add(self)
        self._step = 0
        self._met = 0  # the last meeting that is over
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def bucket(self, count: int, dtype: torch.dtype, slot: int | None = None) -> torch.Tensor:
        """A tensor of `count` elements in this rank's memory, not initialised, for as long as the
        group. slot: one of `own`, the first by default; buckets of the same number in each slot
        belong together. InvalidError for other types than DTYPES and for slots of other ranks;
        TooLargeError when none of that size is left."""
        if dtype not in DTYPES:
            raise InvalidError(f"cannot reduce {dtype}: use one of {', '.join(map(str, DTYPES))}")
        slot = self.own[0] if slot is None else slot
        if slot not in self.own:
            raise InvalidError(f"cannot make a bucket in slot {slot}: it is another rank's")
        begin = self._taken[slot]
        end = begin + count * dtype.itemsize
        room = len(self._slots[slot])
        if count < 0 or end > room:
            raise TooLargeError(
                f"cannot make a bucket of {count} elements of {dtype}: "
                f"{room - begin} of {room} bytes are left"
            )
        found: torch.Tensor = self._slots[slot][begin:end].view(dtype)
        self._taken[slot] = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return found

    def tell(self, count: int) -> None:
        """Tell the others how many things this rank has done since the last meeting, of what all
        do in the same order. Never waits; who has no room for it hears it with the next."""
        message = _MESSAGE.pack(_DONE, self._met, count, 0, 0)
        for peer in self._peers:
            peer.mention(message)

    def heard(self) -> float:
        """How many of these all others have done, as far as they have told; inf: all.

        What they wrote for that is seen here from now on, and stays until the next meeting. Who has
        ended is told there.
        """
        self._listen()
        return min((peer.done_since(self._met) for peer in self._peers), default=math.inf)

    def all_reduce(
        self,
        bucket: torch.Tensor,
        *,
        timeout_s: float = limits.REDUCE_TIMEOUT_S,
        meanwhile: Callable[[], bool] | None = None,
    ) -> None:
        """Put the sum over all slots into `bucket`, or that part of one, in each of them.

        bucket: that of the first of this rank's slots.
        bfloat16 is summed in float32 and rounded once. timeout_s: for each of the two meetings.
        meanwhile: what this rank can do while it waits for the others; whether it did something.
        InvalidError when the tensor is no contiguous part of a bucket, on this rank alone: the
        others then wait for it.
        """
        offset = self._offset(bucket)
        self._meet(bucket, offset, timeout_s=timeout_s, meanwhile=meanwhile)
        terms = self._terms(bucket, offset)
        part = -(-bucket.numel() // (self.ranks * _SLICE_ITEMS)) * _SLICE_ITEMS
        begin = min(self.rank * part, bucket.numel())
        sum_in_order([term[begin : begin + part] for term in terms])
        self._meet(bucket, offset, timeout_s=timeout_s)

    def reduce_here(self, bucket: torch.Tensor) -> None:
        """Put the sum over all slots into `bucket`, on this rank alone; the others' terms stay.

        The same bits as from `all_reduce`, without a meeting: all terms must be there by one
        before, or by what was `heard`, and be left alone until one after. InvalidError as there.
        """
        offset = self._offset(bucket)
        sum_in_order(self._terms(bucket, offset), into=self.own[0])

    def barrier(self, *, timeout_s: float = limits.REDUCE_TIMEOUT_S) -> None:
        """Wait until all ranks are here."""
        self._meet(None, 0, timeout_s=timeout_s)

    def close(self) -> None:
        """Leave. Tensors stay until nobody refers to them; the others fail at their next step."""
        self._open = False
        self._tell(_MESSAGE.pack(_LEFT, self.rank, 0, 0, 0))
        for peer in self._peers:
            peer.link.close()
        self._peers = []

    # -- meeting

    def _meet(
        self,
        bucket: torch.Tensor | None,
        offset: int,
        *,
        timeout_s: float,
        meanwhile: Callable[[], bool] | None = None,
    ) -> None:
        """Wait until all ranks are at this step, with the same bucket. RankError."""
        if not self._open:
            raise ConflictError("cannot use a group that was closed, or in which a rank was lost")
        self._step = (self._step + 1) % 2**32
        size = 0 if bucket is None else bucket.nbytes
        kind = 0 if bucket is None else 1 + DTYPES.index(bucket.dtype)
        message = _MESSAGE.pack(_MEET, self._step, offset, size, kind)
        now = time.monotonic()
        spin_end, end = now + limits.REDUCE_SPIN_S, now + timeout_s
        for peer in self._peers:
            if not peer.say(message, end):
                self._lose(peer.rank, f"has not come within {timeout_s:g} s")
        while missing := self._missing(message):
            if meanwhile is not None and meanwhile():
                continue
            now = time.monotonic()
            if now < spin_end:
                continue
            if now >= end:
                self._lose(missing[0], f"has not come within {timeout_s:g} s")
            self._poll.poll(1000 * (end - now))
        self._met = self._step

    def _listen(self) -> None:
        for peer in self._peers:
            if not peer.gone and not peer.listen():
                self._poll.unregister(peer.link)

    def _missing(self, expected: bytes) -> list[int]:
        """The ranks that have not said `expected`; forgets it where all have. RankError."""
        self._listen()
        for peer in self._peers:
            self._check(peer, expected)
        missing = [peer.rank for peer in self._peers if not peer.said]
        if not missing:
            for peer in self._peers:
                peer.said.popleft()
        return missing

    def _check(self, peer: _Peer, expected: bytes) -> None:
        """RankError unless it is here or may still come."""
        kinds = [message[0] for message in peer.said]
        if _MEET in kinds and peer.said[0] != expected:
            self._lose(peer.rank, "does something else than this one")
        if _LOST in kinds:
            _, lost, *_ = _MESSAGE.unpack(peer.said[kinds.index(_LOST)])
            if lost == self.rank:
                self._lose(peer.rank, "has given this one up as too late")
            self._lose(lost, f"was lost, says rank {peer.rank}")
        if _LEFT in kinds[:1]:
            self._lose(peer.rank, "has left")
        if peer.gone and _LEFT not in kinds:
            self._lose(peer.rank, "has ended")

    def _lose(self, rank: int, what: str) -> NoReturn:
        """Give up, and have the others name the same rank. RankError."""
        self._tell(_MESSAGE.pack(_LOST, rank, 0, 0, 0))
        self.close()
        raise RankError(
            f"cannot go on at step {self._step} of {self.ranks} ranks: rank {rank} {what}; "
            "its log says why"
        )

    def _tell(self, message: bytes) -> None:
        """The last that it says: to whoever takes it in soon."""
        end = time.monotonic() + limits.GANG_END_S
        for peer in self._peers:
            peer.say(message, end)

    def _terms(self, bucket: torch.Tensor, offset: int) -> list[torch.Tensor]:
        return [slot[offset : offset + bucket.nbytes].view(bucket.dtype) for slot in self._slots]

    def _offset(self, bucket: torch.Tensor) -> int:
        own = self._slots[self.own[0]]
        offset = bucket.data_ptr() - own.data_ptr()
        inside = 0 <= offset <= len(own) - bucket.nbytes
        if (
            bucket.dtype not in DTYPES
            or not bucket.is_contiguous()
            or not (inside or not bucket.nbytes)
        ):
            raise InvalidError("cannot reduce this tensor: it is no contiguous part of a bucket")
        return offset if bucket.nbytes else 0


def sum_in_order(terms: Sequence[torch.Tensor], into: int | None = None) -> None:
    """Put the sum of equally long vectors into each of them: ((t0 + t1) + t2) + …

    into: only into the one with that number. Of bfloat16 the sum is made in float32. Of two it is
    one addition, which is made so anyhow.
    """
    count, dtype = terms[0].numel(), terms[0].dtype
    block = BLOCK_BYTES // dtype.itemsize
    wide = None
    if len(terms) > 2 and (dtype == torch.bfloat16 or into is not None):
        wide = torch.empty(min(block, count))
    first = into if into is not None and wide is None else 0  # of two, either is added to
    for start in range(0, count if len(terms) > 1 else 0, block):
        parts = [term[start : start + block] for term in terms]
        total = parts[first] if wide is None else wide[: parts[0].numel()].copy_(parts[0])
        for number, part in enumerate(parts):
            if number != first:
                total.add_(part)
        for number, part in enumerate(parts):
            if part is not total and into in (None, number):
                part.copy_(total)


def _forget() -> None:
    """In a fork of a rank, such as one that loads data: it must not keep the rank's place."""
    for group in list(_groups):
        group._open = False
        for peer in group._peers:
            peer.link.close()
        group._peers = []


os.register_at_fork(after_in_child=_forget)
