"""Clusters to simulate: written as `100x8gpu`, or one pool that a load fills to so many percent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.node import Node
from zenos.core.resources import Resources, show_units
from zenos.kernel.resource_manager import ResourceManager
from zenos.simulate.traces import Job

NODES_MAX: Final = 100_000
_GROUP: Final = re.compile(r"^(\d{1,6})x(\d{1,4})gpus?$")


def nodes(text: str) -> list[Node]:
    """Nodes from `100x8gpu` or `10x8gpu,4x2gpu`. Raises InvalidError."""
    made: list[Node] = []
    for group in text.split(","):
        match = _GROUP.match(group.strip().lower())
        if match is None:
            raise InvalidError(
                f"cannot read the nodes {group[:40]!r}: write COUNTxGPUSgpu, for example 100x8gpu"
            )
        count, gpus = int(match[1]), int(match[2])
        if not count or not gpus or gpus * 1000 > limits.GPU_MILLI_MAX:
            raise InvalidError(
                f"cannot use {group}: at least one node with 1 to {limits.GPU_MILLI_MAX // 1000}"
                " GPUs each"
            )
        if len(made) + count > NODES_MAX:
            raise InvalidError(f"cannot simulate more than {NODES_MAX:,} nodes")
        made += [node(f"n{len(made) + number + 1}", gpus) for number in range(count)]
    return made


def node(name: str, gpus: int) -> Node:
    """One node that has GPUs and nothing else to run out of."""
    return Node(name=name, capacity=Resources(gpu=gpus * 1000), gpus=gpus, virtual_gpus=True)


def pool_for(jobs: Sequence[Job], load: float, span_s: float) -> list[Node]:
    """One node with as many GPUs as make the jobs' work `load` times what it can do in `span_s`."""
    if not 0 < load <= 100:
        raise InvalidError(f"cannot size a pool for a load of {load:g}: above 0, for example 0.9")
    if span_s <= 0:
        raise InvalidError("cannot size a pool: all jobs come at the same time; give --nodes")
    gpus = max(1, round(sum(job.work for job in jobs) / (load * span_s)))
    if gpus * 1000 > limits.GPU_MILLI_MAX:
        raise InvalidError(
            f"cannot simulate one pool of {gpus:,} GPUs: at most {limits.GPU_MILLI_MAX // 1000:,};"
            " give --nodes"
        )
    return [node("pool", gpus)]


def check_fit(jobs: Sequence[Job], cluster: Sequence[Node]) -> None:
    """Raises InvalidError for a job that could never run: a training may lie on several nodes."""
    resources = ResourceManager()
    for node in cluster:
        resources.add(node, [])
    most, total = max(node.gpus for node in cluster), resources.capacity().gpu // 1000
    for number, job in enumerate(jobs, start=1):
        if resources.could_ever_hold(Resources(gpu=job.gpu), workers_of(job)):
            continue
        there = f"the largest node has {most}"
        if job.kind == "train" and len(cluster) > 1:
            there = f"all nodes have {total}, in pieces of at most {most}"
        raise InvalidError(
            f"cannot simulate job {number}: it wants {show_units(job.gpu, 'GPU')} at once, {there}"
        )


def workers_of(job: Job) -> int:
    """Of how many parts it is made that need not lie on one node: a training's GPUs."""
    return max(1, job.gpu // 1000) if job.kind == "train" else 1
