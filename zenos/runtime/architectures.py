"""Models by name: built from nothing, loaded, saved. Over transformers' configs and classes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil
import torch
import transformers

from zenos.core.errors import InvalidError, StorageError, ZenosError
from zenos.core.resources import show_size
from zenos.core.wording import nearest
from zenos.models import safetensors
from zenos.models.presets import (
    COUNTS,
    LAYERS_MAX,
    PRESETS,
    Preset,
    check_count,
    check_numbers,
    check_rotary,
    is_count,
    shown,
)
from zenos.models.records import family_of

# Settings that follow from others, and cannot be set.
DECIDED: Final = frozenset(
    {"model_type", "architectures", "transformers_version", "_name_or_path", "dtype"}
)
_WRAPPED: Final = re.compile(
    r"^(Class validation error for validator|Validation error for field) '\w+': \w+: "
)
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

CLASSES: Final = {
    "decoder": transformers.AutoModelForCausalLM,
    "encoder": transformers.AutoModelForMaskedLM,
    "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
}
# The configs that each of these takes.
MAPPINGS: Final[dict[str, Any]] = {
    "decoder": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    "encoder": transformers.MODEL_FOR_MASKED_LM_MAPPING,
    "encoder-decoder": transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
}


def configure(arch: str, settings: dict[str, Any], vocab_size: int) -> Any:
    """The transformers config of a preset or model type with these settings.

    vocab_size: how many tokens there are; the model may have room for more if the settings say so.
    Raises InvalidError for an unknown architecture or setting (naming the nearest), and for values
    of the wrong type, absurd ones, and ones that contradict each other.
    """
    types = list(transformers.CONFIG_MAPPING)
    preset = PRESETS.get(arch) or (Preset(arch, {}) if arch in types else None)
    if preset is None:
        hint = nearest(arch[:100], [*PRESETS, *types])
        raise InvalidError(f"cannot build {arch[:100]!r}: no such architecture{hint}")
    try:
        default = transformers.AutoConfig.for_model(preset.model_type)
    except Exception as error:
        raise _impossible(arch, error) from error
    names = dict(getattr(default, "attribute_map", {}))  # other words for the config's own
    known = settings_of(default)
    optional = _optional(default)
    values = dict(preset.settings)
    for name, value in settings.items():
        if name not in known:
            hint = nearest(name[:100], known)
            raise InvalidError(f"cannot set {name[:100]!r} of {arch}: no such setting{hint}")
        own = names.get(name, name)
        usual = None if own in optional else values.get(own, getattr(default, own, None))
        values[own] = _checked(name, own, value, usual)
    size = values.setdefault("vocab_size", vocab_size)
    if size < vocab_size:
        raise InvalidError(f"cannot set vocab_size to {size}: the vocabulary has {vocab_size}")
    _check_tokens(values, default, size)
    try:
        config = transformers.AutoConfig.for_model(preset.model_type, **values)
    except Exception as error:
        # transformers raises many types here, and all of them mean that a value is wrong.
        raise _impossible(arch, error) from error
    _check_heads(arch, config)
    return config


def _check_heads(arch: str, config: Any) -> None:
    """What transformers lets pass, and fails on at the first step."""
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None)
    if isinstance(heads, int) and isinstance(shared, int) and (not shared or heads % shared):
        raise InvalidError(
            f"cannot build {arch}: {heads} attention heads are not a multiple of the {shared} "
            "heads of keys and values (num_key_value_heads)"
        )
    width = getattr(config, "hidden_size", None)
    each = getattr(config, "head_dim", None)
    if each is None and isinstance(heads, int) and isinstance(width, int):
        each = width // heads
    turning = getattr(config, "rope_parameters", None) or {}
    if isinstance(each, int) and "rope_type" in turning:
        check_rotary(arch, int(each * (turning.get("partial_rotary_factor") or 1)))


def _optional(default: Any) -> set[str]:
    """Fields of a config that may be None, since their values follow from others then."""
    fields = dataclasses.fields(default) if dataclasses.is_dataclass(default) else ()
    return {field.name for field in fields if field.default is None}


def settings_of(default: Any) -> list[str]:
    """What may be set in a config, sorted: its fields, and the other words for them."""
    names = getattr(default, "attribute_map", {})
    return sorted({*default.to_dict(), *names, "vocab_size"} - DECIDED)


def _checked(name: str, own: str, value: Any, usual: Any) -> Any:
    """One setting's value, if it can be one; `usual` is what it is otherwise."""
    if own in COUNTS and not (value is None and usual is None):
        check_count(name, value, own)
    check_numbers(name, value)
    if isinstance(usual, float) and type(value) is int:
        return float(value)
    return value


def _check_tokens(values: dict[str, Any], default: Any, vocab_size: int) -> None:
    """Special tokens lie in the vocabulary; a model type's usual ones may not, and are left out."""
    for name, usual in default.to_dict().items():
        if not name.endswith("_token_id"):
            continue
        given = values.get(name)
        if isinstance(given, int) and not -1 <= given < vocab_size:
            raise InvalidError(
                f"cannot set {name} to {shown(given)}: the vocabulary has {vocab_size} tokens"
            )
        if isinstance(usual, int) and usual >= vocab_size:
            values.setdefault(name, None)


def _impossible(arch: str, error: Exception) -> InvalidError:
    # What huggingface_hub's validators say is wrapped in names of theirs, twice.
    reason = _WRAPPED.sub("", " ".join(str(error).split())).partition(" Errors: ")[0]
    reason = re.sub(r"<class '(\w+)'>", r"\1", reason)[:300]
    if isinstance(error, KeyError):  # these say a bare word
        reason = f"transformers has no {reason} here"
    elif isinstance(error, ArithmeticError):
        reason = f"{type(error).__name__}: {reason}"
    return InvalidError(f"cannot build {arch} with these settings: {reason}")


def build(arch: str, settings: dict[str, Any], vocab_size: int, seed: int) -> torch.nn.Module:
    """A new model in float32, initialised from `seed`.

    Raises InvalidError as `configure` does, and when the model would not fit this machine's memory.
    """
    config = configure(arch, settings, vocab_size)
    family = _class(config)
    # Sizes that contradict each other are found by whichever module meets them first.
    try:
        with torch.device("meta"):
            described = family.from_config(config, dtype=torch.float32)
    except Exception as error:
        raise _impossible(arch, error) from error
    size = 4 * sum(p.numel() for p in described.parameters())
    total = int(psutil.virtual_memory().total)
    if size > total:
        raise InvalidError(
            f"cannot build {arch}: its weights take {show_size(size)}, this machine has "
            f"{show_size(total)}; choose smaller settings"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: torch.nn.Module = family.from_config(config, dtype=torch.float32)
        except Exception as error:
            raise _impossible(arch, error) from error
    return model


def restore(
    arch: str, settings: dict[str, Any], vocab_size: int, tensors: Mapping[str, torch.Tensor]
) -> torch.nn.Module | None:
    """The model that `build` makes, in float32; it takes over these weights as they are.

    That saves drawing random ones and copying over them. None where they are not all that the model
    has.
    """
    config = configure(arch, settings, vocab_size)
    with torch.device("meta"):
        described = _class(config).from_config(config, dtype=torch.float32)
    wanted = dict(described.named_parameters())
    if any(n not in tensors or tensors[n].shape != wanted[n].shape for n in wanted):
        return None
    model, report = type(described).from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=torch.float32,
        output_loading_info=True,
    )
    if any(report.get(what) for what in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        return None
    restored: torch.nn.Module = model
    return restored


def _class(config: Any) -> Any:
    family = family_of(config.to_dict())
    if family not in CLASSES:
        raise InvalidError(f"cannot build a {config.model_type} model: its family is unknown")
    if type(config) not in MAPPINGS[family]:
        raise InvalidError(
            f"cannot build or load a {config.model_type} model: it is no language model, or "
            f"transformers has no {family} of that type"
        )
    return CLASSES[family]


def load(
    path: Path, dtype: torch.dtype, tensors: Mapping[str, torch.Tensor] | None = None
) -> torch.nn.Module:
    """The model in a directory of the registry, in evaluation mode, without gradients.

    tensors: its weights in `dtype`, where they are in memory already; the model takes them over.
    Only safetensors are read, checked before; no code of the directory is run. Raises InvalidError
    for weights that don't fit the config, StorageError when it cannot be read.
    """
    try:
        for name, value in read_config(path).items():
            layers = name in COUNTS and "layer" in name and value is not None
            if layers and not is_count(value, LAYERS_MAX):
                raise InvalidError(
                    f"cannot load the model: its config.json sets {name} to {shown(value)}"
                )
        # Without a word on trust transformers would ask for it on the standard input.
        config = transformers.AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        family: Any = _class(config)
        source: Path | None = path
        if tensors is None:
            for file in sorted(path.glob("*.safetensors")):
                safetensors.check(file)
        else:
            # What is in memory has no path, by which the automatic class would choose the model's.
            with torch.device("meta"):
                family, source = type(family.from_config(config)), None
        model, report = family.from_pretrained(
            source,
            config=config,
            state_dict=tensors,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ZenosError, MemoryError):
        raise
    except OSError as error:
        raise StorageError(f"cannot load the model: {error}") from error
    except Exception as error:
        # As in `configure`: many types, one meaning.
        reason = " ".join(str(error).split())
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights don't have the shapes that its config.json gives them"
        elif isinstance(error, KeyError):  # these say a bare word
            reason = f"its config.json names {reason[:100]}, which transformers doesn't have here"
        elif "trust_remote_code" in reason:
            reason = "it needs program code that came with it, and such code is never run"
        raise InvalidError(f"cannot load the model: {reason[:300]}") from error
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


def read_config(path: Path) -> dict[str, Any]:
    """A directory's config.json. Raises InvalidError, or StorageError when it cannot be read."""
    try:
        config = json.loads((path / "config.json").read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read config.json: {error.strerror or error}") from error
    except RecursionError:
        raise InvalidError("cannot read config.json: it is nested too deeply") from None
    except ValueError as error:
        raise InvalidError(f"cannot read config.json: {str(error)[:300]}") from error
    if not isinstance(config, dict):
        raise InvalidError("cannot read config.json: it is no object")
    return config
