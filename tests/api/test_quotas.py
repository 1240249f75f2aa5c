"""Quotas over HTTP: refusals, what a task waits for, and who has what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.api.conftest import BASE, TOKEN
from tests.api.double import Double, running
from tests.api.test_tasks import program, submit
from zenos.api.app import create_app
from zenos.cli.rows import account_row
from zenos.client.types import AccountView, Status
from zenos.core.config import Config
from zenos.core.quotas import Quota
from zenos.core.resources import Resources
from zenos.core.task import State

CONFIG = Config(user_quotas={"local": Quota(tasks=2, memory="100MiB", gpu_hours=5)})


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[Double]:
    async with running(tmp_path, CONFIG) as double:
        yield double


@pytest.fixture
async def http(system: Double) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system, CONFIG, TOKEN))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers) as client:
        yield client


async def test_what_is_refused_what_waits_and_who_has_what(
    http: httpx.AsyncClient, system: Double
) -> None:
    wants = {"cpu": 100, "memory": 64 * 2**20}
    first = await submit(http, resources=wants)
    await system.until(lambda: system.view.tasks[first["id"]].state is State.RUNNING)
    second = await submit(http, resources=wants)
    waits = (await http.get(f"/api/tasks/{second['id']}")).json()["waits"]
    assert waits == (
        "local holds 64 MiB of memory of at most 100 MiB of memory, and it wants 64 MiB of memory"
    )
    third = await http.post("/api/tasks", json=program(resources=wants))
    assert third.status_code == 403
    assert third.json()["error"]["code"] == "quota"
    assert "local has 2 of 2 tasks" in third.json()["error"]["message"]
    answer = await http.get("/api/status")
    user, project = msgspec.json.decode(answer.content, type=Status).accounts
    assert (user.account, user.tasks, user.held.memory) == ("user/local", 2, wants["memory"])
    assert (user.quota, user.had, user.due) == (CONFIG.user_quotas["local"], 1.0, 1.0)
    assert project.quota is None


def test_a_row_shows_what_is_held_of_what_may_be() -> None:
    view = AccountView(
        account="user/ann",
        tasks=3,
        held=Resources(cpu=1500, gpu=1000, memory=2**30),
        gpu_hours=2.25,
        had=0.8,
        due=0.5,
        quota=Quota(tasks=10, gpu=2, memory="2GiB", gpu_hours=8),
    )
    row = account_row(view)
    assert row[:3] == ("ann", "3 / 10", "1.5")
    assert row[3:] == ("1 / 2", "1 GiB / 2 GiB", "2.2 / 8", "80% / 50%")
