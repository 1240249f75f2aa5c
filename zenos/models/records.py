"""What the registry writes down of a model version."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from zenos.core import limits

FORMAT: Final = 1
Family = Literal["decoder", "encoder", "encoder-decoder", "unknown"]

# transformers' model types by family, where the config doesn't say it itself.
ENCODERS: Final = frozenset(
    {"bert", "roberta", "distilbert", "albert", "electra", "deberta", "deberta-v2", "modernbert"}
    | {"xlm-roberta", "camembert", "mpnet", "ernie"}
)


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a version: its SHA-256 in hex, and its size in bytes."""

    digest: str
    size: int


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version comes from. parent: `name:version`; data_hash: of the corpus."""

    parent: str | None = None
    data_hash: str | None = None
    task: str | None = None
    code_version: str | None = None


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model, as in its manifest.

    created: seconds since 1970; family: decoder, encoder or encoder-decoder; arch: transformers'
    model type; parameters: how many; bytes: of all files; curve: `[step, loss, held-out loss or
    null]`. aliases: not in the manifest; filled in when it is read.
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
    aliases: list[str] = []
    format: int = FORMAT

    @property
    def ref(self) -> str:
        """`name:version`."""
        return f"{self.name}:{self.version}"

    @property
    def serving_bytes(self) -> int:
        """Memory that a replica should get where nobody says how much.

        Weights in float32, as read and as laid out for the processor, a quarter more for the cache,
        and what torch takes by itself.
        """
        needs = 512 * limits.MIB + 10 * self.parameters
        return max(limits.REPLICA_MEMORY_BYTES, -(-needs // limits.MIB) * limits.MIB)


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a name apart from its versions: a number is never given twice."""

    next_version: int = 1
    aliases: dict[str, int] = {}
    format: int = FORMAT


def family_of(config: dict[str, Any]) -> Family:
    """The family that a transformers config belongs to."""
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    kind = config.get("model_type")
    if kind in ENCODERS and not config.get("is_decoder"):
        return "encoder"
    return "decoder" if kind else "unknown"
