"""What a training may say of the versions that it publishes on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zenos.core.fields import blaming
from zenos.core.names import check_new_name
from zenos.core.wording import FieldError

if TYPE_CHECKING:
    from zenos.core.specs import TrainSpec

HOW: Final = {"publish_every": 200, "publish_keep": 3}  # fields of TrainSpec, and their defaults


def check_publishing(spec: TrainSpec) -> None:
    """Raises InvalidError for a model that can't be published, or none that the rest is about."""
    if spec.publish is None:
        for name, default in HOW.items():
            if getattr(spec, name) != default:
                raise unpublished(name)
        return
    with blaming("publish"):
        check_new_name(spec.publish, "model name")
    if spec.objective != "causal_lm":
        raise FieldError(
            f"cannot publish while training {spec.objective}: such a model isn't served; "
            "leave out 'publish'",
            "publish",
        )


def unpublished(name: str) -> FieldError:
    """Of a field that says how versions are published, where none is to be."""
    return FieldError(f"cannot use {name} without 'publish': give that a model's name", name)
