"""What users ask for: the specifications of programs, training runs, new models and deployments.

These are the published schemas (`zenos schema train`). A field's default is what a user gets who
says nothing. Its meaning and its bounds stand with the field, once: the schemas, the flags of the
command line and the reference pages are made from them, and `check()` compares with them.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final, Literal

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.fields import about, blaming, check_bounds, named, within
from zenos.core.names import (
    ModelRef,
    check_encoding,
    check_name,
    check_new_name,
    check_public_topic,
)
from zenos.core.publishing import check_publishing
from zenos.core.resources import Resources
from zenos.core.wording import FieldError

# What tells a program which task it is, of which home, and what it has.
OWN_VARIABLES: Final = (
    "ZENOS_HOME",
    "ZENOS_TASK",
    "ZENOS_TASK_HOME",
    "ZENOS_GENERATION",
    "ZENOS_CPU",
    "ZENOS_ARRAY",
    "ZENOS_ARRAY_INDEX",
    "ZENOS_ARRAY_COUNT",
)

# Short names of architectures, and model types that have such; zenos/models/presets.py is of these.
ARCHITECTURES: Final = tuple(
    f"{family}-{size}"
    for family in ("llama", "gpt", "bert", "t5")
    for size in ("nano", "micro", "mini", "small")
)
MODEL_TYPES: Final = ("llama", "gpt2", "bert", "t5")

DType = Literal["auto", "float32", "bfloat16"]
Slots = Annotated[int, about("Sequences that are decoded together.", 1, 4096)]
Context = Annotated[
    int | None, about("Tokens per sequence; by default what the model has.", 8, 10_000_000)
]
Seed = Annotated[int, about("Seed of the weights and of the data's order.", 0, 2**63 - 1)]
ArchSettings = Annotated[
    dict[str, Any], about("Fields of the architecture's configuration, instead of the preset's.")
]


class ProgramSpec(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="program"
):
    """Any program: its arguments, environment and working directory."""

    argv: Annotated[
        list[str], within("The program and its arguments; no shell is in between.", minItems=1)
    ]
    env: Annotated[dict[str, str], about("Variables beside the few that every task has.")] = {}
    cwd: Annotated[str | None, about("The working directory; by default the user's home.")] = None
    topics: Annotated[
        list[str],
        within(
            "Topics that it may use beside its own, each with all below it.",
            maxItems=limits.GRANTS_MAX,
        ),
    ] = []
    yields: Annotated[
        Literal["none", "signals", "helper"],
        about("How it saves its state when it is suspended; `none`: it can only be frozen."),
    ] = "none"

    def check(self) -> None:
        """Raises InvalidError when it could not be executed."""
        if not self.argv or not self.argv[0]:
            raise InvalidError("cannot run nothing: give a program after '--'")
        if self.cwd is not None and not self.cwd.startswith("/"):
            raise InvalidError(f"cannot use the directory {self.cwd[:64]!r}: give a whole path")
        for text in [*self.argv, *self.env, *self.env.values(), self.cwd or ""]:
            if "\0" in text:
                raise InvalidError(f"cannot use {text[:64]!r}: it has a NUL character")
        if (
            sum(len(a.encode("utf-8", "surrogateescape")) for a in self.argv)
            > limits.ARGV_BYTES_MAX
        ):
            raise InvalidError(f"cannot pass more than {limits.ARGV_BYTES_MAX} bytes of arguments")
        if len(self.topics) > limits.GRANTS_MAX:
            raise InvalidError(f"cannot grant more than {limits.GRANTS_MAX} topics")
        for topic in self.topics:
            check_public_topic(topic)
        if any(not name or "=" in name for name in self.env):
            raise InvalidError("cannot set an environment variable with an empty name or a '='")
        for name in self.env:
            if name.startswith("ZENOS_"):
                raise InvalidError(
                    f"cannot set {name[:64]} for a task: by what begins with ZENOS_ zenos tells a "
                    "program whose it is and what it has; let the program itself set it, or call "
                    "it otherwise"
                )
        if sum(len(k) + len(v) for k, v in self.env.items()) > limits.ENV_BYTES_MAX:
            raise InvalidError(f"cannot pass more than {limits.ENV_BYTES_MAX} bytes of environment")


class CreateSpec(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="create"
):
    """A new, untrained model."""

    name: Annotated[str, named("Name under which the model is registered.", 1)]
    arch: Annotated[
        str,
        about("A short name (`llama-nano`) or a model type (`llama`, `gpt2`, `bert`, `t5`)."),
    ]
    settings: ArchSettings = {}
    seed: Seed = 0
    tokenizer: Annotated[
        str | None, about("Registered model whose tokenizer it takes over; by default it has none.")
    ] = None

    def check(self) -> None:
        """Raises InvalidError for names or numbers that may not be used."""
        with blaming("name"):
            check_new_name(self.name, "model name")
        with blaming("arch"):
            check_name(self.arch, "architecture")
        check_bounds(self)


class DataSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the corpus lies and how it is read."""

    paths: Annotated[list[str], about("Files, directories or globs, absolute.")]
    format: Annotated[
        Literal["auto", "text", "jsonl", "csv", "parquet"],
        about("How the files are read; by default told from each one's ending."),
    ] = "auto"
    text_column: Annotated[str, about("Column with the text (jsonl, csv, parquet).")] = "text"
    encoding: Annotated[str, about("Encoding of the text, such as gb18030.")] = "utf-8"
    exclude: Annotated[list[str], about("Patterns of files to leave out.")] = []
    eval_fraction: Annotated[
        float, about("Share held out, chosen by a hash of each document's content.", 0, 0.5)
    ] = 0.05

    def check(self) -> None:
        """Raises InvalidError for what can be seen without opening the files."""
        if not self.paths:
            raise FieldError(
                "cannot train on nothing: give at least one path in data.paths", "data.paths"
            )
        for name, given in (("data.paths", self.paths), ("data.exclude", self.exclude)):
            for path in given:
                if not path or "\0" in path or len(path) > limits.PATH_CHARS_MAX:
                    raise FieldError(
                        f"cannot use {name} {path[:64]!r}: give 1 to {limits.PATH_CHARS_MAX} "
                        "characters without NUL",
                        name,
                    )
        for path in self.paths:
            if not path.startswith("/"):
                raise FieldError(
                    f"cannot use the data path {path[:64]!r}: give a whole path", "data.paths"
                )
        with blaming("data.encoding"):
            check_encoding(self.encoding)
        check_bounds(self, "data.")


VOCAB_SIZE: Final = 4096
EPOCHS: Final = 1.0


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="train"):
    """A training run: either `arch` (and `settings`), from scratch, or `base`, to go on from."""

    model: Annotated[str, about("Name under which the result is registered.")]
    data: Annotated[DataSpec, about("Where the corpus lies and how it is read.")]
    objective: Annotated[Literal["causal_lm", "masked_lm"], about("What is learned.")] = "causal_lm"
    arch: Annotated[
        str | None, about("From scratch: a short name (llama-nano) or a model type (llama).")
    ] = None
    settings: ArchSettings = {}
    base: Annotated[str | None, about("Registered model to go on from, instead of `arch`.")] = None
    tokenizer: Annotated[
        str | None, about("Registered model whose tokenizer is used; by default one is trained.")
    ] = None
    vocab_size: Annotated[int, about("Tokens of a tokenizer that is trained.", 260, 1_000_000)] = (
        VOCAB_SIZE
    )
    sequence_length: Annotated[int, about("Tokens per sequence.", 8, 1_000_000)] = 256
    batch_size: Annotated[int, about("Sequences per micro-batch.", 1, 65_536)] = 8
    accumulate: Annotated[int, about("Micro-batches per step.", 1, 65_536)] = 1
    steps: Annotated[
        int | None, about("Optimiser steps; by default as many as `epochs` takes.", 1, 10**9)
    ] = None
    epochs: Annotated[float, about("Passes over the corpus, instead of `steps`.", 1e-3, 1e6)] = (
        EPOCHS
    )
    time_budget_s: Annotated[
        float | None,
        about(
            "About how many seconds of training (not of reading); the steps follow from the speed, "
            "fewer of them where the machine becomes slower.",
            1,
            limits.EXPECTED_S_MAX,
        ),
    ] = None
    steps_min: Annotated[
        int, about("Steps to take however long they take, beyond `time_budget_s`.", 0, 10**9)
    ] = 0
    learning_rate: Annotated[
        float, about("Highest learning rate, after the warm-up.", 1e-9, 10)
    ] = 1e-3
    learning_rate_min: Annotated[
        float | None,
        about(
            "Learning rate at the end of the cosine; by default a tenth of `learning_rate`.", 0, 10
        ),
    ] = None
    warmup: Annotated[
        int | None, about("Steps of linear warm-up; by default a tenth, at most 100.", 0, 10**9)
    ] = None
    weight_decay: Annotated[float, about("AdamW's weight decay.", 0, 10)] = 0.1
    beta1: Annotated[float, about("AdamW's first beta.", 0, 0.999999)] = 0.9
    beta2: Annotated[float, about("AdamW's second beta.", 0, 0.999999)] = 0.95
    clip: Annotated[float, about("Largest 2-norm of the gradient.", 1e-6, 1e6)] = 1.0
    mask_probability: Annotated[float, about("Share of tokens masked (masked_lm).", 0.01, 0.9)] = (
        0.15
    )
    dtype: Annotated[
        DType, about("Arithmetic of the forward pass; auto: bfloat16 where the device has units.")
    ] = "auto"
    compile: Annotated[bool, about("Compile the model where a compiler is.")] = False
    workers: Annotated[
        int,
        about(
            "Processes that train together, each on its part of every batch. `cpu`, `memory` and"
            " `gpu`, where they are given beside it, are for each of them.",
            1,
            limits.RANKS_MAX,
        ),
    ] = 1
    workers_min: Annotated[
        int | None,
        about(
            "Elastic: it may run with so few workers, up to `workers` where there is room; the"
            " result is the same. By default it always has `workers`.",
            1,
            limits.RANKS_MAX,
        ),
    ] = None
    backend: Annotated[
        Literal["auto", "shared", "gloo", "nccl"],
        about(
            "How workers add up their gradients; auto: NCCL between GPUs, else the shared memory of"
            " the machine."
        ),
    ] = "auto"
    seed: Seed = 0
    eval_every: Annotated[int, about("Steps between evaluations.", 1, 10**9)] = 100
    eval_batches: Annotated[int, about("Batches per evaluation.", 1, 10**6)] = 20
    checkpoint_every: Annotated[int, about("Steps between checkpoints.", 1, 10**9)] = 200
    inexact: Annotated[
        bool,
        about("Go on from a checkpoint although threads, build or processor have changed since."),
    ] = False
    publish: Annotated[
        str | None,
        about("Model of which a new version is published while it trains, and served where it is."),
    ] = None
    publish_every: Annotated[int, about("Steps between published versions.", 1, 10**9)] = 200
    publish_keep: Annotated[
        int, about("Published versions that stay registered, beside those in use.", 2, 1000)
    ] = 3

    def check(self) -> None:
        """Raises InvalidError for contradictions and numbers that may not be used."""
        with blaming("model"):
            check_new_name(self.model, "model name")
        if (self.arch is None) == (self.base is None):
            raise InvalidError(
                "cannot tell what to train: give either 'arch' (from scratch) or 'base' (a model)"
            )
        with blaming("arch"):
            if self.arch is not None:
                check_name(self.arch, "architecture")
        for field, ref in (("base", self.base), ("tokenizer", self.tokenizer)):
            with blaming(field):
                if ref is not None:
                    ModelRef.parse(ref)
        if self.base is not None and self.settings:
            raise FieldError(
                "cannot use 'settings' with 'base': the base model has its own", "settings"
            )
        taken = self.tokenizer or self.base
        if taken is not None and self.vocab_size != VOCAB_SIZE:
            raise FieldError(
                f"cannot choose vocab_size: no tokenizer is trained, {taken}'s is used; leave it "
                "out",
                "vocab_size",
            )
        self.data.check()
        check_bounds(self)
        check_publishing(self)
        if self.steps is not None and self.epochs != EPOCHS:
            raise self.both_lengths()
        if self.lowest_rate > self.learning_rate:
            raise FieldError(
                f"cannot use learning_rate_min {self.lowest_rate:g}: it is above learning_rate, "
                f"which is {self.learning_rate:g}; lower it, or leave it out for a tenth of that",
                "learning_rate_min",
            )
        if self.workers_min is not None and self.workers_min > self.workers:
            raise FieldError(
                f"cannot have workers_min {self.workers_min} above workers {self.workers}",
                "workers_min",
            )
        if self.is_elastic and self.backend in ("gloo", "nccl"):
            raise InvalidError(
                f"cannot keep the result the same with changing workers over {self.backend}: leave"
                " backend at auto, or workers_min out"
            )
        if self.workers > self.batch_size:
            raise FieldError(
                f"cannot split batches of {self.batch_size} over {self.workers} workers: give at "
                "most as many workers as batch_size has sequences",
                "workers",
            )

    def both_lengths(self) -> FieldError:
        """That steps and epochs were both given."""
        return FieldError(
            f"cannot use epochs {self.epochs:g} beside steps {self.steps}: each says how long it "
            "trains; leave one of them out",
            "epochs",
        )

    @property
    def lowest_rate(self) -> float:
        """Learning rate at the end of the cosine."""
        given = self.learning_rate_min
        return self.learning_rate / 10 if given is None else given

    @property
    def is_elastic(self) -> bool:
        """Whether it may run with different numbers of workers."""
        return self.workers_min is not None and self.workers_min < self.workers


OnUpdate = Annotated[
    Literal["finish", "restart"],
    about(
        "At a new version: whether answers that were begun are finished with the old weights, or "
        "those that are not streamed are begun again with the new ones."
    ),
]


class ServeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="serve"):
    """One replica of a deployment: which model version it holds and how."""

    model: Annotated[str, about("Registered model, with its version.")]
    deployment: Annotated[str, about("The deployment it is a replica of.")]
    dtype: Annotated[
        DType, about("Arithmetic; auto: bfloat16 where the device has units for it.")
    ] = "auto"
    slots: Slots = 32
    context: Context = None
    on_update: OnUpdate = "finish"
    build: Annotated[
        str, about("What its versions must share to take each other's place: all but the weights.")
    ] = ""

    def check(self) -> None:
        """Raises InvalidError for names or numbers that may not be used."""
        with blaming("model"):
            ModelRef.parse(self.model)
        check_bounds(self)


class DeploymentSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model being served."""

    model: Annotated[
        str,
        within(
            "Registered model: NAME, NAME:VERSION or NAME:ALIAS.",
            minLength=1,
            maxLength=limits.REF_CHARS_MAX,
        ),
    ]
    min_replicas: Annotated[
        int, about("Replicas that stay loaded without requests.", 0, limits.REPLICAS_MAX)
    ] = 0
    max_replicas: Annotated[int, about("Replicas at most.", 1, limits.REPLICAS_MAX)] = 1
    keep_alive_s: Annotated[
        float,
        about(
            "Seconds that a replica above `min_replicas` stays after the requests in flight last "
            "took so many.",
            0,
            limits.EXPECTED_S_MAX,
        ),
    ] = limits.KEEP_ALIVE_S
    priority: Annotated[
        int,
        about("Of the replicas as tasks.", limits.PRIORITY_MIN, limits.PRIORITY_MAX),
    ] = limits.PRIORITY_HIGH
    cpu: Annotated[float, about("Cores for each replica.")] = 1.0
    gpu: Annotated[float, about("GPUs for each replica.")] = 0.0
    memory: Annotated[
        str | None,
        about(
            "Memory for each replica, such as 4GiB; by default enough for one request at a time."
        ),
    ] = None
    dtype: Annotated[
        DType, about("Arithmetic; auto: bfloat16 where the device has units for it.")
    ] = "auto"
    slots: Slots = 32
    context: Context = None
    on_update: OnUpdate = "finish"

    def check(self) -> None:
        """Raises InvalidError for contradictions and numbers that may not be used."""
        with blaming("model"):
            ModelRef.parse(self.model)
        check_bounds(self)
        if self.min_replicas > self.max_replicas:
            raise FieldError("cannot have min_replicas above max_replicas", "min_replicas")
        Resources.of(
            cpu=self.cpu, gpu=self.gpu, memory=0 if self.memory is None else self.memory
        ).check()


class CallSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="call"):
    """A host of calls: lanes on which the functions of `zenos.call` and `zenos.map` run.

    No function is in it: those come from programs of the same user, over the bus.
    """

    lanes: Annotated[
        int, about("Warm processes, each of which runs a function at a time.", 1, limits.LANES_MAX)
    ] = 1
    keep_alive_s: Annotated[
        float,
        about("Seconds without a call after which it ends.", 0, limits.EXPECTED_S_MAX),
    ] = limits.CALLS_KEEP_ALIVE_S
    python: Annotated[
        str | None, about("The interpreter, a whole path; by default the daemon's.")
    ] = None
    cwd: Annotated[str | None, about("The working directory; by default the user's home.")] = None
    key: Annotated[
        str, about("What its callers have in common: they share it, and no others do.")
    ] = "any"

    def check(self) -> None:
        """Raises InvalidError for what could not be executed."""
        check_bounds(self)
        check_name(self.key, "key")
        self.program.check()
        if not self.program.argv[0].startswith("/"):
            raise InvalidError(f"cannot use the python {self.python!r}: give a whole path")

    @property
    def program(self) -> ProgramSpec:
        """What is executed for it."""
        argv = [self.python or sys.executable, "-P", "-m", "zenos.calls.host"]
        given = [str(self.lanes), f"{self.keep_alive_s:g}", self.key]
        return ProgramSpec(argv=[*argv, *given], cwd=self.cwd)


Work = ProgramSpec | CreateSpec | TrainSpec | ServeSpec | CallSpec


def program_of(work: Work) -> ProgramSpec | None:
    """The program that is executed for it; None for torch work."""
    if isinstance(work, CallSpec):
        return work.program
    return work if isinstance(work, ProgramSpec) else None
