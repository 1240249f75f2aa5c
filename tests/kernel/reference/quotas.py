"""Quotas, told from all tasks, each time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zenos.core.quotas import Quota
from zenos.core.resources import Resources
from zenos.core.task import HOLDING, Principal, Task
from zenos.kernel.step import Kernel


class ReferenceQuotas:
    """Adds up what all tasks of a user or a project hold, and what all of those have had."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._told: tuple[object, dict[tuple[str, str], float]] = (None, {})

    def _quotas(self, user: str, project: str) -> list[tuple[str, str, Quota]]:
        config = self._kernel.state.config
        users, projects = config.user_quotas, config.project_quotas
        found = [
            ("user", user, users.get(user) or users.get("*")),
            ("project", project, projects.get(project) or projects.get("*")),
        ]
        return [(kind, name, quota) for kind, name, quota in found if quota is not None]

    def concerns(self, user: str, project: str) -> bool:
        return any(
            (quota.cpu, quota.gpu, quota.memory, quota.gpu_hours) != (None,) * 4
            for _, _, quota in self._quotas(user, project)
        )

    def admits(
        self,
        user: str,
        project: str,
        request: Resources,
        beside: Sequence[tuple[str, str, Resources]] = (),
    ) -> bool:
        more = [(Principal(user=who, project=what), wants) for who, what, wants in beside]
        return self.lacks(user, project, request, more) is None

    def fits(self, user: str, project: str, request: Resources, beside: Iterable[Task]) -> bool:
        more = [(task.principal, task.spec.request) for task in beside]
        return self.lacks(user, project, request, more) is None

    def lacks(
        self,
        user: str,
        project: str,
        request: Resources,
        more: Iterable[tuple[Principal, Resources]],
        less: Iterable[tuple[Principal, Resources]] = (),
    ) -> tuple[str, str, str] | None:
        """Of which quota there is too little: user or project, whose, and what."""
        tasks = [t for t in self._kernel.state.tasks.values() if t.state in HOLDING]
        held_by = [*((t.principal, t.granted) for t in tasks), *more]
        for kind, name, quota in self._quotas(user, project):
            held = sum((r for who, r in held_by if getattr(who, kind) == name), Resources())
            for who, given in less:
                held = held - given if getattr(who, kind) == name else held
            for what, limit in quota.held.items():
                wanted = getattr(request, what)
                if wanted and getattr(held, what) + wanted > limit:
                    return kind, name, what
            if quota.gpu_hours is not None and request.gpu:
                had = self._kernel.state.accounts.usage(f"{kind}/{name}").gpu_s
                if had + 0.001 >= quota.gpu_hours * 3600:
                    return kind, name, "gpu_hours"
        return None

    def _shares(self, kind: str) -> dict[str, float]:
        """Of those that have tasks, what they are due."""
        config = self._kernel.state.config
        table = config.user_shares if kind == "user" else config.project_shares
        tasks = [t for t in self._kernel.state.tasks.values() if not t.is_ended]
        names = {getattr(task.principal, kind) for task in tasks}
        return {name: table.get(name, table.get("*", 1.0)) for name in names}

    @property
    def uneven(self) -> bool:
        several = any(len(self._shares(kind)) > 1 for kind in ("user", "project"))
        return several and self._kernel.state.config.fair_weight > 0

    def cost(self, user: str, project: str) -> float:
        state = self._kernel.state
        moment = (state.accounts.now, state.next_seq, len(state.tasks), state.config)
        if self._told[0] != moment:  # it would take minutes
            self._told = (moment, {})
        costs = self._told[1]
        if (user, project) not in costs:
            costs[user, project] = self._cost(user, project)
        return costs[user, project]

    def _cost(self, user: str, project: str) -> float:
        costs = [0.0]
        for kind, name in (("user", user), ("project", project)):
            shares = self._shares(kind)
            usage = self._kernel.state.accounts.usage
            had = {who: usage(f"{kind}/{who}").decayed_s for who in shares}
            if sum(had.values()) <= 1e-6:
                continue
            over = had[name] / sum(had.values()) * sum(shares.values()) / shares[name]
            costs.append(self._kernel.state.config.fair_weight * (1 - 2 ** min(0.0, 1 - over)))
        return round(max(costs), 9)
