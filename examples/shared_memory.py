"""An array of 64 MB goes to another process and nothing of it is copied: a handle goes.

The parent asks a pool for memory, computes into it and lends it. The child maps the same memory,
sums it, and ends without letting go of anything. That frees it: the parent uses it again.

Run it with `python examples/shared_memory.py`.
"""

from __future__ import annotations

import os
import socket
import time

import numpy as np

from zenos.bus import parcel, sharing
from zenos.bus.handle import Layout
from zenos.bus.memory import Pool
from zenos.bus.view import View
from zenos.runtime.arrays import numpy_in

LAYOUT = Layout("float64", (8_000_000,))


def child(link: socket.socket) -> None:
    """Sum what comes, say the sum, and end as if killed."""
    got = parcel.receive(link)
    assert got is not None
    (array,) = sharing.read(View(got), "numpy")
    link.send(repr(float(array.sum())).encode())
    os._exit(0)


def run() -> tuple[float, float, bool]:
    """The child's sum; seconds that giving the array took; whether its memory was used again."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, Pool(100_000_000) as pool:
        pid = os.fork()
        if pid == 0:
            child(theirs)
        theirs.close()
        buffer = pool.allocate(LAYOUT.bytes)
        numpy_in(buffer, LAYOUT)[:] = np.arange(LAYOUT.shape[0]) % 2
        begun = time.perf_counter()
        with buffer.lend(LAYOUT) as given:
            parcel.send(ours, given)
        took_s = time.perf_counter() - begun
        total = float(ours.recv(64))
        os.waitpid(pid, 0)
        with pool.allocate(LAYOUT.bytes, wait_s=60):
            used_again = pool.state.segments == 1
    return total, took_s, used_again


def main() -> None:
    """Show it."""
    total, took_s, used_again = run()
    print(f"the other process' sum: {total:,.0f}")
    print(f"giving it {LAYOUT.bytes:,} bytes took {1e6 * took_s:.0f} µs")
    print(f"its memory is used again: {'yes' if used_again else 'no'}")


if __name__ == "__main__":
    main()
