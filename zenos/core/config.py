"""The daemon's settings, resolved once: defaults < file < `ZENOS_*` environment < flags.

The file is `zenos.yaml` in the home; `zenos/daemon.py` reads it. Every field has a heading in
docs/reference/settings.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, get_origin

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.fields import plain
from zenos.core.messages import TopicSettings, check_settings
from zenos.core.names import check_labels, check_name
from zenos.core.quotas import Quota, check_quotas, check_shares
from zenos.core.resources import parse_share, parse_size
from zenos.core.specs import OWN_VARIABLES
from zenos.core.wording import SHOWN_CHARS_MAX, FieldError, field_error, nearest


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of one daemon.

    cpus: cores to give out (None: all that this process may use). memory: bytes to give out, as
    people write it (None: 90 % of what the machine or the cgroup has). gpus: declared virtual GPUs
    where there are no real ones. gpu_memory: bytes of each virtual GPU. cache_bytes_max: of what is
    kept to be used again.
    """

    host: str = "127.0.0.1"
    port: int = 8642
    public: bool = False
    allowed_hosts: list[str] = []
    node: str = "local"
    labels: dict[str, str] = {}
    cpus: float | None = None
    memory: str | None = None
    memory_margin: str = limits.MEMORY_MARGIN
    gpus: int | None = None
    gpu_memory: str = "0"
    enforcement: Literal["auto", "cgroup", "watchdog"] = "auto"
    zygote: Literal["eager", "lazy"] = "eager"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    ageing: float = 25.0
    overdue_share: float = 0.25
    overdue_late: float = 2.5
    overdue_late_share: float = 0.9
    overdue_wait_s: float = 3600.0
    residence_s: float = limits.RESIDENCE_S
    slice_s: float = limits.SLICE_S
    slice_residence_s: float = limits.SLICE_RESIDENCE_S
    grow_s: float = limits.GROW_S
    preemptions_per_hour: int = limits.PREEMPTIONS_PER_HOUR
    fair_weight: float = limits.FAIR_WEIGHT
    fair_half_life_s: float = limits.FAIR_HALF_LIFE_S
    user_shares: dict[str, float] = {}
    project_shares: dict[str, float] = {}
    user_quotas: dict[str, Quota] = {}
    project_quotas: dict[str, Quota] = {}
    quota_window_s: float = limits.QUOTA_WINDOW_S
    cancel_grace_s: float = limits.CANCEL_GRACE_S
    suspend_grace_s: float = limits.SUSPEND_GRACE_S
    pause_grace_s: float = limits.PAUSE_GRACE_S
    keep_alive_s: float = limits.KEEP_ALIVE_S
    model_residence_s: float = limits.MODEL_RESIDENCE_S
    model_wait_s: float = limits.MODEL_WAIT_S
    model_drain_s: float = limits.MODEL_DRAIN_S
    message_order: tuple[Literal["command", "state", "data"], ...] = ("command", "state", "data")
    message_ageing: float = 1.0
    topics: dict[str, TopicSettings] = {}
    cache_bytes_max: str = limits.CACHE_SIZE
    ended_tasks_kept: int = limits.ENDED_TASKS_KEPT
    ended_task_kept_s: float = limits.ENDED_TASK_KEPT_S
    audit_kept: int = limits.AUDIT_KEPT

    def check(self) -> None:
        """Raises InvalidError for settings that contradict or may not be used."""
        check_name(self.node, "node name")
        check_labels(self.labels)
        if not 0 <= self.port <= 65535:
            raise InvalidError(f"cannot use port {self.port}: from 0 (any free one) to 65535")
        if self.cpus is not None:
            if not self.cpus > 0:  # nor NaN
                raise InvalidError(f"cannot run with cpus {self.cpus:g}: give at least 0.001")
            parse_share(self.cpus, "cpus", limits.CPU_MILLI_MAX)
        if self.memory is not None and parse_size(self.memory) < limits.MEMORY_BYTES_MIN:
            raise InvalidError(f"cannot run with memory {self.memory}: give at least 4MiB")
        parse_size(self.memory_margin, "memory_margin")
        parse_size(self.gpu_memory, "gpu_memory")
        parse_size(self.cache_bytes_max, "cache_bytes_max")
        if self.gpus is not None and not 0 <= self.gpus <= 1024:
            raise InvalidError(f"cannot declare {self.gpus} GPUs: from 0 to 1024")
        if sorted(self.message_order) != ["command", "data", "state"]:
            given = ", ".join(self.message_order)
            raise InvalidError(
                f"cannot use message_order {given}: it must have each of command, state and data"
                " once"
            )
        check_settings(self.topics)
        check_shares("user_shares", self.user_shares)
        check_shares("project_shares", self.project_shares)
        check_quotas("user_quotas", self.user_quotas)
        check_quotas("project_quotas", self.project_quotas)
        for name, low, high in (
            ("ageing", 0.0, 1000.0),
            ("message_ageing", 1e-6, 1e6),
            ("overdue_share", 0.0, 1.0),
            ("overdue_late", 1.0, 1000.0),
            ("overdue_late_share", 0.0, 1.0),
            ("residence_s", 0.0, 86400.0),
            ("slice_s", 0.0, limits.EXPECTED_S_MAX),
            ("slice_residence_s", 0.0, 86400.0),
            ("grow_s", 0.0, 86400.0),
            ("preemptions_per_hour", 0, 3600),
            ("fair_weight", 0.0, 1000.0),
            ("fair_half_life_s", 60.0, limits.EXPECTED_S_MAX),
            ("quota_window_s", 60.0, limits.EXPECTED_S_MAX),
            ("overdue_wait_s", 0.0, limits.EXPECTED_S_MAX),
            ("cancel_grace_s", 0.0, 3600.0),
            ("suspend_grace_s", 0.0, 3600.0),
            ("pause_grace_s", 0.1, 3600.0),
            ("keep_alive_s", 0.0, limits.EXPECTED_S_MAX),
            ("model_residence_s", 0.0, 86400.0),
            ("model_wait_s", 0.0, 86400.0),
            ("model_drain_s", 0.0, 86400.0),
            ("ended_tasks_kept", 0, 10_000_000),
            ("ended_task_kept_s", 0.0, limits.EXPECTED_S_MAX),
            ("audit_kept", 0, 10_000_000),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidError(
                    f"cannot use {name} {getattr(self, name)}: from {plain(low)} to {plain(high)}"
                )


# What SIGHUP reads again; everything else needs a restart (docs/reference/settings.md).
RELOADABLE: Final = (
    "log_level",
    "ageing",
    "overdue_share",
    "overdue_late",
    "overdue_late_share",
    "overdue_wait_s",
    "residence_s",
    "slice_s",
    "slice_residence_s",
    "grow_s",
    "preemptions_per_hour",
    "fair_weight",
    "fair_half_life_s",
    "user_shares",
    "project_shares",
    "user_quotas",
    "project_quotas",
    "quota_window_s",
    "cancel_grace_s",
    "suspend_grace_s",
    "pause_grace_s",
    "keep_alive_s",
    "model_residence_s",
    "model_wait_s",
    "model_drain_s",
    "ended_tasks_kept",
    "ended_task_kept_s",
    "audit_kept",
)

# Variables beside the settings: of the daemon itself, of clients, of tasks that start a daemon.
NO_SETTINGS: Final = frozenset(
    {"ZENOS_DEBUG", "ZENOS_FAILPOINTS", "ZENOS_HOST", "ZENOS_TOKEN", *OWN_VARIABLES}
)


def reloaded(old: Config, fresh: Config) -> tuple[Config, list[str], list[str]]:
    """What holds from now on; the names of what has changed, and of what a restart would change."""
    names = [f.name for f in msgspec.structs.fields(Config)]
    changed = [name for name in names if getattr(old, name) != getattr(fresh, name)]
    taken = [name for name in changed if name in RELOADABLE]
    new = msgspec.structs.replace(old, **{name: getattr(fresh, name) for name in taken})
    return new, taken, [name for name in changed if name not in RELOADABLE]


def resolve(
    file: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """One Config from the file's mapping, the environment and the flags that were given.

    Raises InvalidError with the name of the setting, and the nearest one for a typo.
    """
    fields = {field.name: field for field in msgspec.structs.fields(Config)}
    values: dict[str, Any] = {}
    for source, given in (("zenos.yaml", file or {}), ("flag", flags or {})):
        for name in given:
            if name not in fields:
                hint = nearest(str(name), list(fields))
                raise InvalidError(f"cannot use the setting {name!r} ({source}): unknown{hint}")
    values.update(file or {})
    for name in fields:
        variable = f"ZENOS_{name.upper()}"
        if environment and variable in environment and name != "host":
            values[name] = environment[variable]
    _check_variables(environment or {}, list(fields))
    values.update({k: v for k, v in (flags or {}).items() if v is not None})
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, str):
            value = _from_text(name, value, get_origin(fields[name].type))
        try:
            result[name] = msgspec.convert(value, fields[name].type, strict=False)
        except msgspec.ValidationError as error:
            raise _wrong(name, value, error, fields[name].type) from None
    config = Config(**result)
    config.check()
    return config


def _check_variables(environment: Mapping[str, str], names: list[str]) -> None:
    """Raises InvalidError for one that looks like a setting's that was mistyped.

    Others are somebody else's: a container's environment names services after their addresses.
    """
    known = sorted({*NO_SETTINGS, *(f"ZENOS_{name.upper()}" for name in names)})
    for variable in environment:
        if not variable.startswith("ZENOS_") or variable in known:
            continue
        if hint := nearest(variable[:100], known, "ZENOS_"):
            raise InvalidError(
                f"cannot use the variable {variable[:SHOWN_CHARS_MAX]!r} of the environment: no "
                f"setting is called so{hint}"
            )


def _wrong(name: str, value: Any, error: Exception, into: Any) -> FieldError:
    found = field_error(error, into, name)
    shown = repr(value)[:SHOWN_CHARS_MAX]
    if shown in found.message or found.param != name:
        return found
    # What is wrong is the value as a whole, and msgspec doesn't say it.
    start = f"cannot use {name}:"
    return FieldError(found.message.replace(start, f"cannot use {name} {shown}:", 1), name)


def _from_text(name: str, text: str, into: Any) -> Any:
    """A value of the environment or a flag: lists with commas between, mappings as JSON."""
    if into in (list, tuple):
        return [part.strip() for part in text.split(",")]
    if into is dict:
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise InvalidError(f"cannot use {name}: give a JSON object here ({error})") from None
    return text
