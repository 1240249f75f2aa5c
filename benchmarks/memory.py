"""A large tensor given to another process, and gradients summed over two.

Time counts from before the pool is asked for the memory (or the memory is lent) until the other
process has mapped it, read its two ends, and said so.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks import homes
from benchmarks.report import Row, alternate, compare, target
from zenos.bus import parcel, sharing
from zenos.bus.handle import Layout
from zenos.bus.memory import Pool
from zenos.core import limits
from zenos.runtime import arrays

TENSOR_BYTES = 256 * limits.MIB
BUCKET_ITEMS = 30_000_000  # 120 MB
HANDLE_MS_MAX, COPY_RATIO_MAX, REDUCE_RATIO_MIN = 1.0, 1.3, 6.0
Floats = np.ndarray[tuple[int], np.dtype[np.float32]]
READER = """
import socket, sys
from zenos.bus import parcel
from zenos.bus.view import View

link = socket.socket(fileno=int(sys.argv[1]))
while (got := parcel.receive(link, timeout_s=3600)) is not None:
    with got, View(got) as view:
        memory = view.memory()
        link.send(bytes([memory[0], memory[-1]]))
        del memory
"""
RANK = """
import json, socket, sys, time
import torch
import torch.distributed as dist
from zenos.runtime.reduce import Group, Seat

link, rank, store, count, rounds = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
with Group(Seat.receive(socket.socket(fileno=link))) as group:
    ours = group.bucket(int(count), torch.float32)
    theirs = torch.empty(int(count))
    times = {"ours": [], "gloo": []}
    for number in range(2 * int(rounds) + 2):
        for tensor in (ours, theirs):
            tensor.fill_(rank + 1)
        group.barrier()
        begun = time.perf_counter()
        if number % 2:
            dist.all_reduce(theirs)
        else:
            group.all_reduce(ours)
        took_ms = 1000 * (time.perf_counter() - begun)
        tensor = theirs if number % 2 else ours
        assert tensor[0] == tensor[-1] == 3
        if number > 1:
            times["gloo" if number % 2 else "ours"].append(took_ms)
dist.destroy_process_group()
if rank == 0:
    print(json.dumps(times))
"""


def rows(*, quick: bool) -> list[Row]:
    """By handle, copied in, reduced."""
    rounds = 3 if quick else 15
    said = homes.ray("ray_memory.py")
    ray = json.loads(" ".join(said)) if said else []
    name = "Ray put and an actor that reads"
    with reader() as link, Pool(2 * TENSOR_BYTES) as pool:
        source = np.random.default_rng(0).random(TENSOR_BYTES // 4, np.float32)
        copied_ms(pool, link, source)  # the segment is made, and its pages are there
        by_handle = [by_handle_ms(pool, link, source) for _ in range(rounds)]
        aim = np.zeros_like(source)
        copied, plain = alternate(
            lambda: copied_ms(pool, link, source), lambda: memcpy_ms(aim, source), rounds
        )
    handle = compare("256 MiB to another process, written in place", "ms", by_handle, name, ray)
    copy = compare("256 MiB to another process, copied in", "ms", copied, "one memcpy", plain)
    beside = compare("256 MiB to another process, copied in", "ms", copied, name, ray)
    ours, gloo = reduced_ms(rounds)
    reduce = compare("all-reduce of 120 MB between 2 ranks", "ms", ours, "gloo", gloo)
    made = [
        target(handle, f"≤ {HANDLE_MS_MAX:g} ms", handle.ours.median <= HANDLE_MS_MAX),
        target(copy, f"≤ {COPY_RATIO_MAX:g} memcpy", (copy.ratio or 0) >= 1 / COPY_RATIO_MAX),
    ]
    if ray:
        made.append(beside)
    reached = (reduce.ratio or 0) >= REDUCE_RATIO_MIN
    return [*made, target(reduce, f"≥ {REDUCE_RATIO_MIN:g} x", reached)]


@contextmanager
def reader() -> Iterator[socket.socket]:
    """Another process that reads what it gets."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        process = subprocess.Popen(
            [sys.executable, "-c", READER, str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        try:
            yield ours
        finally:
            ours.close()
            process.wait(60)


def by_handle_ms(pool: Pool, link: socket.socket, source: Floats) -> float:
    """A buffer is asked for and given. Filling it, as its producer does anyhow, is left out."""
    begun = time.perf_counter()
    buffer = pool.allocate(TENSOR_BYTES)
    passed = time.perf_counter() - begun
    layout = Layout("float32", source.shape)
    np.copyto(arrays.numpy_in(buffer, layout), source)
    begun = time.perf_counter()
    with buffer.lend(layout) as given:
        parcel.send(link, given)
        link.recv(2)
    return 1000 * (passed + time.perf_counter() - begun)


def copied_ms(pool: Pool, link: socket.socket, source: Floats) -> float:
    """An array from anywhere, copied into the pool and given."""
    begun = time.perf_counter()
    with sharing.share(pool, source) as given:
        parcel.send(link, given)
        link.recv(2)
    return 1000 * (time.perf_counter() - begun)


def memcpy_ms(aim: Floats, source: Floats) -> float:
    """From memory to memory, both warm."""
    begun = time.perf_counter()
    np.copyto(aim, source)
    return 1000 * (time.perf_counter() - begun)


def reduced_ms(rounds: int) -> tuple[list[float], list[float]]:
    """Ours and gloo's in turn, in the same two processes, of one thread each."""
    from zenos.runtime.reduce import seats

    with homes.temporary() as root:
        processes = []
        for seat in seats(2, 4 * BUCKET_ITEMS):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with ours, theirs:
                told = (theirs.fileno(), seat.rank, root / "store", BUCKET_ITEMS, rounds)
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", RANK, *map(str, told)],
                        pass_fds=[theirs.fileno()],
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
                seat.send(ours)
        said = [process.communicate(timeout=600)[0] for process in processes]
    times = json.loads(said[0])
    return times["ours"], times["gloo"]
