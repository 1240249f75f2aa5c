"""What the daemon knows of architectures without importing transformers, made from it.

`python -m zenos.runtime.published > zenos/models/architectures.json` writes it anew.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import transformers
from transformers.activations import ACT2CLS

from zenos.models.presets import PRESETS
from zenos.runtime.architectures import settings_of


def published() -> dict[str, Any]:
    """All model types, and what may be set in those that have presets."""
    families = sorted({preset.model_type for preset in PRESETS.values()})
    return {
        "activations": sorted(ACT2CLS),
        "model_types": sorted(transformers.CONFIG_MAPPING),
        "settings": {
            family: settings_of(transformers.AutoConfig.for_model(family)) for family in families
        },
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(published(), indent=1) + "\n")
