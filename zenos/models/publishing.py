"""Versions that a training publishes on its way: which stay, and which one was before."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from zenos.core.errors import NotFoundError
from zenos.models.records import ModelVersion

# The entry of a version's metrics that says so: the step after which it was taken.
STEP: Final = "published_at_step"
EVAL_STEP: Final = "eval_loss_at_step"  # after which its held-out loss was measured: not later


def newest_of(versions: Sequence[ModelVersion], name: str, task: str) -> ModelVersion | None:
    """The newest version that this training has published on its way; None without one."""
    return max(_of(versions, name, task), key=lambda found: found.version, default=None)


def surplus(
    versions: Sequence[ModelVersion], name: str, task: str, keep: int, used: Collection[str]
) -> list[str]:
    """Published versions (`name:number`) of a training that are to go: all but the newest `keep`,
    those with an alias, and those in use."""
    found = sorted(_of(versions, name, task), key=lambda version: version.version)
    return [v.ref for v in found[:-keep] if not v.aliases and v.ref not in used]


def target(versions: Sequence[ModelVersion], name: str, current: int, to: int | None) -> str:
    """What a deployment at version `current` of `name` is rolled back to: the newest one before
    it, or number `to`. NotFoundError where there is none."""
    numbers = sorted(version.version for version in versions if version.name == name)
    if to is None:
        before = [number for number in numbers if number < current]
        if not before:
            raise NotFoundError(
                f"cannot roll back {name}: there is no version before {current}; "
                "'zenos list' shows all"
            )
        to = before[-1]
    elif to not in numbers:
        shown = ", ".join(map(str, numbers[-10:]))
        raise NotFoundError(f"cannot roll back {name} to version {to}: there are {shown}")
    return f"{name}:{to}"


def _of(versions: Sequence[ModelVersion], name: str, task: str) -> list[ModelVersion]:
    return [v for v in versions if v.name == name and v.lineage.task == task and STEP in v.metrics]
