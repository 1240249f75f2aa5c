"""Specifications from what people write: shares, sizes, durations, priorities by name, files."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec

from zenos.core import limits, publishing
from zenos.core.errors import InvalidError, ZenosError
from zenos.core.fields import about
from zenos.core.resources import Resources
from zenos.core.specs import CreateSpec, DeploymentSpec, ProgramSpec, TrainSpec, Work
from zenos.core.task import TaskSpec
from zenos.core.times import parse_time
from zenos.core.wording import SHOWN_CHARS_MAX, FieldError, field_error, nearest, shown

S = TypeVar("S", bound=msgspec.Struct)
# What a task gets whose user says nothing: torch alone takes some hundred megabytes.
MEMORY_DEFAULT: Final = {"program": "512MiB", "create": "1GiB", "train": "2GiB", "call": "1GiB"}
# What stands in a file of tasks beside TaskOptions; the first are of a program alone.
_OF_PROGRAM: Final = ("env", "topics", "yields")
_OF_BATCH: Final = ("run", "train", "cwd", *_OF_PROGRAM)
_DURATION: Final = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|min|h|d)?\s*$")
_SECONDS: Final = {
    None: 1.0,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}


def parse_priority(value: int | str | None) -> int:
    """0 to 100 from a number or `low`, `normal`, `high`; None is normal."""
    if value is None:
        return limits.PRIORITY_NORMAL
    if isinstance(value, str):
        word = value.strip().lower()
        if word in limits.PRIORITIES:
            return limits.PRIORITIES[word]
        if not re.fullmatch(r"[0-9]{1,3}", word):
            raise FieldError(
                f"cannot use priority {value[:40]!r}: give low, normal, high or 0 to 100",
                "priority",
            )
        value = int(word)
    if not isinstance(value, int) or isinstance(value, bool):
        raise FieldError("cannot use that priority: give low, normal, high or 0 to 100", "priority")
    if not limits.PRIORITY_MIN <= value <= limits.PRIORITY_MAX:
        raise FieldError(f"cannot use priority {shown(value)}: from 0 to 100", "priority")
    return value


def parse_duration(value: float | str | None, what: str = "time") -> float | None:
    """Seconds from `90`, `"90s"`, `"10m"`, `"2h"` or `"1d"`. FieldError names it by `what`."""
    param = what.replace(" ", "_")
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        try:
            return None if value is None else float(value)
        except OverflowError:  # a whole number that no float holds
            raise FieldError(f"cannot use so large a {what}", param) from None
    match = _DURATION.match(value) if isinstance(value, str) and len(value) <= 64 else None
    if match is None:
        raise FieldError(f"cannot read {what} {str(value)[:40]!r}: write 90s, 10m, 2h or 1d", param)
    return float(match[1]) * _SECONDS[match[2]]


def parse_list(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names from `"a,b"` or from several of such texts."""
    texts = [value] if isinstance(value, str) else value or ()
    return tuple(p.strip() for text in texts for p in text.split(",") if p.strip())


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a task is to be run, as people write it: `cpu=0.5, memory="2GiB", time="10m"`.

    time: the expected run time; time_limit: after which it is ended. What a training with several
    workers is given of cpu, gpu and memory is for each of them. after: tasks, by id or name, that
    must have succeeded before; `any:` before one: must have ended. at: start not
    before; by: should have ended; `18:00` (the next one), ISO 8601, `+2h` or Unix seconds. node:
    the only one on which it may run; labels: that its node must have. exclusive: it gets all that
    its node has.
    """

    name: Annotated[str, about("What people call it; not unique.")] = ""
    cpu: Annotated[float | str, about("Cores, such as 0.5.")] = 1
    gpu: Annotated[float | str, about("GPUs, or a share of one.")] = 0
    memory: Annotated[
        int | str | None, about("Memory, such as `8GiB`; by default what such work mostly takes.")
    ] = None
    gpu_memory: Annotated[int | str, about("Memory on the GPU, such as `4GiB`.")] = 0
    priority: Annotated[
        int | str | None,
        about("`low`, `normal`, `high` or 0 to 100; higher goes first. By default normal."),
    ] = None
    time: Annotated[
        float | str | None, about("Expected run time: `90s`, `10m`, `2h`. Short work goes first.")
    ] = None
    time_limit: Annotated[
        float | str | None, about("It is ended after this time: `90s`, `10m`, `2h`.")
    ] = None
    retries: Annotated[int, about("How often a failed run is started again.")] = 0
    after: Annotated[
        str | Sequence[str],
        about("Tasks that must have succeeded before; `any:TASK`: that must have ended."),
    ] = ()
    at: Annotated[float | str | None, about("Start not before: `18:00`, an ISO time, `+2h`.")] = (
        None
    )
    by: Annotated[
        float | str | None, about("Should have ended by then; goes first as that nears.")
    ] = None
    node: Annotated[str, about("The only node on which it may run.")] = ""
    labels: Annotated[dict[str, str], about("Labels that its node must have.")] = {}
    exclusive: Annotated[bool, about("It gets all that its node has.")] = False

    def task(self, work: Work) -> TaskSpec:
        """The task that does this work."""
        tag = type(work).__struct_config__.tag
        memory = MEMORY_DEFAULT.get(str(tag), "512MiB") if self.memory is None else self.memory
        each = Resources.of(self.cpu, self.gpu, memory, self.gpu_memory)
        now = time.time()
        # A number of workers that is out of bounds is an error by and by.
        workers = work.workers if isinstance(work, TrainSpec) else 1
        return TaskSpec(
            work=work,
            name=self.name,
            resources=each.times(min(max(workers, 1), limits.RANKS_MAX)),
            priority=parse_priority(self.priority),
            expected_s=parse_duration(self.time, "time"),
            time_limit_s=parse_duration(self.time_limit, "time limit"),
            retries=self.retries,
            after=parse_list(self.after),
            start_at=None if self.at is None else parse_time(self.at, "the time", now, "at"),
            node=self.node,
            labels=self.labels,
            exclusive=self.exclusive,
            deadline=None if self.by is None else parse_time(self.by, "the deadline", now, "by"),
        )


def options(given: Mapping[str, Any]) -> TaskOptions:
    """Options by name; InvalidError for one that is unknown or of another type."""
    return convert(given, TaskOptions)


def program(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    topics: Sequence[str] = (),
    yields: str = "none",
) -> ProgramSpec:
    """A program to run; cwd: by default the caller's; topics: that it may use beside its own.

    yields: how it saves its state when it is suspended, see ProgramSpec.
    """
    if isinstance(argv, str):
        raise InvalidError("cannot run a string: give a list of arguments, e.g. ['ls', '-l']")
    # What is none of these is refused below, with the name of the field.
    directory: Any = cwd
    if cwd is None or isinstance(cwd, str | os.PathLike):
        directory = absolute(cwd or ".")
    texts: Any = argv
    if isinstance(argv, Iterable):
        texts = [os.fspath(a) if isinstance(a, os.PathLike) else a for a in argv]
    fields: dict[str, Any] = {
        "argv": texts,
        "env": {} if env is None else env,
        "cwd": directory,
        "topics": topics if isinstance(topics, str) else _listed(topics),
        "yields": yields,
    }
    return convert(fields, ProgramSpec)


def train_task(spec: TrainSpec | Mapping[str, Any] | None, given: Mapping[str, Any]) -> TaskSpec:
    """A training task: fields of TrainSpec and of TaskOptions, told apart by their names."""
    if not (spec is None or isinstance(spec, TrainSpec | Mapping)):
        raise InvalidError(
            f"cannot train {type(spec).__name__}: give a TrainSpec, a mapping, or fields by name"
        )
    ours = {field.name for field in msgspec.structs.fields(TaskOptions)}
    fields = {name: value for name, value in given.items() if name not in ours}
    if not isinstance(spec, TrainSpec):
        spec = train({**(spec or {}), **fields}, beside=ours)
    elif fields:
        raise InvalidError(f"cannot use {sorted(fields)} beside a TrainSpec: put it into that")
    return options({n: v for n, v in given.items() if n in ours}).task(spec)


def train(
    values: Mapping[str, Any], base: Path | None = None, beside: Collection[str] = ()
) -> TrainSpec:
    """A training run from a mapping; relative data paths are meant from `base` (default: cwd).

    beside: what else the mapping might have had, for whoever misspelt it.
    """
    data = values.get("data")
    if isinstance(data, str | Path):
        data = {"paths": [os.fspath(data)]}
    elif isinstance(data, list | tuple):
        data = {"paths": list(data)}
    if isinstance(data, Mapping):
        data = resolve_paths(data, base or Path())
    given = {**values, **({} if data is None else {"data": data})}
    try:
        spec = convert({**given, **_workers(given)}, TrainSpec, beside)
    except FieldError as error:
        # The specification takes a mapping alone, people may give less.
        message = error.message.replace(
            "cannot use data: give a mapping,",
            "cannot use data: give a path, a list of paths, or a mapping,",
        )
        raise FieldError(message, error.param) from None
    # A specification as it is stored says all of its fields, and mostly its type; people don't.
    if "type" in values or set(TrainSpec.__struct_fields__) <= set(values):
        return spec
    if spec.steps is not None and values.get("epochs") is not None:
        raise spec.both_lengths()
    for name in publishing.HOW:
        if spec.publish is None and values.get(name) is not None:
            raise publishing.unpublished(name)
    return spec


def train_schema() -> dict[str, Any]:
    """The JSON schema of a file for `zenos train`: a TrainSpec as people write it, and TaskOptions.

    A file is checked by what it says alone; flags may add what it leaves out, but editors are told
    what a run cannot do without.
    """
    types = msgspec.json.schema(TrainSpec)["$defs"]
    spec, data = types["TrainSpec"], types["DataSpec"]
    option_types = msgspec.json.schema(TaskOptions)["$defs"]["TaskOptions"]["properties"]
    spec["description"] = f"A file for `zenos train`. {spec['description']}"
    spec["required"].remove("type")
    paths = data["properties"]["paths"]
    paths["description"] = "Files, directories or globs; relative ones from where the file lies."
    paths["anyOf"] = [{"type": "string"}, {"type": paths.pop("type"), "items": paths.pop("items")}]
    fields = spec["properties"]
    fields["data"] = {
        "description": fields["data"]["description"],
        "anyOf": [{"$ref": fields["data"]["$ref"]}, *paths["anyOf"]],
    }
    workers = fields["workers"]
    number = {key: workers.pop(key) for key in ("type", "minimum", "maximum")}
    workers["anyOf"] = [number, {"type": "string", "pattern": r"^[0-9]+(\.\.[0-9]+)?$"}]
    workers["description"] += " `LEAST..MOST`: as many as there is room for, while it runs too."
    spec["properties"] = {**fields, **option_types}
    return {"$ref": "#/$defs/TrainSpec", "$defs": types}


def _workers(values: Mapping[str, Any]) -> dict[str, Any]:
    """`workers: 1..4` is an elastic training; nothing where it is a number. InvalidError."""
    given = values.get("workers")
    if not isinstance(given, str):
        return {}
    least, dots, most = given.partition("..")
    if not (least.isdecimal() and (most.isdecimal() if dots else True)):
        raise FieldError(f"cannot use workers {given!r}: give a number, or two as 1..4", "workers")
    return {"workers": int(most), "workers_min": int(least)} if dots else {"workers": int(least)}


def _listed(value: Any) -> Any:
    """A list of what can be iterated over; all else as it is."""
    return list(value) if isinstance(value, Iterable) else value


def absolute(path: str | os.PathLike[str], base: Path | None = None) -> str:
    """The path as the daemon, which has another working directory, can use it. InvalidError.

    base: from where a relative one is meant; by default the working directory.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidError(f"cannot use the path {repr(path)[:64]}: give a text, or a Path")
    try:
        return str(Path(base or "", Path(text).expanduser()).absolute())
    except RuntimeError:
        raise InvalidError(
            f"cannot use the path {text[:64]!r}: nobody here is called so; write ./ before a name "
            "that begins with ~"
        ) from None
    except OSError as error:  # the working directory is gone
        raise InvalidError(f"cannot use the path {text[:64]!r}: {error.strerror}") from None


def create(**values: Any) -> CreateSpec:
    """A new model; None leaves a field at its default."""
    return convert({name: v for name, v in values.items() if v is not None}, CreateSpec)


def deployment(**values: Any) -> DeploymentSpec:
    """A deployment; None leaves a field at its default."""
    given = {name: value for name, value in values.items() if value is not None}
    if "priority" in given:
        given["priority"] = parse_priority(given["priority"])
    return convert(given, DeploymentSpec)


def batch(values: Mapping[str, Any], base: Path) -> list[TaskSpec]:
    """Tasks from a file's mapping `tasks: {NAME: {run: [PROGRAM, ARGUMENT], ...}}`.

    Each has `run`, a program and its arguments, with `env`, `cwd`, `topics` and `yields`, or
    `train`, fields of TrainSpec; and fields of TaskOptions. Paths are meant from `base`.
    """
    unknown = sorted(str(key) for key in values if key != "tasks")
    tasks = values.get("tasks")
    if unknown or not isinstance(tasks, Mapping):
        raise InvalidError(
            "cannot read the tasks: the file has 'tasks:', and below it each by name"
        )
    made: list[TaskSpec] = []
    for name, given in tasks.items():
        if not isinstance(name, str) or not isinstance(given, Mapping):
            raise InvalidError(f"cannot read the task {str(name)[:64]!r}: it must be a mapping")
        try:
            made.append(_of_batch(name, given, base))
        except ZenosError as error:
            raise FieldError(f"{error.message} (task {name[:64]})", error.param) from None
    return made


def _of_batch(name: str, given: Mapping[str, Any], base: Path) -> TaskSpec:
    if ("run" in given) == ("train" in given):
        known = {*_OF_BATCH, *(field.name for field in msgspec.structs.fields(TaskOptions))}
        for key in (str(key) for key in given if key not in known):
            if hint := nearest(key[:100], ["run", "train"]):
                key = key[:SHOWN_CHARS_MAX]
                raise FieldError(f"cannot use the field {key!r}: it is unknown{hint}", key)
        raise InvalidError("cannot tell what to do: give either 'run' or 'train'")
    fields = {key: value for key, value in given.items() if key not in ("run", "train")}
    if "name" in fields:
        raise InvalidError("cannot name it twice: the name stands before the colon")
    work: Work
    if "train" in given:
        if not isinstance(given["train"], Mapping):
            raise InvalidError("cannot read 'train': it must be a mapping")
        for key in ("cwd", *_OF_PROGRAM):
            if key in fields:
                raise FieldError(f"cannot use the field {key!r} beside 'train': leave it out", key)
        work = train(given["train"], base)
    else:
        of_program = {key: fields.pop(key) for key in _OF_PROGRAM if key in fields}
        if not isinstance(given["run"], list):
            raise InvalidError("cannot run that: give a list of arguments, e.g. [ls, -l]")
        argv = [str(a) if isinstance(a, int | float) else a for a in given["run"]]
        work = program(argv, cwd=absolute(fields.pop("cwd", "."), base), **of_program)
    # What is known beside the options helps whoever misspelt it.
    return convert({**fields, "name": name}, TaskOptions, _OF_BATCH).task(work)


def resolve_paths(data: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The same, with `paths` made absolute; globs stay globs."""
    made = dict(data)
    paths = made.get("paths")
    if isinstance(paths, str):
        paths = [paths]
    if isinstance(paths, list | tuple):
        made["paths"] = [
            absolute(path, base)
            if isinstance(path, str | Path) and path and "\0" not in str(path)
            else path
            for path in paths
        ]
    return made


def convert(values: Mapping[str, Any], into: type[S], beside: Collection[str] = ()) -> S:
    """The struct; InvalidError names the field, and for a typo the nearest one, or of `beside`."""
    tag = into.__struct_config__.tag
    given = dict(values)
    if tag is not None and given.get("type", tag) != tag:
        shown = repr(given["type"])[:64]
        raise InvalidError(f"cannot use a specification of type {shown}: expected {tag}")
    if tag is not None:
        given["type"] = tag
    try:
        return msgspec.convert(given, into)
    except UnicodeEncodeError:
        raise InvalidError("cannot use these values: a text in them is not Unicode") from None
    except (msgspec.ValidationError, TypeError) as error:
        raise field_error(error, into, beside=beside) from None
