"""Redis Streams with appendfsync always: messages in a second, as durable.py counts them.

`redis_streams.py SERVER FOLDER COUNT ROUNDS` prints the rates as JSON; with more words it is one of
the producers or consumers.
"""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
redis: Any = importlib.import_module("redis")  # in an environment of its own

STREAM, GROUP = "bench", "group"


def connect(folder: str) -> Any:
    """The server in that folder."""
    return redis.Redis(unix_socket_path=f"{folder}/redis.sock")


def produce(folder: str, count: int, in_flight: int, size: int) -> None:
    """Send batches, each when all of the one before is kept."""
    server, body = connect(folder), bytes(size)
    server.ping()
    go()
    for _ in range(count // in_flight):
        batch = server.pipeline(transaction=False)
        for _ in range(in_flight):
            batch.xadd(STREAM, {"body": body})
        batch.execute()
    print("done", flush=True)


def consume(folder: str, count: int, in_flight: int, name: str) -> None:
    """Take and acknowledge as many at once, and drop them as our topics do."""
    server, done = connect(folder), 0
    server.ping()
    go()
    while done < count:
        wanted = min(in_flight, count - done)
        found = server.xreadgroup(GROUP, name, {STREAM: ">"}, count=wanted, block=1000)
        ids = [number for _, messages in found for number, _ in messages]
        if ids:
            batch = server.pipeline(transaction=False)
            for number in ids:
                batch.xack(STREAM, GROUP, number)
                batch.xdel(STREAM, number)
            batch.execute()
            done += len(ids)
    print("done", flush=True)


def go() -> None:
    """Wait for the word."""
    print("ready", flush=True)
    sys.stdin.readline()


def rates(server: str, folder: str, each: int, rounds: int) -> list[float]:
    """Measured on a server of its own, which writes to that folder."""
    measure: Any = importlib.import_module("benchmarks.durable_rate").rate
    argv = [server, "--port", "0", "--unixsocket", f"{folder}/redis.sock", "--dir", folder]
    argv += [
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--save",
        "",
        "--loglevel",
        "warning",
    ]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        while not Path(folder, "redis.sock").exists():
            time.sleep(0.05)
        connect(folder).xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        mine = [sys.executable, __file__]
        return [measure(lambda *part: [*mine, *part, folder], each) for _ in range(rounds)]
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["produce", count, in_flight, size, folder]:
            produce(folder, int(count), int(in_flight), int(size))
        case ["consume", count, in_flight, _, folder]:
            consume(folder, int(count), int(in_flight), str(time.time_ns()))
        case [server, folder, each, rounds]:
            print(json.dumps(rates(server, folder, int(each), int(rounds))))
