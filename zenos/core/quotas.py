"""What users and projects may have at most, and what they have had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError, ZenosError
from zenos.core.fields import about, check_bounds
from zenos.core.names import check_name
from zenos.core.resources import parse_size
from zenos.core.task import Principal

ANY: Final = "*"  # all that are not named
SHARES_MIN: Final = 1e-3
SHARES_MAX: Final = 1e6


class Quota(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much a user or a project may have. What isn't said is not bounded; 0 is nothing at all.

    What its deployments hold counts as well; that a task is paused gives nothing back.
    """

    tasks: Annotated[
        int | None,
        about("Tasks that wait or run, without replicas.", 0, limits.QUEUED_TASKS_MAX),
    ] = None
    cpu: Annotated[float | None, about("Cores held at once.", 0, 1e9)] = None
    gpu: Annotated[float | None, about("GPUs held at once.", 0, 1e9)] = None
    memory: Annotated[str | None, about("Memory held at once, such as 64GiB.")] = None
    gpu_hours: Annotated[
        float | None, about("GPUs times hours, in each `quota_window_s`.", 0, 1e9)
    ] = None

    def check(self) -> None:
        """Raises InvalidError for what may not be used."""
        check_bounds(self)
        if self.memory is not None:
            parse_size(self.memory)

    @property
    def held(self) -> dict[str, int]:
        """What is bounded at once: by resource, in millicores, milli-GPUs and bytes."""
        bounds: dict[str, int] = {}
        if self.cpu is not None:
            bounds["cpu"] = round(self.cpu * 1000)
        if self.gpu is not None:
            bounds["gpu"] = round(self.gpu * 1000)
        if self.memory is not None:
            bounds["memory"] = parse_size(self.memory)
        return bounds


def check_quotas(setting: str, given: Mapping[str, Quota]) -> None:
    """Raises InvalidError for a name that nobody can have, or a number that may not be used."""
    for name, quota in given.items():
        try:
            if name != ANY:
                check_name(name, "name")
            quota.check()
        except ZenosError as error:
            raise InvalidError(f"{error.message} ({setting}: {name})") from None


def check_shares(setting: str, given: Mapping[str, float]) -> None:
    """Raises InvalidError for a name that nobody can have, or shares that may not be used."""
    for name, shares in given.items():
        if name != ANY:
            check_name(name, "name")
        if not SHARES_MIN <= shares <= SHARES_MAX:
            raise InvalidError(
                f"cannot use {shares!r} shares ({setting}: {name}): "
                f"from {SHARES_MIN:g} to {SHARES_MAX:g}"
            )


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What an account has had, up to kernel time `at`; what it holds since is counted from there.

    account: `user/NAME` or `project/NAME`. gpu_s: GPU-seconds since `window_from`. decayed_s:
    seconds times its dominant share of the machine, each half as much after `fair_half_life_s`.
    """

    account: str
    at: float
    gpu_s: float = 0.0
    window_from: float = 0.0
    decayed_s: float = 0.0


def accounts_of(principal: Principal) -> tuple[str, str]:
    """The names under which it is counted what somebody has: of the user, and of the project."""
    return f"user/{principal.user}", f"project/{principal.project}"


def shown(account: str) -> str:
    """As messages name it: a user by the name alone."""
    kind, _, name = account.partition("/")
    return name if kind == "user" else f"the project {name}"
