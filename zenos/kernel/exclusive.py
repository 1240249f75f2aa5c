"""Tasks that have a node for themselves."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from zenos.core.errors import InvalidError
from zenos.core.node import Node
from zenos.core.task import TaskSpec


def whole(spec: TaskSpec, nodes: Iterable[Node]) -> TaskSpec:
    """A task that wants a node for itself wants all that the node has; others as they are.

    So it needs no rule of its own in the queue, in placement or in preemption. What it says of
    resources is how much the node must have. InvalidError where the nodes on which it may run have
    not all the same: what it wants would hang on which of them it gets. Where none can hold it, it
    is left as it is, and found never to fit.
    """
    if not spec.exclusive:
        return spec
    labels = {f"{key}={value}" for key, value in spec.labels.items()}
    able = [
        node
        for node in nodes
        if spec.node in ("", node.name)
        and labels <= set(node.labels)
        and spec.resources.fits_in(node.capacity)
    ]
    capacities = {(node.capacity, node.gpus) for node in able}
    if len(capacities) > 1:
        names = ", ".join(sorted(node.name for node in able)[:20])
        raise InvalidError(
            f"cannot give a whole node: {names} are not equal; name one of them with node, or a"
            " label that equal ones have"
        )
    return replace(spec, resources=able[0].capacity) if able else spec
