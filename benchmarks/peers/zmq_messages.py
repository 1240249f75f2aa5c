"""ZeroMQ over ipc: round trips of 64 bytes in µs, and messages in a second. Prints JSON."""

import importlib
import json
import multiprocessing
import os
import tempfile
import time
from typing import Any

zmq: Any = importlib.import_module("zmq")  # in an environment of its own

BODY, TRIPS, COUNT, ROUNDS = b"x" * 64, 20_000, 200_000, 5


def echo(address: str) -> None:
    """Answer for ever."""
    replies = zmq.Context().socket(zmq.REP)
    replies.bind(address)
    while True:
        replies.send(replies.recv())


def sink(address: str, ready: Any) -> None:
    """Take so many, so often."""
    pull = zmq.Context().socket(zmq.PULL)
    pull.bind(address)
    for _ in range(ROUNDS):
        ready.send(b"")
        for _ in range(COUNT):
            pull.recv()
        ready.send(b"")


def main() -> None:
    """Measure both."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{folder}/echo"
        other = multiprocessing.Process(target=echo, args=(address,), daemon=True)
        other.start()
        request = zmq.Context().socket(zmq.REQ)
        request.connect(address)
        trips = []
        for _ in range(TRIPS):
            begun = time.perf_counter()
            request.send(BODY)
            request.recv()
            trips.append(1e6 * (time.perf_counter() - begun))
        other.terminate()
        address = f"ipc://{folder}/sink"
        ours, theirs = multiprocessing.Pipe()
        other = multiprocessing.Process(target=sink, args=(address, theirs), daemon=True)
        other.start()
        push = zmq.Context().socket(zmq.PUSH)
        push.connect(address)
        rates = []
        for _ in range(ROUNDS):
            ours.recv()
            begun = time.perf_counter()
            for _ in range(COUNT):
                push.send(BODY)
            ours.recv()
            rates.append(COUNT / (time.perf_counter() - begun))
        other.terminate()
        print(json.dumps({"round_trips_us": trips, "rates": rates}), flush=True)
        os._exit(0)  # its threads hold what is still queued


if __name__ == "__main__":
    main()
