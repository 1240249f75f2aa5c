"""Saying that the daemon doesn't answer, while a command waits for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from zenos.cli.output import say

if TYPE_CHECKING:
    import httpx

    from zenos.client import Client

AFTER_S = 5.0
PROBE_S = 2.0


def tell_of_silence(made: Client) -> None:
    """From now on say, once, that the daemon gives this client no answer, and none to anybody.

    Some answers take long, such as a text that is written; so it is asked whether it is there.
    """
    watch = _Watch(made)
    made.http.event_hooks = {"request": [watch.sent], "response": [watch.answered]}


class _Watch:
    def __init__(self, made: Client) -> None:
        self._made = made  # whose address changes where it finds another daemon
        self._answered = threading.Event()
        self._said = False

    def sent(self, _: httpx.Request) -> None:
        self._answered.set()  # whatever became of the one before
        self._answered = threading.Event()
        if not self._said:
            threading.Thread(target=self._wait, args=(self._answered,), daemon=True).start()

    def answered(self, _: httpx.Response) -> None:
        self._answered.set()

    def _wait(self, answered: threading.Event) -> None:
        while not answered.wait(AFTER_S):
            if self._is_silent() and not answered.is_set() and not self._said:
                self._said = True
                address = self._made.address
                daemon = address.daemon
                which = f" (process {daemon.pid})" if daemon is not None else ""
                say(f"the daemon{which} at {address.url} does not answer; waiting for it")
                return

    def _is_silent(self) -> bool:
        import httpx

        from zenos.client import transport

        options = transport.options(self._made.address) | {"timeout": PROBE_S}
        try:
            with httpx.Client(**options) as http:
                http.get("/health")
        except httpx.TimeoutException:
            return True
        except httpx.HTTPError:
            return False  # the client itself will say that
        return False
