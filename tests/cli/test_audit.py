"""`zenos audit`, and both clients' rows."""

from __future__ import annotations

import asyncio
import json

from tests.cli.conftest import Daemon, zenos
from zenos.client import connect, connect_async


def test_who_did_what_is_shown(daemon: Daemon) -> None:
    ran = zenos("audit")
    assert (ran.code, ran.out) == (0, "")
    with connect() as client:
        task = client.submit(["true"]).id
        client.cancel(task)
    ran = zenos("audit", "--action", "cancel", "--since", "3600", "--json")
    (row,) = json.loads(ran.out)
    assert (row["subject"], row["accepted"]) == (task, True)
    ran = zenos("audit", "--subject", task)
    assert "submit" in ran.out
    assert "TOKEN" in ran.out.splitlines()[0]
    assert ran.out.index("cancel") < ran.out.index("submit")

    async def ask() -> list[str]:
        async with connect_async() as client:
            return [row.action for row in await client.audit.rows(limit=1)]

    assert asyncio.run(ask()) == ["cancel"]
