"""What the replicas of a deployment are to be: for the kernel, which makes them, and clients."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from zenos.core import limits
from zenos.core.node import Node
from zenos.core.resources import Resources
from zenos.core.specs import DeploymentSpec, ServeSpec
from zenos.core.task import Deployment, TaskSpec


def replica_resources(spec: DeploymentSpec, memory: int = 0) -> Resources:
    """What one replica wants; memory: bytes, where the spec doesn't say."""
    wanted = spec.memory if spec.memory is not None else memory or limits.REPLICA_MEMORY_BYTES
    return Resources.of(cpu=spec.cpu, gpu=spec.gpu, memory=wanted)


def replicas_held(wants: Resources, nodes: Iterable[Node]) -> int:
    """How many replicas the nodes could hold if there were nothing else on them."""
    held = 0
    for node in nodes:
        there = node.there
        counts = [
            whole // want
            for want, whole in ((wants.cpu, there.cpu), (wants.memory, there.memory))
            if want
        ]
        if wants.gpu:  # a share is of one device
            each = 1000 // wants.gpu * (there.gpu // 1000)
            counts.append(each if wants.gpu < 1000 else there.gpu // wants.gpu)
        held += min(counts, default=limits.REPLICAS_MAX)
    return held


def replica_spec(deployment: Deployment) -> TaskSpec:
    """The task of one replica."""
    spec = deployment.spec
    work = ServeSpec(
        model=deployment.version or spec.model,
        deployment=deployment.name,
        dtype=spec.dtype,
        slots=spec.slots,
        context=spec.context,
        build=deployment.build,
        on_update=spec.on_update,
    )
    resources = replica_resources(spec, deployment.memory)
    return TaskSpec(work=work, resources=resources, priority=spec.priority)


def takes_turns(deployment: Deployment) -> bool:
    """Whether its replicas change their weights while they serve, rather than being replaced."""
    return deployment.turn > 0 and bool(deployment.build)


def holds(held: TaskSpec, wanted: TaskSpec, turns: bool) -> bool:
    """Whether a replica is what is wanted now, or becomes that by other weights."""
    if turns and isinstance(held.work, ServeSpec) and isinstance(wanted.work, ServeSpec):
        held = replace(held, work=replace(held.work, model=wanted.work.model))
    return held == wanted
