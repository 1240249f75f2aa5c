"""What users and projects hold, what they have had, and what their quotas let them have.

Nothing of what they hold is stored: it is told from the tasks. What they have had is, up to the
last time that what they hold has changed; since then it is the one times the seconds passed.

Use decays: a second of a dominant share `d` of the machine (A. Ghodsi et al., "Dominant resource
fairness", 2011) counts d, and half as much after each half-life h. So while d is held

    u(t) = u(0) · 2^(-t/h) + d · h / ln 2 · (1 - 2^(-t/h))
"""

from __future__ import annotations

import datetime
import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from zenos.core import limits
from zenos.core.actions import Snapshot
from zenos.core.config import Config
from zenos.core.errors import QuotaError
from zenos.core.quotas import ANY, Quota, Usage, accounts_of, shown
from zenos.core.resources import Resources
from zenos.core.task import HOLDING, Kind, Principal, Task, TaskSpec
from zenos.kernel.account import Account, Standing, Total
from zenos.kernel.bounds import Bounds, Lack, amount_of, never_within
from zenos.kernel.pool import NOTHING

HOUR_S: Final = 3600.0
ROUNDING_S: Final = 1e-3  # GPU-seconds; a sum of times may be off by as much as that
LEAST_S: Final = 1e-6  # less use than that by all together is none
COST_DIGITS: Final = 9  # a cost is the same however the sum was added up


def restore(config: Config, snapshot: Snapshot) -> Accounts:
    """As they were remembered, with what the tasks hold and have."""
    capacity = sum((node.there for node in snapshot.nodes.values()), NOTHING)
    made = Accounts(config, snapshot.usage, snapshot.now, capacity)
    for task in snapshot.tasks.values():
        made.restore(task)
    made.restored()
    return made


def _ignore(account: str) -> None:
    """Nobody waits yet."""


class Accounts:
    """All accounts. `change` is told of every change of a task.

    capacity: of all nodes.
    """

    def __init__(
        self,
        config: Config,
        stored: Mapping[str, Usage],
        now: float,
        capacity: Resources = NOTHING,
    ) -> None:
        self.now = now
        self._capacity = capacity
        self._totals = {"user": Total(now), "project": Total(now)}
        self._idle: dict[str, None] = {}  # without tasks, for the longest time first
        self._forgotten: list[str] = []
        # What `cost` has told in this step, and of what.
        self._costs: dict[tuple[str, str], float] = {}
        self._excesses: dict[str, float] = {}
        self.known: dict[str, Account] = {}
        # Who is to hear that there may be more room, or less, for what an account's tasks want.
        self.touch: Callable[[str], None] = _ignore
        self._config = config
        self._written: dict[str, None] = {}
        self._spent: set[str] = set()  # whose GPU-hours of this window are spent
        # When those of others will be: a heap; only the newest of each counts.
        self._spent_at: list[tuple[float, str]] = []
        self._newest: dict[str, float] = {}
        self._window_end = self._window(now) + config.quota_window_s
        for name, usage in sorted(stored.items(), key=lambda item: item[1].at):
            self._add(usage)
            self._idle[name] = None

    def configure(self, config: Config) -> None:
        """Go on with other settings. What was had until now counts by the old ones."""
        for name, account in self.known.items():
            account.usage = self.usage(name)
        old, self._config = self._config, config
        counts = (old.fair_half_life_s, old.quota_window_s)
        if counts != (config.fair_half_life_s, config.quota_window_s):
            self._written.update(dict.fromkeys(self.known))  # else a restart counts it by the new
        self._window_end = self._window(self.now) + config.quota_window_s
        for name, account in self.known.items():
            account.bounds, account.shares = self._bounds_of(name), self._shares_of(name)
            self._look(name, account)
        self._sum_up()

    def resize(self, capacity: Resources) -> None:
        """The nodes have so much together from now on: of that, what is held is another share."""
        if capacity == self._capacity:
            return
        for name, account in self.known.items():
            if account.held != NOTHING:
                account.usage = self.usage(name)
                self._written[name] = None
        self._capacity = capacity
        for account in self.known.values():
            account.dominant = self._dominant(account.held)
        self._sum_up()

    def begin(self, now: float) -> None:
        """Begin a step: some may have spent their hours by now, or have new ones."""
        if now != self.now:
            self._forget_costs()
        self.now = now
        due: set[str] = set()
        while self._next_spent() <= now + ROUNDING_S:
            due.add(heapq.heappop(self._spent_at)[1])
        if now >= self._window_end:
            self._window_end = self._window(now) + self._config.quota_window_s
            due |= self._spent
        for name in sorted(due):
            self._look(name, self.known[name])
            self.touch(name)

    def written(self) -> dict[str, Usage]:
        """What is to be remembered since the last time that this was asked."""
        found = {name: self.known[name].usage for name in self._written}
        self._written.clear()
        return found

    def forgotten(self) -> list[str]:
        """Accounts that are no longer remembered, since the last time that this was asked."""
        gone, self._forgotten = self._forgotten, []
        return gone

    def stored(self) -> dict[str, Usage]:
        """All that is remembered of accounts."""
        return {name: account.usage for name, account in self.known.items()}

    def next_wake(self) -> float:
        """When some will have spent their GPU-hours, or have new ones; infinity for never."""
        return min(self._window_end if self._spent else math.inf, self._next_spent())

    def _next_spent(self) -> float:
        while self._spent_at:
            at, name = self._spent_at[0]
            if self._newest.get(name) == at:
                return at
            heapq.heappop(self._spent_at)
        return math.inf

    # -- what changes

    def change(self, old: Task | None, new: Task) -> None:
        """A task is there, or is another than it was."""
        if old is None or old.state is not new.state or old.spec is not new.spec:
            self._note(old, new)
        more = _held(new) - _held(old)
        alive = (not new.is_ended) - (old is not None and not old.is_ended)
        if more == NOTHING and not alive:
            return
        for name in accounts_of(new.principal):
            account = self._open(name)
            if alive:
                self._count(name, account, alive, is_task=new.kind is not Kind.SERVE)
            if more != NOTHING:
                self._hold(name, account, more)

    def _note(self, old: Task | None, new: Task) -> None:
        held, holds = old is not None and old.state in HOLDING, new.state in HOLDING
        moved = old is not None and old.spec.priority != new.spec.priority
        if held is not holds or (holds and moved):
            for name in accounts_of(new.principal):
                self._open(name).note(new)

    def restore(self, task: Task) -> None:
        """At boot: what it holds was counted when it took it."""
        if task.is_ended:
            return
        for name in accounts_of(task.principal):
            account = self._open(name)
            if task.state in HOLDING:
                account.held = account.held + task.granted
                account.dominant = self._dominant(account.held)
                account.note(task)
                self._look(name, account)
            self._idle.pop(name, None)
            account.alive += 1
            account.tasks += task.kind is not Kind.SERVE

    def restored(self) -> None:
        """All tasks are there."""
        self._sum_up()

    def _open(self, name: str) -> Account:
        account = self.known.get(name)
        if account is None:
            start = self._window(self.now)
            account = self._add(Usage(account=name, at=self.now, window_from=start))
        return account

    def _add(self, usage: Usage) -> Account:
        name = usage.account
        account = self.known[name] = Account(usage)
        account.bounds, account.shares = self._bounds_of(name), self._shares_of(name)
        return account

    def _count(self, name: str, account: Account, sign: int, *, is_task: bool) -> None:
        """A task is there, or has ended: who has tasks is who shares."""
        before = account.alive
        account.alive += sign
        account.tasks += sign * is_task
        if bool(before) is bool(account.alive):
            return
        self._forget_costs()
        total = self._settled(name)
        total.count += sign
        total.shares += sign * account.shares
        total.decayed_s += sign * self.usage(name).decayed_s
        total.dominant += sign * account.dominant
        if sign > 0:
            self._idle.pop(name, None)
            return
        self._idle[name] = None
        if len(self._idle) > limits.ACCOUNTS_MAX:
            gone = next(iter(self._idle))
            del self._idle[gone], self.known[gone]
            self._spent.discard(gone)
            self._newest.pop(gone, None)
            self._written.pop(gone, None)
            self._forgotten.append(gone)

    def _hold(self, name: str, account: Account, more: Resources) -> None:
        account.usage = self.usage(name)
        self._written[name] = None
        account.held = account.held + more
        before, account.dominant = account.dominant, self._dominant(account.held)
        if account.alive:
            self._settled(name).dominant += account.dominant - before
        if account.bounds is not None:
            self._look(name, account)
            self.touch(name)

    def _dominant(self, held: Resources) -> float:
        """The largest share of any resource."""
        whole = self._capacity
        return max(
            held.cpu / whole.cpu if whole.cpu else 0.0,
            held.gpu / whole.gpu if whole.gpu else 0.0,
            held.memory / whole.memory if whole.memory else 0.0,
            held.gpu_memory / whole.gpu_memory if whole.gpu_memory else 0.0,
        )

    def _sum_up(self) -> None:
        self._forget_costs()
        self._totals = {kind: Total(self.now) for kind in self._totals}
        for name, account in self.known.items():
            if account.alive:
                total = self._totals[name.partition("/")[0]]
                total.count += 1
                total.shares += account.shares
                total.decayed_s += self.usage(name).decayed_s
                total.dominant += account.dominant

    def _settled(self, name: str) -> Total:
        """The sum that an account is part of, as it is now."""
        total = self._totals[name.partition("/")[0]]
        past_s = max(0.0, self.now - total.at)
        total.decayed_s = max(0.0, self._decayed(total.decayed_s, total.dominant, past_s))
        total.at = max(self.now, total.at)
        return total

    # -- what was had

    def usage(self, name: str) -> Usage:
        """What an account has had until now."""
        account = self.known[name]
        before, now = account.usage, max(self.now, account.usage.at)
        gpus, start = account.held.gpu / 1000, self._window(now)
        if start > before.window_from:
            gpu_s, window_from = gpus * (now - max(start, before.at)), start
        else:
            gpu_s, window_from = before.gpu_s + gpus * (now - before.at), before.window_from
        decayed_s = self._decayed(before.decayed_s, account.dominant, now - before.at)
        return Usage(
            account=name, at=now, gpu_s=gpu_s, window_from=window_from, decayed_s=decayed_s
        )

    def _decayed(self, before_s: float, dominant: float, past_s: float) -> float:
        """What use counts after so many seconds in which that share was held."""
        half_life_s = self._config.fair_half_life_s
        left = math.exp2(-past_s / half_life_s)
        return before_s * left + dominant * half_life_s / math.log(2) * (1.0 - left)

    def _window(self, now: float) -> float:
        """Since when GPU-hours are counted: whole windows since 1970."""
        return math.floor(now / self._config.quota_window_s) * self._config.quota_window_s

    def _look(self, name: str, account: Account) -> None:
        """Note whether its hours are spent, or when they will be."""
        self._spent.discard(name)
        self._newest.pop(name, None)
        limit = account.bounds.gpu_s if account.bounds is not None else None
        if limit is None:
            return
        left_s = limit - self.usage(name).gpu_s
        if left_s <= ROUNDING_S:
            self._spent.add(name)
        elif account.held.gpu:
            at = self.now + max(left_s * 1000 / account.held.gpu, ROUNDING_S)
            self._newest[name] = at
            heapq.heappush(self._spent_at, (at, name))

    # -- fair share

    def _forget_costs(self) -> None:
        self._costs.clear()
        self._excesses.clear()

    @property
    def uneven(self) -> bool:
        """Whether anybody can have had more than another."""
        several = any(total.count > 1 for total in self._totals.values())
        return several and self._config.fair_weight > 0

    def standing(self, name: str) -> Standing:
        """How much an account with tasks has had, and is due."""
        account, total = self.known[name], self._settled(name)
        before = account.usage
        past_s = max(self.now, before.at) - before.at
        had_s = self._decayed(before.decayed_s, account.dominant, past_s)
        due = account.shares / total.shares
        if total.decayed_s <= LEAST_S:
            return Standing(name, due, due)
        return Standing(name, min(1.0, had_s / total.decayed_s), due)

    def standings(self, user: str, project: str) -> list[Standing]:
        """Of a user and a project, who has had more than its due by more first."""
        found = [self.standing(name) for name in accounts_of(Principal(user, project))]
        return sorted(found, key=lambda standing: -standing.excess)

    def cost(self, user: str, project: str) -> float:
        """Points of score that it costs a task what its user or its project has had."""
        cost = self._costs.get((user, project))
        if cost is None:
            excess = max(self._excess(f"user/{user}"), self._excess(f"project/{project}"))
            cost = round(self._config.fair_weight * excess, COST_DIGITS)
            self._costs[user, project] = cost
        return cost

    def _excess(self, name: str) -> float:
        """`Standing.excess` of an account, told once in a step: all users of a project ask it."""
        found = self._excesses.get(name)
        if found is None:
            found = self._excesses[name] = self.standing(name).excess
        return found

    def _shares_of(self, name: str) -> float:
        kind, _, who = name.partition("/")
        config = self._config
        table = config.user_shares if kind == "user" else config.project_shares
        return table.get(who, table.get(ANY, 1.0))

    # -- quotas

    def quota_of(self, name: str) -> Quota | None:
        """What an account may have."""
        kind, _, who = name.partition("/")
        config = self._config
        table = config.user_quotas if kind == "user" else config.project_quotas
        return table.get(who, table.get(ANY))

    def _bounds_of(self, name: str) -> Bounds | None:
        quota = self.quota_of(name)
        if quota is None:
            return None
        gpu_s = None if quota.gpu_hours is None else quota.gpu_hours * HOUR_S
        return Bounds(quota.tasks, tuple(quota.held.items()), gpu_s)

    def concerns(self, user: str, project: str) -> bool:
        """Whether what their tasks hold is bounded at all."""
        return any(
            account.bounds is not None and (account.bounds.held or account.bounds.gpu_s is not None)
            for account in map(self.known.get, (f"user/{user}", f"project/{project}"))
            if account is not None
        )

    def admits(
        self,
        user: str,
        project: str,
        request: Resources,
        beside: Sequence[tuple[str, str, Resources]] = (),
    ) -> bool:
        """Whether their quotas have room for one more task that wants so much."""
        return self.lack(user, project, request, beside) is None

    def holders(self, user: str, project: str) -> list[str]:
        """Their tasks that hold something: what ends of it makes room in their quotas."""
        accounts = map(self.known.get, (f"user/{user}", f"project/{project}"))
        return list(dict.fromkeys(t for a in accounts if a is not None for t in a.holders))

    def lowest(self, user: str, project: str) -> float:
        """The lowest base priority for which one of those might give way; infinity for none."""
        found = math.inf
        for account in map(self.known.get, (f"user/{user}", f"project/{project}")):
            if account is not None:
                if account.lowest is None:
                    account.lowest = min(account.holders.values(), default=math.inf)
                found = min(found, account.lowest)
        return found

    def lack(
        self,
        user: str,
        project: str,
        request: Resources,
        beside: Sequence[tuple[str, str, Resources]] = (),
    ) -> Lack | None:
        """Which quota has no room for a request, the user's first; None where there is room.

        beside: what is to start before it, as (user, project, request); negative what will have
        been given back.
        """
        for place, name in enumerate((f"user/{user}", f"project/{project}")):
            account = self.known.get(name)
            bounds = account.bounds if account is not None else self._bounds_of(name)
            if bounds is None:
                continue
            held = account.held if account is not None else NOTHING
            for other in beside:
                if other[place] == (user, project)[place]:
                    held = held + other[2]
            for what, limit in bounds.held:
                wanted, had = getattr(request, what), getattr(held, what)
                if wanted and had + wanted > limit:
                    return Lack(name, what, had, limit, wanted)
            if bounds.gpu_s is not None and request.gpu and account is not None:
                had_s = self.usage(name).gpu_s
                if had_s + ROUNDING_S >= bounds.gpu_s:
                    return Lack(name, "gpu_hours", had_s, bounds.gpu_s, 0.0)
        return None

    def check(self, principal: Principal, specs: Iterable[tuple[TaskSpec, int]]) -> None:
        """Raises QuotaError for tasks that may not be submitted, each with how many of it."""
        more = 0
        for spec, count in specs:
            self.check_ever(principal, spec.request)
            more += count
        for name in accounts_of(principal):
            account = self.known.get(name)
            bounds = account.bounds if account is not None else self._bounds_of(name)
            there = account.tasks if account is not None else 0
            if bounds is None or bounds.tasks is None or there + more <= bounds.tasks:
                continue
            what = "cannot submit" if more == 1 else f"cannot submit {more} tasks"
            if not bounds.tasks:
                raise QuotaError(f"{what}: {shown(name)} may have no tasks")
            raise QuotaError(
                f"{what}: {shown(name)} has {there} of {bounds.tasks} tasks; "
                "wait until some have ended, or cancel some"
            )

    def check_ever(self, principal: Principal, request: Resources) -> None:
        """Raises QuotaError for a request that a quota could never hold."""
        for name in accounts_of(principal):
            bounds = self._bounds_of(name)
            if bounds is None:
                continue
            never = never_within(name, bounds, request)
            if never:
                raise QuotaError(f"cannot submit: {never}")

    def waiting_for(self, task: Task) -> str:
        """Which of its owner's quotas a queued task waits for, in words; empty without one."""
        who, wants = task.principal, task.spec.request
        lack = self.lack(who.user, who.project, wants)
        if lack is None:
            return ""
        bounds = self._bounds_of(lack.account)
        if bounds is not None and (never := never_within(lack.account, bounds, wants)):
            return f"cannot start: {never}"
        name = shown(lack.account)
        if lack.what == "gpu_hours":
            had, limit = lack.had / HOUR_S, lack.limit / HOUR_S
            left = datetime.timedelta(seconds=math.ceil(self._window_end - self.now))
            return f"{name} has had {had:.1f} of {limit:g} GPU-hours; there are new ones in {left}"
        limit_, wanted = amount_of(lack.what, lack.limit), amount_of(lack.what, lack.wanted)
        held = amount_of(lack.what, lack.had) if lack.had else "none"
        return f"{name} holds {held} of at most {limit_}, and it wants {wanted}"


def _held(task: Task | None) -> Resources:
    """What a task counts for. A paused one counts whole: so nobody goes on beyond a quota."""
    return task.granted if task is not None and task.state in HOLDING else NOTHING
