"""Calls on their way through the broker: who made each, and who is to reply."""

from __future__ import annotations

from zenos.bus.peer import Peer
from zenos.bus.transient import Waiting
from zenos.core import limits
from zenos.core.errors import BusyError, UnavailableError, ZenosError

Key = tuple[str, int]  # its caller's name, its id there


class Call:
    """A call that has no reply yet.

    server: who is to reply; None while the call waits for one, as `item`.
    """

    __slots__ = ("caller", "item", "server", "topic")

    def __init__(
        self, caller: Peer, topic: str, item: Waiting | None, server: Peer | None = None
    ) -> None:
        self.caller = caller
        self.topic = topic
        self.item = item
        self.server = server


class Calls:
    """All that have no reply yet."""

    def __init__(self) -> None:
        self._calls: dict[Key, Call] = {}

    def begin(self, number: int, call: Call) -> None:
        """Remember a new one. BusyError when its caller has too many."""
        caller = call.caller
        key = (caller.name, number)
        if key in self._calls or len(caller.calls) >= limits.PEER_REQUESTS_MAX:
            raise BusyError(
                f"cannot call more than {limits.PEER_REQUESTS_MAX} times at once: wait for replies"
            )
        self._calls[key] = call
        caller.calls.add(key)
        if call.server is not None:
            call.server.calls.add(key)

    def serve(self, item: Waiting, server: Peer) -> None:
        """A call that waited has gone to one who is to reply."""
        assert item.caller is not None  # noqa: S101 - it is a call
        key = (item.caller.name, item.id)
        call = self._calls[key]
        call.server, call.item = server, None
        server.calls.add(key)

    def end(self, key: Key, server: Peer | None = None) -> Call | None:
        """Forget a call; None when it isn't known. server: only if that one is to reply."""
        call = self._calls.get(key)
        if call is None or (server is not None and call.server is not server):
            return None
        del self._calls[key]
        call.caller.calls.discard(key)
        if call.server is not None:
            call.server.calls.discard(key)
        return call

    def fail(self, item: Waiting, error: ZenosError) -> None:
        """A message is dropped; if it was a call, its caller is told."""
        if item.caller is not None and self.end((item.caller.name, item.id)) is not None:
            item.caller.refuse(item.id, item.topic, error)

    def gone(self, peer: Peer) -> list[Call]:
        """Who waits for that peer is told; those of its own calls that nobody has got."""
        waiting = []
        for key in list(peer.calls):
            call = self.end(key)
            if call is None:
                continue
            if call.caller is peer and call.item is not None:
                waiting.append(call)
            elif call.server is peer:
                error = "cannot finish the call: who answered it went away; call again"
                call.caller.refuse(key[1], call.topic, UnavailableError(error))
        return waiting
