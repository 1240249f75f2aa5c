"""Who was not let in has a row, and a flood of them is counted."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.api.double import Double
from tests.api.test_audit import rows
from zenos.api.refusals import Refusals
from zenos.core import asking, limits
from zenos.core.audit import AuditQuery, AuditRow
from zenos.core.errors import StorageError, UnauthorizedError

SCOPE = {"method": "GET", "path": "/api/tasks", "client": ("10.0.0.7", 4000)}


async def written(system: Double, count: int) -> list[AuditRow]:
    """That many rows, the oldest first."""
    while True:
        found = await system.audit(AuditQuery(action="refuse"))
        if len(found) >= count:
            assert len(found) == count
            return found[::-1]
        await system.view.changed()


async def test_who_has_no_token_or_another_host_has_a_row(
    http: httpx.AsyncClient, system: Double
) -> None:
    wrong = {"Authorization": "Bearer wrong"}
    assert (await http.post("/api/tasks/t1/cancel", headers=wrong)).status_code == 401
    assert (await http.get("/api/models", headers={"Host": "evil.example"})).status_code == 403
    async with asyncio.timeout(20):
        first, second = await written(system, 2)
    assert (first.subject, first.accepted) == ("POST /api/tasks/t1/cancel", False)
    assert first.principal.user == ""
    assert first.reason.startswith("cannot let you in")
    assert first.reason.endswith("(from 127.0.0.1)")
    assert second.subject == "GET /api/models"
    assert "Host" in second.reason
    assert len(await rows(http, action="refuse")) == 2


async def test_what_is_not_valid_has_none(http: httpx.AsyncClient) -> None:
    assert (await http.post("/api/tasks", json={"wrok": 1})).status_code == 400
    assert (await http.get("/api/tasks", params={"limit": -1})).status_code == 400
    assert await rows(http) == []


async def test_of_a_flood_some_have_rows_and_the_rest_is_counted(system: Double) -> None:
    refusals = Refusals(system, window_s=0.05)
    for _ in range(1000):
        refusals.refused(SCOPE, UnauthorizedError())
    async with asyncio.timeout(20):
        found = await written(system, limits.REFUSALS_KEPT + 1)
    assert f"cannot let in {1000 - limits.REFUSALS_KEPT} more" in found[-1].reason
    refusals.refused(SCOPE, UnauthorizedError())  # the next window
    async with asyncio.timeout(20):
        assert (await written(system, limits.REFUSALS_KEPT + 2))[-1].reason.endswith("10.0.0.7)")


async def test_who_was_counted_is_not_said_to_have_had_the_token_of_the_first(
    system: Double,
) -> None:
    before = asking.TOKEN.set("laptop")
    refusals = Refusals(system, window_s=0.05)
    for _ in range(limits.REFUSALS_KEPT + 1):
        refusals.refused(SCOPE, UnauthorizedError())
    asking.TOKEN.reset(before)
    async with asyncio.timeout(20):
        *first, rest = await written(system, limits.REFUSALS_KEPT + 1)
    assert {row.token for row in first} == {"laptop"}
    assert (rest.subject, rest.token) == ("more requests", "")


async def test_a_failing_store_keeps_no_refusal_back(
    http: httpx.AsyncClient, system: Double, caplog: pytest.LogCaptureFixture
) -> None:
    system.inbox.storage_error = StorageError("cannot write: no space")
    answer = await http.get("/api/tasks", headers={"Authorization": "Bearer wrong"})
    assert answer.status_code == 401
    await asyncio.sleep(0)
    assert "no row of a refused request: cannot write: no space" in caplog.text
