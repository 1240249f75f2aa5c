"""Preemption to first token: requests for a model while a training holds the memory.

The training and the served model don't fit together. Requests come by a Poisson process, each of
them when the training runs: it is saved and ends, the model is loaded and answers, is unloaded, and
the training goes on. Measured are the time to each first token, whether all were answered, whether
the training ended in the same weights as one that nobody interrupted, and what it lost beyond the
time in which the model was served.
"""

from __future__ import annotations

import random
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import homes, models
from benchmarks.report import Figure, Row, say, target
from zenos.client import Client, TaskHandle
from zenos.core.task import Kind, State, Task, TaskEvent

MEDIAN_S_MAX, P99_S_MAX, OVERHEAD_MAX = 2.0, 4.0, 0.05
BETWEEN_S = 10.0  # requests come so long after the training goes on, on average
WAIT_S = 120.0
SETTINGS = ("--set", "cpus=2", "--set", "memory=4GiB", "--set", "keep_alive_s=1")
SEED = 20171002


def rows(*, quick: bool) -> list[Row]:
    """First tokens of requests that met the training at work, and what that cost the training."""
    steps, requests = (60, 2) if quick else (240, 20)
    with homes.temporary() as root, homes.daemon(root, *SETTINGS) as client:
        models.make(client)
        say("the training, undisturbed")
        alone = finish(train(client, "alone", steps))
        say("the training, with requests")
        handle = train(client, "disturbed", steps)
        taken, failed = ask(client, handle, requests)
        disturbed = finish(handle)
        same = weights(client, "alone") == weights(client, "disturbed")
        served_s = given_up_s(client, handle)
        times = preemptions(client, handle)
    lost_s = ran_s(disturbed) - ran_s(alone) - served_s
    overhead = lost_s / (ran_s(alone) + served_s)
    say(
        f"{len(taken)} answered, {failed} failed; the training was suspended {times} times and"
        f" ended in {'the same' if same else 'OTHER'} weights; alone {ran_s(alone):.1f} s,"
        f" disturbed {ran_s(disturbed):.1f} s, of which served {served_s:.1f} s"
    )
    if not taken or not same or failed:
        raise RuntimeError("cannot report: not all were answered, or the weights differ")
    first, last = median(taken), max(taken)
    each_s = lost_s / max(times, 1)
    return [
        target(
            Row(
                what=f"preemption to first token, {models.PARAMETERS}, {len(taken)} requests",
                unit="s",
                ours=Figure.of(taken),
            ),
            f"median ≤ {MEDIAN_S_MAX:g} s",
            first <= MEDIAN_S_MAX,
        ),
        target(
            Row(what="the same, the slowest of them", unit="s", ours=Figure.of([last])),
            f"≤ {P99_S_MAX:g} s",
            last <= P99_S_MAX,
        ),
        target(
            Row(
                what=f"what the training lost beside the time given up ({each_s:.2f} s each time)",
                unit="%",
                ours=Figure.of([100 * overhead]),
            ),
            f"≤ {100 * OVERHEAD_MAX:g} %",
            overhead <= OVERHEAD_MAX,
        ),
    ]


def train(client: Client, model: str, steps: int) -> TaskHandle:
    """A training that takes most of the memory."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return client.train(
        model=model,
        arch=models.ARCH,
        data={"paths": [str(library / "*.py")], "format": "text", "eval_fraction": 0.002},
        tokenizer=models.NAME,
        batch_size=8,
        sequence_length=128,
        steps=steps,
        eval_every=10**6,
        eval_batches=1,
        checkpoint_every=10**6,
        cpu=2,
        memory="3.8GiB",
    )


def ask(client: Client, training: TaskHandle, requests: int) -> tuple[list[float], int]:
    """Seconds to the first token of each request that met the training, and how many failed."""
    source = random.Random(SEED)  # noqa: S311 - arrivals, no secret
    taken: list[float] = []
    failed = 0
    for _ in range(requests):
        if not until(lambda: at_work(training)):
            break
        time.sleep(source.expovariate(1 / BETWEEN_S))
        if not at_work(training):
            break
        begun = time.perf_counter()
        try:
            with client.generate(models.NAME, "def ", max_tokens=8, temperature=0.0) as answer:
                next(answer)
                taken.append(time.perf_counter() - begun)
                for _chunk in answer:
                    pass
        except Exception as error:  # noqa: BLE001 - whatever it was, it was no answer
            say(f"a request failed: {error}")
            failed += 1
    return taken, failed


def at_work(training: TaskHandle) -> bool:
    """Whether it does steps."""
    view = training.refresh()
    working = view.progress is not None and view.progress.stage == "training"
    return view.task.state is State.RUNNING and working


def until(done: Callable[[], bool]) -> bool:
    """Look until it is so; False after WAIT_S seconds."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.02)
    return False


def finish(handle: TaskHandle) -> Task:
    """Wait for its end."""
    task = handle.wait(3600)
    if task.state is not State.SUCCEEDED:
        raise RuntimeError(f"cannot measure: {task.outcome}")
    return task


def ran_s(task: Task) -> float:
    """Seconds from submission to end."""
    return (task.ended or 0.0) - task.submitted


def weights(client: Client, model: str) -> str:
    """The digest of its weights."""
    return client.model(model).files["model.safetensors"].digest


def given_up_s(client: Client, handle: TaskHandle) -> float:
    """Seconds in which replicas held what the training had had."""
    since = handle.task.submitted
    tasks = [view.task for view in client.tasks(limit=1000)]
    replicas = [t for t in tasks if t.kind is Kind.SERVE and t.submitted >= since]
    return sum((t.ended or 0.0) - (t.started or 0.0) for t in replicas if t.started)


def preemptions(client: Client, handle: TaskHandle) -> int:
    """How often it gave way."""
    count = 0
    for event in client.events(handle.id, after=0, deadline=time.monotonic() + 60):
        if isinstance(event, TaskEvent):
            count += "gives way" in event.detail
            if event.state is State.SUCCEEDED:
                break
    return count
