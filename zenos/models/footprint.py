"""How much memory a training or a replica is going to want: an estimate, before either runs.

It stands on the model's config alone: no torch here, the daemon asks it at each submission.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from zenos.core import limits
from zenos.core.node import Node
from zenos.core.replicas import replica_resources, replicas_held
from zenos.core.resources import show_size
from zenos.core.specs import DeploymentSpec, TrainSpec
from zenos.models.data_size import data_bytes
from zenos.models.presets import PRESETS, is_count
from zenos.models.records import ModelVersion, context_length

# What a worker takes before it has a model: torch, transformers, the tokenizer, the data's pages.
BASE_BYTES: Final = 400 * limits.MIB
# float32, for each parameter: itself and AdamW's two moments, once where workers share them; the
# gradient, of each worker's part of a batch; and of one worker alone the copy of the first and the
# moments from which a checkpoint is written, and the weights that were the best so far.
STATE_BYTES: Final = 4 + 8
GRADIENT_BYTES: Final = 4
SAVED_BYTES: Final = 12 + 4
APART: Final = frozenset({"gloo", "nccl"})  # backends whose workers share no memory
# Of a replica: as read and as laid out for the processor, in float32.
SERVED_BYTES: Final = 8
ELEMENT_BYTES: Final = 4
# Logits of a position: they, their float32 copy in the loss, and the gradients of both.
LOGITS: Final = 4
GATED: Final = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3"})
WARNED_SHARE: Final = 1.0  # of the estimate: who asks for less is told


class Shape(NamedTuple):
    """What of a config decides. kv: width of the keys of one layer; inner: of the feed-forward."""

    width: int
    layers: int
    inner: int
    kv: int
    vocabulary: int
    gated: bool
    tied: bool

    @property
    def parameters(self) -> int:
        """How many, without vectors and learned positions, which are few."""
        attention = 2 * self.width * self.width + 2 * self.width * self.kv
        forward = (3 if self.gated else 2) * self.width * self.inner
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.width
        return embeddings + self.layers * (attention + forward)

    @property
    def activations(self) -> int:
        """Elements that the backward pass keeps of one position in one layer.

        The inputs of two norms and what they give, queries, attention's output and the two sums
        into the residual (8 widths); keys and values; the feed-forward's inner parts.
        """
        return 8 * self.width + 2 * self.kv + (4 if self.gated else 2) * self.inner


def shape_of(config: Mapping[str, Any], vocabulary: int) -> Shape | None:
    """The shape that a transformers config has; None where it doesn't say it in the usual words."""

    def count(*names: str) -> int | None:
        found = (config[name] for name in names if name in config)
        return next((value for value in found if is_count(value, 10**7)), None)

    width, layers = count("hidden_size", "n_embd"), count("num_hidden_layers", "n_layer")
    heads = count("num_attention_heads", "n_head")
    if width is None or layers is None or heads is None:
        return None
    kind = str(config.get("model_type", ""))
    kv_heads = count("num_key_value_heads") or heads
    head = count("head_dim") or max(1, width // heads)
    return Shape(
        width=width,
        layers=layers,
        inner=count("intermediate_size", "n_inner") or 4 * width,
        kv=kv_heads * head,
        vocabulary=vocabulary,
        gated=kind in GATED,
        tied=bool(config.get("tie_word_embeddings", kind not in GATED)),
    )


def training_shape(spec: TrainSpec, base: ModelVersion | None) -> Shape | None:
    """Of what is trained; base: the version that it goes on from. None where it can't be told."""
    if base is not None:
        vocabulary = base.config.get("vocab_size")
        if not isinstance(vocabulary, int) or not is_count(vocabulary, 10**8):
            vocabulary = 0
        return shape_of(base.config, vocabulary)
    preset = PRESETS.get(spec.arch or "")
    if preset is None:
        return None
    config = {"model_type": preset.model_type, **preset.settings, **spec.settings}
    return shape_of(config, spec.settings.get("vocab_size", spec.vocab_size))


def vocabulary_of(data_bytes: int) -> int:
    """Tokens that a tokenizer trained on so much text gets at most, about, however many it may.

    Of 10 KB to 10 MB of Python, Markdown and licences it got a third to nine tenths of this. It
    grows as the number of different words does (Heaps, "Information Retrieval", 1978, section 7.5).
    """
    return 300 + int(4 * data_bytes**0.6)


def training_bytes(spec: TrainSpec, shape: Shape, parameters: int | None = None) -> int:
    """Memory that a training wants in all its workers, about.

        (16 + 12 · copies + 4 · workers) · parameters
        + workers · (base + positions · (layers · activations + 4 · vocabulary) · 4)

    copies: 1 where workers share memory, else one for each. positions: sequences of a worker's part
    of a micro-batch times their length. The first sum is what AdamW in float32 keeps (16 bytes for
    each parameter: Rajbhandari et al., "ZeRO", 2020, section 3.1) and zenos' own copies. The second
    follows Korthikanti et al., "Reducing Activation Recomputation in Large
    Transformer Models", 2022, section 4, counted for a fused attention, whose scores are not kept.
    In bfloat16 it is less, at most by half. A training's measured peak lies within a factor of two
    of it (tests/runtime/train/test_footprint.py).
    """
    copies = spec.workers if spec.backend in APART else 1
    each = SAVED_BYTES + STATE_BYTES * copies + GRADIENT_BYTES * spec.workers
    held = each * (parameters or shape.parameters)
    positions = -(-spec.batch_size // spec.workers) * spec.sequence_length
    kept = shape.layers * shape.activations + LOGITS * shape.vocabulary
    return held + spec.workers * (BASE_BYTES + positions * kept * ELEMENT_BYTES)


def serving_bytes(spec: DeploymentSpec, version: ModelVersion) -> int | None:
    """Memory with which one replica can answer one request of its whole context, about.

        base + 8 · parameters + context · layers · 2 · kv · 4

    The last is the cache of keys and values; each further sequence of that length takes as much
    again, and waits where there isn't. None for a config that doesn't say its shape.
    """
    shape = shape_of(version.config, 0)
    if shape is None:
        return None
    context = spec.context or context_length(version.config) or 0
    cache = context * shape.layers * 2 * shape.kv * ELEMENT_BYTES
    return BASE_BYTES + SERVED_BYTES * version.parameters + cache


def training_warning(
    spec: TrainSpec, memory: int, base: ModelVersion | None = None, gpus: int = 0
) -> str:
    """That a training asks for less memory than it is expected to want; empty where it doesn't.

    memory: bytes that it asks for in all, 0 for no limit. Nothing is said of one on GPUs, since
    most of it lies there. Before anything is said of a tokenizer that is still to be trained, it is
    looked how much text there is: that may not have so many tokens.
    """
    shape = training_shape(spec, base)
    if shape is None or not memory or gpus:
        return ""
    wanted = training_bytes(spec, shape, base.parameters if base is not None else None)
    is_trained = base is None and spec.tokenizer is None and "vocab_size" not in spec.settings
    if is_trained and _warning(wanted, memory):
        size = data_bytes(spec.data)
        if size is not None and vocabulary_of(size) < shape.vocabulary:
            shape = shape._replace(vocabulary=vocabulary_of(size))
            wanted = training_bytes(spec, shape)
    return _warning(wanted, memory)


def serving_warning(
    spec: DeploymentSpec, version: ModelVersion, memory: int | None, nodes: Iterable[Node]
) -> str:
    """The same of a replica, and that the nodes could not hold those that always stand.

    memory: as somebody said it, None where zenos chooses.
    """
    wanted = serving_bytes(spec, version)
    known = wanted is not None and memory and not spec.gpu
    little = _warning(wanted or 0, memory or 0) if known else ""
    room = replicas_held(replica_resources(spec, version.replica_bytes), nodes)
    # Where there is room for none at all it is refused.
    if not 0 < room < spec.min_replicas:
        return little
    crowded = f"the nodes have room for about {room} of its {spec.min_replicas} replicas at once"
    return "; ".join(filter(None, (little, crowded)))


def _warning(wanted: int, asked: int) -> str:
    if asked >= WARNED_SHARE * wanted:
        return ""
    return f"it wants about {show_size(wanted)} of memory, and asks for {show_size(asked)}"
