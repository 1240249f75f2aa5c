"""What the daemon knows of architectures without importing transformers, made from it.

`python -m zenos.runtime.published > zenos/models/architectures.json` writes it anew.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import transformers
from transformers.activations import ACT2CLS

from zenos.models.presets import COUNTS, PRESETS
from zenos.models.records import family_of
from zenos.runtime.architectures import MAPPINGS, settings_of


def published() -> dict[str, Any]:
    """All model types, those that a model can be made of, and what may be set where presets are."""
    presets = sorted({preset.model_type for preset in PRESETS.values()})
    return {
        "activations": sorted(ACT2CLS),
        "counts": {kind: _counts(kind) for kind in presets},
        "families": _families(),
        "model_types": sorted(transformers.CONFIG_MAPPING),
        "settings": {
            kind: settings_of(transformers.AutoConfig.for_model(kind)) for kind in presets
        },
        "words": {kind: dict(transformers.CONFIG_MAPPING[kind].attribute_map) for kind in presets},
    }


def _families() -> dict[str, list[str]]:
    """The model types that `zenos.runtime.architectures` finds a class for, by family."""
    found: dict[str, list[str]] = {family: [] for family in MAPPINGS}
    for kind in sorted(transformers.CONFIG_MAPPING):
        try:
            config = transformers.AutoConfig.for_model(kind)
        except Exception:  # noqa: BLE001, S112 - its usual settings are none, in many ways
            continue
        family = family_of(config.to_dict())
        if type(config) in MAPPINGS.get(family, {}):
            found[family].append(kind)
    return found


def _counts(kind: str) -> dict[str, Any]:
    """The usual values of the settings that count something; None follows from others."""
    fields = dataclasses.fields(transformers.CONFIG_MAPPING[kind])
    return {field.name: field.default for field in fields if field.name in COUNTS}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(published(), indent=1) + "\n")
