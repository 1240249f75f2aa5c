"""Nodes: what they have, and what may start on them."""

from __future__ import annotations

from typing import TypeVar

from zenos.client import calls
from zenos.client.calls import Call
from zenos.client.types import NodeView

T = TypeVar("T")


class Nodes:
    """What a client can know and say of nodes. Raises NotFoundError for one that isn't known."""

    def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    def nodes(self) -> list[NodeView]:
        """All nodes with what tasks hold of them."""
        return self._run(calls.nodes()).nodes

    def cordon(self, node: str) -> NodeView:
        """Have nothing new start on a node; what runs there goes on."""
        return self._run(calls.set_cordon(node, "cordon"))

    def drain(self, node: str) -> NodeView:
        """The same, and what can save its state there is suspended, to go on elsewhere.

        Replicas end when they have answered what they have; everything else runs to its end.
        """
        return self._run(calls.set_cordon(node, "drain"))

    def uncordon(self, node: str) -> NodeView:
        """Let things start on a node again."""
        return self._run(calls.set_cordon(node, "uncordon"))


class AsyncNodes:
    """The same, awaited."""

    async def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def nodes(self) -> list[NodeView]:
        """All nodes with what tasks hold of them."""
        return (await self._run(calls.nodes())).nodes

    async def cordon(self, node: str) -> NodeView:
        """Have nothing new start on a node; what runs there goes on."""
        return await self._run(calls.set_cordon(node, "cordon"))

    async def drain(self, node: str) -> NodeView:
        """The same, and what can save its state there is suspended, to go on elsewhere."""
        return await self._run(calls.set_cordon(node, "drain"))

    async def uncordon(self, node: str) -> NodeView:
        """Let things start on a node again."""
        return await self._run(calls.set_cordon(node, "uncordon"))
