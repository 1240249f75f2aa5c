"""What users ask for: the specifications of programs, training runs, new models and deployments.

These are the published schemas (`zenos schema train`). A field's default is what a user gets who
says nothing. Bounds are checked by `check()` of each, with errors that say what to do.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.names import ModelRef, check_name


def _bounded(name: str, value: float, low: float, high: float) -> None:
    # NaN fails the comparison too; an integer may be too large to become a float.
    if not low <= value <= high:
        shown = repr(value)[:40]
        raise InvalidError(f"cannot use {name} {shown}: it must be from {low:g} to {high:g}")


class ProgramSpec(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="program"
):
    """Any program: its arguments, environment and working directory."""

    argv: list[str]
    env: dict[str, str] = {}
    cwd: str | None = None

    def check(self) -> None:
        """Raises InvalidError when it could not be executed."""
        if not self.argv or not self.argv[0]:
            raise InvalidError("cannot run nothing: give a program after '--'")
        for text in [*self.argv, *self.env, *self.env.values(), self.cwd or ""]:
            if "\0" in text:
                raise InvalidError(f"cannot use {text[:64]!r}: it has a NUL character")
        if (
            sum(len(a.encode("utf-8", "surrogateescape")) for a in self.argv)
            > limits.ARGV_BYTES_MAX
        ):
            raise InvalidError(f"cannot pass more than {limits.ARGV_BYTES_MAX} bytes of arguments")
        if any(not name or "=" in name for name in self.env):
            raise InvalidError("cannot set an environment variable with an empty name or a '='")
        if sum(len(k) + len(v) for k, v in self.env.items()) > limits.ENV_BYTES_MAX:
            raise InvalidError(f"cannot pass more than {limits.ENV_BYTES_MAX} bytes of environment")


class CreateSpec(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="create"
):
    """A new, untrained model.

    arch: a short name (`llama-nano`) or a transformers model type (`llama`, `gpt2`, `bert`, `t5`).
    settings: fields of the transformers config that replace the preset's.
    """

    name: str
    arch: str
    settings: dict[str, Any] = {}
    seed: int = 0
    tokenizer: str | None = None

    def check(self) -> None:
        """Raises InvalidError for names or numbers that may not be used."""
        check_name(self.name, "model name")
        check_name(self.arch, "architecture")
        _bounded("seed", self.seed, 0, 2**63 - 1)


class DataSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the corpus lies and how it is read.

    paths: files, directories or globs, absolute. format: by default told from each file's ending.
    eval_fraction: the share held out, chosen by a hash of each document's content.
    """

    paths: list[str]
    format: Literal["auto", "text", "jsonl", "csv", "parquet"] = "auto"
    text_column: str = "text"
    encoding: str = "utf-8"
    exclude: list[str] = []
    eval_fraction: float = 0.05

    def check(self) -> None:
        """Raises InvalidError for what can be seen without opening the files."""
        if not self.paths:
            raise InvalidError("cannot train on nothing: give at least one path in data.paths")
        for path in [*self.paths, *self.exclude]:
            if not path or "\0" in path or len(path) > limits.PATH_CHARS_MAX:
                raise InvalidError(f"cannot use the data path {path[:64]!r}")
        _bounded("data.eval_fraction", self.eval_fraction, 0.0, 0.5)


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="train"):
    """A training run.

    model: the name under which the result is registered. Either `arch` (and `settings`) for a model
    from scratch, or `base` for a registered one to go on from.
    sequence_length: tokens; batch_size: sequences per micro-batch; accumulate: micro-batches per
    step; learning_rate: the schedule's peak; warmup: steps; clip: the gradient's largest 2-norm.
    steps: optimiser steps; None means as many as `epochs` over the corpus takes.
    time_budget_s: seconds of training (not of reading) that the steps must fit in as well.
    inexact: resume even where threads, build or instruction set have changed since the checkpoint.
    """

    model: str
    data: DataSpec
    objective: Literal["causal_lm", "masked_lm"] = "causal_lm"
    arch: str | None = None
    settings: dict[str, Any] = {}
    base: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 4096
    sequence_length: int = 256
    batch_size: int = 8
    accumulate: int = 1
    steps: int | None = None
    epochs: float = 1.0
    time_budget_s: float | None = None
    learning_rate: float = 1e-3
    learning_rate_min: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    mask_probability: float = 0.15
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    compile: bool = False
    seed: int = 0
    eval_every: int = 100
    eval_batches: int = 20
    checkpoint_every: int = 200
    inexact: bool = False

    def check(self) -> None:
        """Raises InvalidError for contradictions and numbers that may not be used."""
        check_name(self.model, "model name")
        if (self.arch is None) == (self.base is None):
            raise InvalidError(
                "cannot tell what to train: give either 'arch' (from scratch) or 'base' (a model)"
            )
        if self.arch is not None:
            check_name(self.arch, "architecture")
        if self.base is not None:
            ModelRef.parse(self.base)
            if self.settings:
                raise InvalidError("cannot use 'settings' with 'base': the base model has its own")
        if self.tokenizer is not None:
            ModelRef.parse(self.tokenizer)
        self.data.check()
        for name, low, high in _TRAIN_BOUNDS:
            value = getattr(self, name)
            if value is not None:
                _bounded(name, value, low, high)
        if self.learning_rate_min > self.learning_rate:
            raise InvalidError("cannot use a learning_rate_min above learning_rate")


_TRAIN_BOUNDS: list[tuple[str, float, float]] = [
    ("vocab_size", 260, 1_000_000),
    ("sequence_length", 8, 1_000_000),
    ("batch_size", 1, 65_536),
    ("accumulate", 1, 65_536),
    ("steps", 1, 10**9),
    ("epochs", 1e-3, 1e6),
    ("time_budget_s", 1, limits.EXPECTED_S_MAX),
    ("learning_rate", 1e-9, 10),
    ("learning_rate_min", 0, 10),
    ("warmup", 0, 10**9),
    ("weight_decay", 0, 10),
    ("beta1", 0, 0.999999),
    ("beta2", 0, 0.999999),
    ("clip", 1e-6, 1e6),
    ("mask_probability", 0.01, 0.9),
    ("seed", 0, 2**63 - 1),
    ("eval_every", 1, 10**9),
    ("eval_batches", 1, 10**6),
    ("checkpoint_every", 1, 10**9),
]


class ServeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="serve"):
    """One replica of a deployment: which model version it holds and how.

    slots: sequences decoded together; context: tokens per sequence (None: what the model has).
    """

    model: str
    deployment: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    slots: int = 32
    context: int | None = None

    def check(self) -> None:
        """Raises InvalidError for names or numbers that may not be used."""
        ModelRef.parse(self.model)
        _bounded("slots", self.slots, 1, 4096)
        if self.context is not None:
            _bounded("context", self.context, 8, 10_000_000)


class DeploymentSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model being served.

    keep_alive_s: how long a replica above `min_replicas` stays after its last request.
    cpu, gpu: cores and devices; memory: as people write it, for each replica.
    """

    model: str
    min_replicas: int = 0
    max_replicas: int = 1
    keep_alive_s: float = limits.KEEP_ALIVE_S
    priority: int = limits.PRIORITY_HIGH
    cpu: float = 1.0
    gpu: float = 0.0
    memory: str = "1GiB"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    slots: int = 32
    context: int | None = None

    def check(self) -> None:
        """Raises InvalidError for contradictions and numbers that may not be used."""
        ModelRef.parse(self.model)
        _bounded("min_replicas", self.min_replicas, 0, 64)
        _bounded("max_replicas", self.max_replicas, 1, 64)
        if self.min_replicas > self.max_replicas:
            raise InvalidError("cannot have min_replicas above max_replicas")
        _bounded("keep_alive_s", self.keep_alive_s, 0, limits.EXPECTED_S_MAX)
        _bounded("priority", self.priority, limits.PRIORITY_MIN, limits.PRIORITY_MAX)
        _bounded("slots", self.slots, 1, 4096)
        if self.context is not None:
            _bounded("context", self.context, 8, 10_000_000)


Work = ProgramSpec | CreateSpec | TrainSpec | ServeSpec
