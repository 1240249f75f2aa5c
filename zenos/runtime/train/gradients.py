"""Gradients summed over the ranks of a gang.

A bucket holds the gradients of neighbouring parameters, the last layers' first, since theirs are
ready first (Li et al., "PyTorch Distributed", 2020). When a parameter's gradient is complete, a
hook moves it into its place in a bucket. Buckets are begun in their order, each as soon as it is
full, so that all ranks do the same in the same order whichever gradient comes first.

They are summed while the backward pass goes on: through torch.distributed each for all ranks, by
the backend. In shared memory each rank sums only the gradients that are its own, and updates only
their parameters, which lie in memory that all have (`common.py`): so a step of the optimiser is
shared, too (Rajbhandari et al., "ZeRO", 2019). It does so itself, between two parts of its backward
pass, since a thread beside that would have no core of its own; and only with what the others have
told it that they have completed, so that it never waits for them. What is left when it meets them,
because they were behind, is summed while it waits, and after.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import torch
import torch.distributed as dist

from zenos.core import limits
from zenos.core.errors import RankError
from zenos.runtime.reduce import Group, Seat

BUCKET_BYTES: Final = 16 * limits.MIB
# How often in a step a rank tells the others how far it is, and sums what they all have.
TURNS: Final = 16
_ALIGNED_ITEMS: Final = 16  # 64 bytes: no two gradients in one cache line
_ITEM_BYTES: Final = 4


class Sums(Protocol):
    """How a bucket is summed over all ranks, in place.

    bucket_bytes: how large it should be. shares: whether ranks get different sums, so that they
    meet for what is known of all; the same on all ranks, also where one of them gets everything.
    """

    bucket_bytes: int
    shares: bool

    @property
    def slots(self) -> int:
        """How many terms this process has a part in: of one sum, as many as it has shards."""
        ...

    def bucket(self, count: int, slot: int) -> torch.Tensor:
        """A float32 tensor of `count` elements for one of its terms; `begin` takes those of 0."""
        ...

    def own(self, sizes: Sequence[int]) -> list[bool]:
        """Of buckets of these sizes, which this process gets the sums of: of each a process does.

        All are begun in that order, also those that others get.
        """
        ...

    def begin(self, bucket: torch.Tensor, *, own: bool) -> None:
        """The next bucket is complete here: it may be summed from now on, and is after `wait`.

        own: whether this process gets the sum. RankError.
        """
        ...

    def wait(self, tail: torch.Tensor) -> None:
        """Return when `tail`, for all, and all that was begun is summed.

        RankError for a rank that is lost or late.
        """
        ...

    def meet(self) -> None:
        """Wait until all ranks have done what each does to its own. RankError."""
        ...

    def close(self) -> None:
        """Leave the others."""
        ...


class SharedSums:
    """In the shared memory of one machine: each rank's own, by itself."""

    bucket_bytes = 0  # of one parameter each
    shares = True

    def __init__(self, seat: Seat) -> None:
        self._group = Group(seat)
        self._waiting: deque[tuple[int, torch.Tensor]] = deque()  # its own; the how manieth
        self._begun = 0  # in this step
        self._items = self._untold = 0  # elements of all buckets; of those begun, not told

    @property
    def common(self) -> torch.Tensor:
        """The bytes that all ranks have."""
        return self._group.common

    @property
    def slots(self) -> int:
        """As many as this rank has of the group's."""
        return len(self._group.own)

    def bucket(self, count: int, slot: int) -> torch.Tensor:
        """In this rank's part of the memory."""
        return self._group.bucket(count, torch.float32, self._group.own[slot])

    def own(self, sizes: Sequence[int]) -> list[bool]:
        """Its share: the largest first, each to whoever has least."""
        self._items = sum(sizes)
        found, loads = [False] * len(sizes), [0] * self._group.ranks
        for number in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
            rank = loads.index(min(loads))
            loads[rank] += sizes[number]
            found[number] = rank == self._group.rank
        return found

    def begin(self, bucket: torch.Tensor, *, own: bool) -> None:
        """Remember it; and now and then tell the others, and sum what they all have."""
        self._begun += 1
        if own:
            self._waiting.append((self._begun, bucket))
        self._untold += bucket.numel()
        if TURNS * self._untold >= self._items:
            self._untold = 0
            self._group.tell(self._begun)
            self._sum_complete()

    def wait(self, tail: torch.Tensor) -> None:
        """Meet, which has a deadline, and sum what is left.

        Nobody writes to what was begun before the next step, and that begins with meetings that are
        after all sums: of the norm, or of the optimiser's step.
        """
        self._group.all_reduce(tail, meanwhile=self._sum_complete)
        for _, bucket in self._waiting:
            self._group.reduce_here(bucket)
        self._waiting.clear()
        self._begun = self._untold = 0

    def _sum_complete(self) -> bool:
        """Sum what all ranks have completed; whether there was something."""
        if not self._waiting:
            return False
        everywhere, found = self._group.heard(), False
        while self._waiting and self._waiting[0][0] <= everywhere:
            self._group.reduce_here(self._waiting.popleft()[1])
            found = True
        return found

    def meet(self) -> None:
        """Wait for all, with a deadline."""
        self._group.barrier()

    def close(self) -> None:
        """Leave the group."""
        self._group.close()


class DistributedSums:
    """Through torch.distributed: NCCL between GPUs, gloo anywhere.

    rendezvous: a file that the ranks find each other by, not there yet. Its directory must be seen
    by all of them.
    """

    bucket_bytes = BUCKET_BYTES
    shares = False

    def __init__(
        self, backend: str, rank: int, ranks: int, rendezvous: Path, device: torch.device
    ) -> None:
        self._device = device
        self._works: list[Any] = []
        # All ranks are on this machine; a name that does not resolve would be waited for.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        try:
            dist.init_process_group(
                backend,
                init_method=f"file://{rendezvous}",
                rank=rank,
                world_size=ranks,
                timeout=timedelta(seconds=limits.REDUCE_TIMEOUT_S),
            )
        except RuntimeError as error:
            raise self._lost(error) from error

    @property
    def slots(self) -> int:
        """One: what a rank sums first itself would be summed in another order than elsewhere."""
        return 1

    def bucket(self, count: int, slot: int) -> torch.Tensor:
        """On this rank's device."""
        return torch.empty(count, dtype=torch.float32, device=self._device)

    def own(self, sizes: Sequence[int]) -> list[bool]:
        """All: each process updates its own copy of the model."""
        return [True] * len(sizes)

    def begin(self, bucket: torch.Tensor, *, own: bool = True) -> None:
        """By a thread of the backend's, or a stream of the GPU."""
        try:
            self._works.append(dist.all_reduce(bucket, async_op=True))
        except RuntimeError as error:
            raise self._lost(error) from error

    def wait(self, tail: torch.Tensor) -> None:
        """Wait for all of them."""
        self.begin(tail)
        works, self._works = self._works, []
        for work in works:
            try:
                work.wait()
            except RuntimeError as error:
                raise self._lost(error) from error

    def meet(self) -> None:
        """Nothing: no process does anything for another."""

    def close(self) -> None:
        """End the process group."""
        self._works = []
        if dist.is_initialized():
            dist.destroy_process_group()

    @staticmethod
    def _lost(error: RuntimeError) -> RankError:
        first = str(error).strip().partition("\n")[0][:200]
        return RankError(f"cannot go on together: {first}; the log says which rank has ended")


class _Bucket:
    """Its memory, the parameters whose gradients are in it, and how many of them are missing.

    memory: of each of this process's shards. own: whether this process gets the sum.
    """

    def __init__(
        self, memory: list[torch.Tensor], parameters: list[torch.nn.Parameter], own: bool
    ) -> None:
        self.memory = memory
        self.parameters = parameters
        self.own = own
        self.missing = len(parameters)


class _Place(NamedTuple):
    bucket: _Bucket
    views: list[torch.Tensor]  # parts of the bucket, of the parameter's shape; for each shard


class Gradients:
    """The gradients of a model in this process, and their sums over the shards of all.

    In each step: `arm` before the last backward pass, `sum_up` after it, then `clip`, a step of the
    optimiser, and `meet`. Of one shard, gradients of
    passes before that are added where they are. Of several, `put` after each other pass takes the
    gradients to their shard's, in the order of the passes; so a sum doesn't hang on which shards
    are computed by the same process.
    """

    def __init__(self, model: torch.nn.Module, sums: Sums) -> None:
        self._sums = sums
        self._slots = range(sums.slots)
        self._parameters = trained(model)
        self._buckets: list[_Bucket] = []
        self._places: dict[torch.nn.Parameter, _Place] = {}
        groups = _grouped(self._parameters, sums.bucket_bytes)
        counts = [sum(map(_room, group)) for group in groups]
        for group, count, own in zip(groups, counts, sums.own(counts), strict=True):
            memory = [sums.bucket(count, slot) for slot in self._slots]
            for part in memory:
                part.zero_()  # what stands between two gradients is summed as well
            bucket = _Bucket(memory, group, own)
            self._buckets.append(bucket)
            start = 0
            for parameter in group:
                end = start + parameter.numel()
                views = [part[start:end].view(parameter.shape) for part in memory]
                self._places[parameter] = _Place(bucket, views)
                start += _room(parameter)
        # The loss, and which parameters have got a gradient at all.
        self._tails = [sums.bucket(1 + len(self._parameters), slot) for slot in self._slots]
        self._has = [dict.fromkeys(self._parameters, False) for _ in self._slots]
        self.used: list[torch.nn.Parameter] = []  # those that any shard of the last step has
        norms = self._slots if sums.shares else ()
        self._norms = [sums.bucket(len(self._parameters), slot) for slot in norms]
        self._next = 0
        self._armed: int | None = None  # the shard of the pass
        hooked: list[Any] = list(self._parameters)
        self._hooks = [p.register_post_accumulate_grad_hook(self._come) for p in hooked]

    def arm(self) -> None:
        """The next backward pass is the step's last, of the last shard: sum what it completes."""
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._next = 0
        self._armed = self._slots[-1]

    def put(self, shard: int) -> None:
        """Take what backward passes have left to a shard's gradients. shard: which of its own."""
        for parameter in self._parameters:
            self._move(parameter, shard)

    def sum_up(self, losses: Sequence[float]) -> float:
        """Each `grad` is the sum over all shards, of parameters that are this process's own; others
        have none. The sum of the losses is returned.

        losses: of each of this process's shards. A shard whose part of the batch had nothing to
        learn from has no gradients, and adds zeros. RankError when a rank is lost or late.
        """
        self._armed = None
        last = self._slots[-1]
        for bucket in self._buckets[self._next :]:
            for parameter in bucket.parameters:
                self._move(parameter, last)
            self._begin(bucket)
        self._next = 0
        for tail, loss, has in zip(self._tails, losses, self._has, strict=True):
            tail.copy_(torch.tensor([loss, *map(float, has.values())]))
            has.update(dict.fromkeys(has, False))
        self._sums.wait(self._tails[0])
        total, *users = self._tails[0].tolist()
        # What no rank uses has no gradient, as without a gang: it must not decay.
        self.used = [p for p, count in zip(self._parameters, users, strict=True) if count]
        for parameter in self._parameters:
            parameter.grad = None
        for parameter in self.used:
            place = self._places[parameter]
            parameter.grad = place.views[0] if place.bucket.own else None
        return float(total)

    def clip(self, norm_max: float) -> float:
        """Scale the gradients so that the norm of all, which is returned, is at most `norm_max`.

        The same bits as `torch.nn.utils.clip_grad_norm_` over all. RankError.
        """
        if not self._sums.shares:
            return float(torch.nn.utils.clip_grad_norm_(self._parameters, norm_max))
        for norms in self._norms:
            norms.zero_()  # where it stays so, another rank's is added
        for number, parameter in enumerate(self._parameters):
            if parameter.grad is not None:
                self._norms[0][number] = torch.linalg.vector_norm(parameter.grad)
        self._sums.wait(self._norms[0])
        used = set(self.used)
        total = torch.linalg.vector_norm(
            self._norms[0][[parameter in used for parameter in self._parameters]]
        )
        torch.nn.utils.clip_grads_with_norm_(self._parameters, norm_max, total)
        return float(total)

    def meet(self) -> None:
        """After the optimiser's step: wait until all have done theirs. RankError."""
        self._sums.meet()

    def drop(self) -> None:
        """Forget what was put of a step that is thrown away."""
        for has in self._has:
            has.update(dict.fromkeys(has, False))

    def close(self) -> None:
        """Leave the others."""
        for hook in self._hooks:
            hook.remove()
        self._sums.close()

    def _come(self, parameter: torch.nn.Parameter) -> None:
        if self._armed is None:
            return
        self._move(parameter, self._armed)
        self._places[parameter].bucket.missing -= 1
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._begin(self._buckets[self._next])
            self._next += 1

    def _begin(self, bucket: _Bucket) -> None:
        """Sum it; a shard that has nothing for a parameter adds zeros."""
        for slot in self._slots:
            for parameter in bucket.parameters:
                if not self._has[slot][parameter]:
                    self._places[parameter].views[slot].zero_()
        self._sums.begin(bucket.memory[0], own=bucket.own)

    def _move(self, parameter: torch.nn.Parameter, slot: int) -> None:
        """Into its place, or to what stands there; and give back the memory where it was."""
        view, has = self._places[parameter].views[slot], self._has[slot]
        if parameter.grad is None or parameter.grad is view:
            return
        if has[parameter]:
            view.add_(parameter.grad)
        else:
            view.copy_(parameter.grad)
        has[parameter] = True
        # With one shard it may be added to where it is, by passes that follow.
        parameter.grad = view if len(self._slots) == 1 else None


def bytes_needed(model: torch.nn.Module) -> int:
    """Of buckets for each shard, with what their alignment takes."""
    parameters = trained(model)
    items = sum(map(_room, parameters)) + 1 + 2 * len(parameters)
    return _ITEM_BYTES * (items + _ALIGNED_ITEMS * (len(parameters) + 2))


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that have gradients; each tied one once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _room(parameter: torch.nn.Parameter) -> int:
    return -(-parameter.numel() // _ALIGNED_ITEMS) * _ALIGNED_ITEMS


def _grouped(
    parameters: Sequence[torch.nn.Parameter], together: int
) -> list[list[torch.nn.Parameter]]:
    """In the order in which a backward pass completes them, so many bytes or more together."""
    groups: list[list[torch.nn.Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        if not groups or size >= together:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += _ITEM_BYTES * _room(parameter)
    return groups
