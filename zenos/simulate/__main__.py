"""The simulator's program: a request as JSON in, lines of JSON out. `zenos simulate` runs it.

It is a process of its own because the command line imports no part of the daemon.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from zenos.core import pictures
from zenos.core.config import resolve
from zenos.core.errors import InvalidError, ZenosError
from zenos.core.node import Node
from zenos.core.wording import field_error
from zenos.simulate import cluster, failures, peers, plots, requests, traces
from zenos.simulate.report import Meter, Ran, Summary, summarise
from zenos.simulate.requests import Load, Replicas
from zenos.simulate.serving import Serving
from zenos.simulate.traces import Job
from zenos.simulate.world import CHECKPOINT_S, World

POLICIES: Final = ("zenos", *peers.POLICIES)
MIXED: Final = "zenos with requests"  # the name of that run
PROGRESS_EVERY: Final = 200  # jobs


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is simulated. nodes or load: one of the two. Times in seconds; settings: see Config.

    fail, or mtbf_s, mttr_s and seed: which nodes fail (see failures.py). requests: a CSV of
    requests for a model, which begin anew every requests_every_s, and replica: what answers them;
    the jobs then run with and without them.
    """

    trace: str
    skip_bad: bool = False
    nodes: str | None = None
    load: float | None = None
    policies: list[str]
    from_s: float = 0.0
    to_s: float | None = None
    duration_s_max: float | None = None
    restart_s: float = 60.0
    settings: dict[str, Any] = {}
    plot: str | None = None
    fail: list[str] = []
    mtbf_s: float | None = None
    mttr_s: float = 3600.0
    seed: int = 0
    checkpoint_s: float = CHECKPOINT_S
    requests: str | None = None
    requests_every_s: float | None = None
    replica: Replicas = Replicas()

    def check(self) -> None:
        """Raises InvalidError."""
        if (self.nodes is None) == (self.load is None):
            raise InvalidError("cannot tell how large the cluster is: give --nodes, or --load")
        for policy in self.policies:
            if policy not in POLICIES:
                raise InvalidError(
                    f"cannot simulate policy {policy[:40]!r}: one of {', '.join(POLICIES)}"
                )
        if not 0 <= self.restart_s <= 86400:
            raise InvalidError(f"cannot charge {self.restart_s:g} s: from 0 to 86400")
        if self.to_s is not None and not 0 <= self.from_s < self.to_s:
            raise InvalidError("cannot take days that end before they begin")
        if (self.fail or self.mtbf_s is not None) and set(self.policies) != {"zenos"}:
            raise InvalidError(
                "cannot let nodes fail with other policies: only zenos knows nodes; use --policy "
                "zenos"
            )
        if self.requests is not None and set(self.policies) != {"zenos"}:
            raise InvalidError(
                "cannot serve requests with other policies: only zenos knows models; use --policy "
                "zenos"
            )
        stated = self.requests_every_s is not None or self.replica != Replicas()
        if self.requests is None and stated:
            raise InvalidError("cannot serve without requests: give --requests FILE")
        if not 1 <= self.checkpoint_s < math.inf:
            raise InvalidError(f"cannot checkpoint every {self.checkpoint_s:g} s: at least 1")


def simulate(request: Request, say: Callable[[dict[str, Any]], None]) -> list[Summary]:
    """Run one policy after the other. `say` hears of the trace, of progress and of results."""
    request.check()
    config = resolve({}, {}, request.settings)
    if request.plot is not None:
        pictures.check(Path(request.plot))
    trace = traces.read(Path(request.trace), skip_bad=request.skip_bad)
    window = traces.Window(
        request.from_s, request.to_s or math.inf, request.duration_s_max or math.inf
    )
    jobs = window.cut(trace.jobs)
    if not jobs:
        raise InvalidError(f"cannot simulate: none of {len(trace.jobs):,} jobs is in that window")
    nodes = _nodes(request, jobs)
    cluster.check_fit(jobs, nodes)
    made = partial(failures.made, request.fail, request.mtbf_s, request.mttr_s, request.seed, nodes)
    made()  # says now what is wrong with it
    load, left_out = _load(request, jobs, nodes)
    gpus = sum(node.gpus for node in nodes)
    line = {"type": "trace", "jobs": len(jobs), "gpus": gpus, "skipped": trace.skipped}
    say(line if load is None else line | {"requests_skipped": left_out})
    summaries: list[Summary] = []
    curves: dict[str, list[float]] = {}
    for policy in [*request.policies, *([MIXED] if load is not None else [])]:

        def progress(done: int, policy: str = policy) -> None:
            if done % PROGRESS_EVERY == 0 or done == len(jobs):
                say({"type": "progress", "policy": policy, "done": done, "of": len(jobs)})

        meter = Meter(jobs[-1].submit_s)
        if policy in ("zenos", MIXED):
            serving = Serving(load, request.replica) if load and policy == MIXED else None
            every_s = request.checkpoint_s
            world = World(jobs, nodes, config, meter, request.restart_s, made(), every_s, serving)
            ran = world.run(progress)
            summary = _with_steps(summarise(policy, jobs, ran, gpus, meter), world, serving)
        else:
            ran = peers.run(policy, jobs, nodes, meter, progress)
            summary = summarise(policy, jobs, ran, gpus, meter)
        say({"type": "summary", "summary": msgspec.to_builtins(summary)})
        summaries.append(summary)
        curves[policy] = _completions(jobs, ran)
    if request.plot is not None:
        plots.write(curves, Path(request.plot))
    return summaries


def _load(
    request: Request, jobs: Sequence[Job], nodes: Sequence[Node]
) -> tuple[Load | None, list[str]]:
    """The requests until the last job has been submitted, if any, and which rows were left out."""
    if request.requests is None:
        return None, []
    request.replica.check(nodes)
    asked, left_out = requests.read(Path(request.requests), skip_bad=request.skip_bad)
    return requests.load(asked, request.requests_every_s, jobs[-1].submit_s), left_out


def _with_steps(summary: Summary, world: World, serving: Serving | None) -> Summary:
    return msgspec.structs.replace(
        summary,
        steps=world.steps,
        step_mean_us=world.step_s / world.steps * 1e6,
        node_failures=world.node_failures,
        requests=serving.served() if serving is not None else None,
    )


def _nodes(request: Request, jobs: Sequence[Job]) -> list[Node]:
    if request.nodes is not None:
        return cluster.nodes(request.nodes)
    span_s = jobs[-1].submit_s
    if request.to_s is not None:
        span_s = request.to_s - request.from_s
    return cluster.pool_for(jobs, request.load or 0.0, span_s)


def _completions(jobs: Sequence[Job], ran: Sequence[Ran]) -> list[float]:
    return sorted(r.done_s - job.submit_s for job, r in zip(jobs, ran, strict=True))


def _say(line: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    """Read the request from standard input; 1 after an error, which is told as a line too."""
    try:
        try:
            request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
        except msgspec.ValidationError as error:
            raise field_error(error, Request) from None
        simulate(request, _say)
    except ZenosError as error:
        _say({"type": "error", "code": error.code, "message": error.message})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
