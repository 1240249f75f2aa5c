"""What the registry writes down of a model version."""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import asdict

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.resources import show_size

FORMAT: Final = 1
Family = Literal["decoder", "encoder", "encoder-decoder", "unknown"]

# transformers' model types by family, where the config doesn't say it itself.
ENCODERS: Final = frozenset(
    {"bert", "roberta", "distilbert", "albert", "electra", "deberta", "deberta-v2", "modernbert"}
    | {"xlm-roberta", "camembert", "mpnet", "ernie"}
)


# Their positions are counted from the padding token's number on, as in fairseq.
POSITIONS_AFTER_PADDING: Final = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a version: its SHA-256 in hex, and its size in bytes."""

    digest: str
    size: int


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version comes from. parent: `name:version`; data_hash: of the corpus.

    project: of those who may change it; None where nobody has written that down. left_out: files
    of the directory that it was imported from and that are not among its own, and why.
    """

    parent: str | None = None
    data_hash: str | None = None
    task: str | None = None
    code_version: str | None = None
    project: str | None = None
    left_out: dict[str, str] = {}


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model, as in its manifest.

    created: seconds since 1970; family: decoder, encoder or encoder-decoder; arch: transformers'
    model type; parameters: how many; bytes: of all files; curve: `[step, loss, held-out loss or
    null]`. has_chat_template: whether it was taught to chat. aliases: not in the manifest; filled
    in when it is read.
    """

    name: str
    version: int
    created: float
    family: str
    arch: str
    parameters: int
    bytes: int
    files: dict[str, FileInfo]
    lineage: Lineage = Lineage()
    metrics: dict[str, Any] = {}
    config: dict[str, Any] = {}
    curve: list[list[float | None]] = []
    has_chat_template: bool = False
    aliases: list[str] = []
    format: int = FORMAT

    @property
    def ref(self) -> str:
        """`name:version`."""
        return f"{self.name}:{self.version}"

    @property
    def replica_bytes(self) -> int:
        """Memory that a replica should get where nobody says how much.

        Weights in float32, as read and as laid out for the processor, a quarter more for the cache,
        and what torch takes by itself.
        """
        needs = 512 * limits.MIB + 10 * self.parameters
        return max(limits.REPLICA_MEMORY_BYTES, -(-needs // limits.MIB) * limits.MIB)

    @property
    def build(self) -> str:
        """A digest of all but the weights: versions that share it can take each other's place."""
        rest = {
            name: file.digest
            for name, file in self.files.items()
            if not name.endswith((".safetensors", ".safetensors.index.json"))
        }
        said = msgspec.json.encode([self.parameters, rest], order="deterministic")
        return hashlib.sha256(said).hexdigest()[:32]

    @property
    def can_be_asked(self) -> bool:
        """Whether it generates text: a decoder with a tokenizer."""
        return self.family == "decoder" and "tokenizer.json" in self.files

    def check_servable(self, context: int | None = None, memory: int | None = None) -> None:
        """Raises InvalidError when no replica of it could ever answer.

        context: tokens per sequence; memory: bytes of a replica; None where nobody says.
        """
        if not self.arch:
            raise InvalidError(
                f"cannot serve {self.ref}: its config.json has no model_type, so nothing says what "
                "it is; add one, and import it again"
            )
        if self.family != "decoder":
            raise InvalidError(
                f"cannot serve {self.ref}: a {self.arch} model doesn't generate text token by "
                "token; serve a decoder (llama, gpt2, …)"
            )
        if not self.can_be_asked:
            raise InvalidError(
                f"cannot serve {self.ref}: it has no tokenizer; create or import it with one"
            )
        most = context_length(self.config)
        if context is not None and most is not None and context > most:
            raise InvalidError(
                f"cannot serve {self.ref} with a context of {context} tokens: it has {most}"
            )
        if memory is not None and memory < self.bytes:
            raise InvalidError(
                f"cannot serve {self.ref} in {show_size(memory)}: its weights alone are "
                f"{show_size(self.bytes)}"
            )


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The request that made a version: user, Idempotency-Key, and a digest of what it said."""

    user: str
    key: str
    digest: str


class Manifest(ModelVersion, frozen=True, kw_only=True):
    """What is on the disk: the version, and who asked for it, remembered exactly when it is."""

    asked: Asked | None = None

    @staticmethod
    def of(version: ModelVersion, asked: Asked | None) -> Manifest:
        """What is to be written for a version."""
        return Manifest(**{**asdict(version), "aliases": []}, asked=asked)

    def plain(self, aliases: list[str]) -> ModelVersion:
        """The version, with its aliases."""
        fields = {name: getattr(self, name) for name in ModelVersion.__struct_fields__}
        return ModelVersion(**{**fields, "aliases": aliases})


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a name apart from its versions: a number is never given twice."""

    next_version: int = 1
    aliases: dict[str, int] = {}
    format: int = FORMAT


def context_length(config: dict[str, Any]) -> int | None:
    """The most tokens that a model takes, as its config.json says; None where it doesn't."""
    for name in ("max_position_embeddings", "n_positions"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            padding = config.get("pad_token_id")
            if config.get("model_type") in POSITIONS_AFTER_PADDING and isinstance(padding, int):
                value -= padding + 1
            return value
    return None


def family_of(config: dict[str, Any]) -> Family:
    """The family that a transformers config belongs to."""
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    kind = config.get("model_type")
    if kind in ENCODERS and not config.get("is_decoder"):
        return "encoder"
    return "decoder" if kind else "unknown"
