"""One record for all that are equal: a million waiting tasks don't hold a million of each."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from zenos.core.resources import Resources
from zenos.core.task import Principal, TaskSpec

KEPT: Final = 4096  # requests; who asks for more kinds of things has them kept once for each task


class Alike:
    """Principals and requests that tasks have in common."""

    def __init__(self) -> None:
        self._principals: dict[Principal, Principal] = {}
        self._requests: dict[Resources, Resources] = {}

    def principal(self, principal: Principal) -> Principal:
        """An equal one, the same each time."""
        return self._principals.setdefault(principal, principal)

    def spec(self, spec: TaskSpec) -> TaskSpec:
        """An equal one, whose request is the same record as that of others like it."""
        if len(self._requests) >= KEPT:
            self._requests.clear()
        request = self._requests.setdefault(spec.resources, spec.resources)
        return spec if request is spec.resources else replace(spec, resources=request)
