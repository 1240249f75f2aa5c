"""What a simulation came to: times, slowdown, utilisation, fairness."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from zenos.simulate.traces import Job

# A job of a second that waits for a minute is no disaster: the bound of "bounded slowdown"
# (D. Feitelson et al., "Theory and practice in parallel job scheduling", 1997).
SLOWDOWN_BOUND_S = 10.0


class Ran(msgspec.Struct, gc=False):
    """How one job went: when it ended, how often it was suspended, seconds lost by that.

    failures: how often it lost a node; redone_s: seconds of work that it had to do again for that.
    """

    done_s: float = math.nan
    suspensions: int = 0
    lost_s: float = 0.0
    failures: int = 0
    redone_s: float = 0.0


class Meter:
    """GPU-seconds of work done between 0 and `until_s`."""

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        self.worked = 0.0

    def add(self, from_s: float, to_s: float, gpus: float) -> None:
        """So many GPUs worked from then to then."""
        self.worked += gpus * max(0.0, min(to_s, self.until_s) - min(from_s, self.until_s))


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What came of requests. Times in seconds from arrival, over those that were answered.

    first_token: until the first token; None where nothing was answered. replica_wait: until it was
    sent to a replica, of all. late: not answered within their time; refused: too many waited
    already; cut: their replica went while they were answered. cold_starts: how often a replica was
    loaded; replicas_mean: how many there were on average until the last request was over, loading
    and ending ones too.
    """

    arrived: int
    answered: int
    late: int
    refused: int
    cut: int
    first_token_median_s: float | None
    first_token_p99_s: float | None
    first_token_longest_s: float | None
    replica_wait_longest_s: float
    cold_starts: int
    replicas_mean: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on one trace. Times in seconds.

    completion: from submission to end. wait: all time in which a job doesn't run, lost time
    included. slowdown: completion over run time, bounded below at 10 s. utilisation: the share of
    all GPU-seconds that did work, from the first submission to the last end; lost time is none.
    utilisation_arrivals: the same from the first to the last submission. fairness: Jain's index
    over the users' mean slowdowns, 1 for all alike. node_failures: how often a node was lost;
    restarts: how often a job lost its worker by that; work_lost: GPU-seconds that were done again.
    """

    policy: str
    jobs: int
    gpus: int
    completion_mean_s: float
    completion_median_s: float
    completion_p99_s: float
    wait_mean_s: float
    wait_median_s: float
    wait_p99_s: float
    wait_longest_s: float
    slowdown_mean: float
    makespan_s: float
    utilisation: float
    utilisation_arrivals: float
    fairness: float
    suspensions: int
    suspensions_most: int
    node_failures: int = 0
    restarts: int = 0
    work_lost: float = 0.0
    steps: int = 0
    step_mean_us: float = 0.0
    requests: Served | None = None


def summarise(
    policy: str, jobs: Sequence[Job], ran: Sequence[Ran], gpus: int, meter: Meter
) -> Summary:
    """Sum up. `jobs` and `ran` in the same order."""
    completion = [r.done_s - job.submit_s for job, r in zip(jobs, ran, strict=True)]
    wait = [took - job.duration_s for job, took in zip(jobs, completion, strict=True)]
    slowdown = [
        max(1.0, took / max(job.duration_s, SLOWDOWN_BOUND_S))
        for job, took in zip(jobs, completion, strict=True)
    ]
    by_user: dict[str, list[float]] = defaultdict(list)
    for job, value in zip(jobs, slowdown, strict=True):
        by_user[job.user].append(value)
    makespan_s = max(r.done_s for r in ran)
    arrivals = gpus * meter.until_s
    return Summary(
        policy=policy,
        jobs=len(jobs),
        gpus=gpus,
        completion_mean_s=_mean(completion),
        completion_median_s=quantile(completion, 0.5),
        completion_p99_s=quantile(completion, 0.99),
        wait_mean_s=_mean(wait),
        wait_median_s=quantile(wait, 0.5),
        wait_p99_s=quantile(wait, 0.99),
        wait_longest_s=max(wait),
        slowdown_mean=_mean(slowdown),
        makespan_s=makespan_s,
        utilisation=sum(job.work for job in jobs) / (gpus * makespan_s) if makespan_s else 0.0,
        utilisation_arrivals=meter.worked / arrivals if arrivals else 0.0,
        fairness=jain([_mean(values) for values in by_user.values()]),
        suspensions=sum(r.suspensions for r in ran),
        suspensions_most=max(r.suspensions for r in ran),
        restarts=sum(r.failures for r in ran),
        work_lost=sum(r.redone_s * job.gpu / 1000 for job, r in zip(jobs, ran, strict=True)),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index (R. Jain, D. Chiu, W. Hawe, 1984): (Σx)² / (n · Σx²)."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
