"""Models by name: built from nothing, loaded, saved. Over transformers' configs and classes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import psutil
import torch
import transformers

from zenos.core.config import nearest
from zenos.core.errors import InvalidError, StorageError
from zenos.core.resources import show_size
from zenos.models import safetensors
from zenos.models.presets import PRESETS, Preset
from zenos.models.records import family_of

# No published model comes near these; beyond them even a description costs minutes.
SETTING_MAX: Final = 10_000_000
LAYERS_MAX: Final = 1_000
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

CLASSES: Final = {
    "decoder": transformers.AutoModelForCausalLM,
    "encoder": transformers.AutoModelForMaskedLM,
    "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
}


def configure(arch: str, settings: dict[str, Any], vocab_size: int) -> Any:
    """The transformers config of a preset or model type with these settings.

    Raises InvalidError for an unknown architecture or setting (naming the nearest), and for values
    of the wrong type or an absurd size.
    """
    types = list(transformers.CONFIG_MAPPING)
    preset = PRESETS.get(arch) or (Preset(arch, {}) if arch in types else None)
    if preset is None:
        hint = nearest(arch, [*PRESETS, *types])
        raise InvalidError(f"cannot build {arch!r}: no such architecture{hint}")
    default = transformers.AutoConfig.for_model(preset.model_type)
    known = {*default.to_dict(), *getattr(default, "attribute_map", {})}
    for name, value in settings.items():
        if name not in known:
            raise InvalidError(
                f"cannot set {name!r} of {arch}: no such setting{nearest(name, sorted(known))}"
            )
        _check_setting(name, value)
    values = {**preset.settings, **settings, "vocab_size": vocab_size}
    try:
        return transformers.AutoConfig.for_model(preset.model_type, **values)
    except Exception as error:
        # transformers raises many types here, and all of them mean that a value is wrong.
        reason = " ".join(str(error).split())[:300]
        raise InvalidError(f"cannot build {arch} with these settings: {reason}") from error


def _check_setting(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    most = (
        LAYERS_MAX if "layer" in name and "drop" not in name and "eps" not in name else SETTING_MAX
    )
    if not math.isfinite(value) or abs(value) > most:
        raise InvalidError(f"cannot set {name} to {value!r}: at most {most}")


def build(arch: str, settings: dict[str, Any], vocab_size: int, seed: int) -> torch.nn.Module:
    """A new model in float32, initialised from `seed`.

    Raises InvalidError as `configure` does, and when the model would not fit this machine's memory.
    """
    config = configure(arch, settings, vocab_size)
    try:
        with torch.device("meta"):
            described = _class(config).from_config(config)
    except InvalidError:
        raise
    except Exception as error:
        # Sizes that contradict each other are found by whichever module meets them first.
        reason = " ".join(str(error).split())[:300]
        raise InvalidError(f"cannot build {arch} with these settings: {reason}") from error
    size = 4 * sum(p.numel() for p in described.parameters())
    total = int(psutil.virtual_memory().total)
    if size > total:
        raise InvalidError(
            f"cannot build {arch}: its weights take {show_size(size)}, this machine has "
            f"{show_size(total)}; choose smaller settings"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module = _class(config).from_config(config)
    return model


def _class(config: Any) -> Any:
    family = family_of(config.to_dict())
    if family not in CLASSES:
        raise InvalidError(f"cannot build a {config.model_type} model: its family is unknown")
    return CLASSES[family]


def load(path: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The model in a directory of the registry, in evaluation mode, without gradients.

    Only safetensors are read, checked before; no code of the directory is run. Raises InvalidError
    for weights that don't fit the config, StorageError when it cannot be read.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        for file in sorted(path.glob("*.safetensors")):
            safetensors.check(file)
        model, report = _class(config).from_pretrained(
            path,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except OSError as error:
        raise StorageError(f"cannot load the model: {error}") from error
    except (ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidError(f"cannot load the model: {reason}") from error
    missing = sorted(report.get("missing_keys", []))
    if missing:
        raise InvalidError(f"cannot load the model: its weights lack {', '.join(missing[:5])}")
    model.eval()
    model.requires_grad_(False)
    loaded: torch.nn.Module = model
    return loaded


def save(model: torch.nn.Module, directory: Path) -> None:
    """Write config.json and model.safetensors, in the dtype of the weights."""
    saved: Any = model
    saved.config.architectures = [type(model).__name__]
    saved.save_pretrained(directory, max_shard_size="1TB")
    card = directory / "README.md"
    if card.exists():
        card.unlink()


def context_length(config: dict[str, Any]) -> int | None:
    """The most tokens that a model takes, as its config.json says; None where it doesn't."""
    for name in ("max_position_embeddings", "n_positions"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def read_config(path: Path) -> dict[str, Any]:
    """A directory's config.json."""
    config: dict[str, Any] = json.loads((path / "config.json").read_bytes())
    return config
