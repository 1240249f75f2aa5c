"""Tasks in processes of their own: how fast one runs, and how many end in a second."""

from __future__ import annotations

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import homes
from benchmarks.report import Row, compare, target
from zenos.client import Client
from zenos.core.task import TaskSpec

LATENCY_MS_MAX = 60.0
LANES = 2
QUEUED = 200


def rows(*, quick: bool) -> list[Row]:
    """Accepted to running, in ms; programs per second with many queued."""
    rounds, queued = (3, 40) if quick else (25, QUEUED)
    with homes.temporary() as root, homes.daemon(root) as client:
        programs = [accepted_to_running_ms(client, ["true"]) for _ in range(rounds)]
        alone = [round_trip_ms(client) for _ in range(rounds)]
        forked = [accepted_to_running_ms(client, create(n)) for n in range(rounds)]
        rates, bare = [], []
        for _ in range(2 if quick else 5):
            rates.append(programs_per_s(client, queued))
            bare.append(bare_programs_per_s(queued))
    said = homes.ray("ray_workers.py")
    ray = json.loads(" ".join(said)) if said else {"actors": [], "programs": []}
    ray_starts, ray_alone = ([1000 * s for s in ray[name]] for name in ("actors", "programs"))
    reach = f"≤ {LATENCY_MS_MAX:g} ms"
    made = []
    for what, times in (("a program", programs), ("a forked worker", forked)):
        row = compare(
            f"{what}: accepted to running",
            "ms",
            times,
            "Ray actor in a new process, asked until it answers",
            ray_starts,
            same_work=False,
        )
        made.append(target(row, reach, row.ours.median <= LATENCY_MS_MAX))
    made.append(
        compare(
            "a program alone: submitted until its end is known",
            "ms",
            alone,
            "Ray task with subprocess.run in a warm worker, nothing kept",
            ray_alone,
        )
    )
    made += [
        compare("programs in a second, many queued", "/s", rates, name, peer, more_is_better=True)
        for name, peer in (
            ("subprocess.run in 2 threads, nothing kept", bare),
            (
                "Ray tasks with subprocess.run, nothing kept",
                [ray["rate"]] if "rate" in ray else [],
            ),
        )
        if peer
    ]
    return made


def accepted_to_running_ms(client: Client, work: list[str] | TaskSpec) -> float:
    """One task on an idle machine, by the kernel's own times."""
    task = client.submit(work).wait(120)
    if task.running is None:
        raise RuntimeError(f"cannot measure: {task.outcome}")
    return 1000 * (task.running - task.submitted)


def round_trip_ms(client: Client) -> float:
    """One program, as its submitter sees it: accepted durably, run, its end durably known."""
    begun = time.perf_counter()
    client.submit(["true"]).wait(120)
    return 1000 * (time.perf_counter() - begun)


def create(number: int) -> TaskSpec:
    """The least that a worker forked by the zygote can do."""
    from zenos.core.specs import CreateSpec

    return TaskSpec(work=CreateSpec(name=f"m{number}", arch="llama-nano"))


def programs_per_s(client: Client, count: int) -> float:
    """Durably accepted, run, and their ends durably written."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        handles = list(pool.map(lambda _: client.submit(["true"], cpu=1.0), range(count)))
    for handle in handles:
        task = handle.wait(300)
        if task.state != "succeeded":
            raise RuntimeError(f"cannot measure: {task.outcome}")
    return count / (time.perf_counter() - begun)


def bare_programs_per_s(count: int) -> float:
    """The floor: nothing but the processes, two at a time."""
    true = str(Path("/bin/true"))
    begun = time.perf_counter()
    with ThreadPoolExecutor(LANES) as pool:
        list(pool.map(lambda _: subprocess.run([true], check=True), range(count)))
    return count / (time.perf_counter() - begun)
