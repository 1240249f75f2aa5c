"""Rows of the tables: one function for each thing that is listed."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any

from zenos.cli.output import coloured
from zenos.client.display import COLOURS, show_count, show_progress, show_seconds, summary, took_s
from zenos.core.quotas import Quota, shown
from zenos.core.replicas import holds, replica_spec, takes_turns
from zenos.core.resources import show_share, show_size
from zenos.core.specs import CallSpec, CreateSpec, ProgramSpec, ServeSpec, TrainSpec, Work
from zenos.core.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from zenos.client import MessageInfo, ModelVersion, NodeView, TaskView, TopicInfo
    from zenos.client.types import AccountView
    from zenos.core.node import Node
    from zenos.core.predictions import Prediction
    from zenos.core.task import Deployment, Principal, Task, TaskEvent

TASKS = ("ID", "NAME", "KIND", "STATE", ">PRIO", ">CPU", ">GPU", ">MEMORY", ">TIME", "PROGRESS")
NODES = ("NODE", ">CPU", ">GPU", ">MEMORY", ">USED OUTSIDE", "LIMITS BY")
ACCOUNTS = ("WHO", ">TASKS", ">CPU", ">GPU", ">MEMORY", ">GPU-HOURS", ">HAD / DUE")
MODELS = ("MODEL", "ALIASES", "ARCHITECTURE", ">PARAMETERS", ">SIZE", ">HELD-OUT LOSS", "CREATED")
# Of one text, wherever it is shown: a terminal has its own bound, a pipe none but this.
CELL_CHARS_MAX = 4000
HISTORY_CHARS_MAX = 200
HISTORY_LINES_MAX = 15
TOPICS = ("TOPIC", ">WAITING", ">WORKED ON", ">DEAD", ">SIZE", ">OLDEST", ">RECEIVERS")
MESSAGES = (">AGE", "ID", ">PRIO", "SENDER", "RECEIVER", ">FAILED", "BODY")
DEAD = (">AGE", "ID", ">FAILED", "REASON", "BODY")
DEPLOYMENTS = ("DEPLOYMENT", "VERSION", ">REPLICAS", ">PRIO", "STATE")


def with_owners(
    columns: Sequence[str],
    rows: Iterable[tuple[Any, ...]],
    owners: Sequence[Principal | None],
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """The columns and rows; where they are of several people, with whose each is after the name.

    None: of a row that belongs to the one above it.
    """
    if len({owner for owner in owners if owner is not None}) < 2:
        return tuple(columns), list(rows)
    told = [
        (*row[:2], "" if owner is None else owner_name(owner), *row[2:])
        for row, owner in zip(rows, owners, strict=True)
    ]
    return (*columns[:2], "USER", *columns[2:]), told


def owner_name(owner: Principal) -> str:
    """A user, and the project where that is not the user's own."""
    own = owner.is_operator or owner.project == owner.user
    return owner.user if own else f"{owner.user} ({owner.project})"


def task_rows(views: Sequence[TaskView]) -> Iterator[tuple[Any, ...]]:
    """One row for each task. A version that is deployed under several names says under which."""
    works = [view.task.spec.work for view in views]
    under = {(work.model, work.deployment) for work in works if isinstance(work, ServeSpec)}
    for view, work in zip(views, works, strict=True):
        label = view.task.label
        if isinstance(work, ServeSpec) and sum(model == work.model for model, _ in under) > 1:
            label = f"{label} as {work.deployment}"
        yield _task_row(view, label)


def _task_row(view: TaskView, label: str) -> tuple[Any, ...]:
    task = view.task
    wants = task.granted
    return (
        task.id,
        label,
        str(task.kind),
        coloured(str(task.state), COLOURS[task.state]),
        task.spec.priority,
        show_share(wants.cpu),
        show_share(wants.gpu) if wants.gpu else "",
        show_size(wants.memory) if wants.memory else "",
        show_seconds(took_s(task, time.time())),
        task_doing(view),
    )


def task_doing(view: TaskView) -> str:
    """How far a task is, what it waits for, how it has ended; else what it does."""
    task = view.task
    doing = view.waits or show_progress(view.progress) if not task.is_ended else _ending(task)
    return clipped(doing) or work_line(task.spec.work)


def clipped(text: str) -> str:
    """A text's beginning, where a line has to hold it."""
    return text if len(text) <= CELL_CHARS_MAX else text[: CELL_CHARS_MAX - 1] + "…"


def _ending(task: Task) -> str:
    line = summary(task)
    return work_line(task.spec.work) if line == str(task.state) else line


def work_line(work: Work) -> str:
    """What a task does, in a few words."""
    match work:
        case ProgramSpec():
            return clipped(shlex.join(work.argv))
        case TrainSpec():
            return f"{work.arch or work.base} → {work.model}"
        case CreateSpec():
            return f"{work.arch} → {work.name}"
        case ServeSpec():
            return work.model
        case CallSpec():
            lanes = "1 lane" if work.lanes == 1 else f"{work.lanes} lanes"
            return f"functions, on {lanes}"


def prediction_facts(made: Prediction | None) -> list[tuple[str, str]]:
    """How long a task was expected to run, how wrong that was, and how good it usually is."""
    if made is None:
        return []
    whose = {
        "user": "as the user said",
        "learned": "learned from tasks like it",
        "default": "nobody knows: the default",
    }[made.source]
    line = f"{show_seconds(made.expected_s)}, {whose}"
    if made.error is not None and made.source != "default":
        line += f"; {_off(made.error, 'it took')}"
    known = f"{made.finished:,} finished" if made.finished else "none has finished"
    if made.median_error is not None:
        how = _off(made.median_error, "they took")
        known += f"; predictions {how} in the median of {made.compared}"
    return [("expected", line), ("tasks like it", known)]


def _off(error: float, took: str) -> str:
    """How far a prediction was off; beyond all of the real time it was too long, so many times."""
    return f"off by {error:.0%}" if error <= 1 else f"{error + 1:,.0f} times what {took}"


def node_row(view: NodeView) -> tuple[Any, ...]:
    """One node: in use of capacity."""
    node, used = view.node, view.used
    gpus = f"{show_share(used.gpu)} / {show_share(node.capacity.gpu)}" if node.gpus else "-"
    return (
        coloured(f"{node.name} ({node.standing})", "yellow") if node.standing else node.name,
        f"{show_share(used.cpu)} / {show_share(node.capacity.cpu)}",
        gpus + (" (virtual)" if node.virtual_gpus else ""),
        f"{show_size(used.memory)} / {show_size(node.capacity.memory)}",
        _outside(node),
        ", ".join(f"{what}: {how}" for what, how in node.enforcement.items()),
    )


def _outside(node: Node) -> str:
    """Memory that processes outside zenos use, and of that what nobody is given for it."""
    if node.measured is None:
        return "-"
    gpus = sum(node.measured.gpu_memory)
    words = show_size(node.measured.memory) + (f", GPU {show_size(gpus)}" if gpus else "")
    kept = node.capacity.memory - max(0, node.measured.memory_left)
    return words + (f" ({show_size(kept)} of ours)" if kept > 0 else "")


def account_row(view: AccountView) -> tuple[Any, ...]:
    """One user or project: what it has of what it may have."""
    quota, held = view.quota or Quota(), view.held
    bounds = quota.held

    def of(amount: str, bound: str | None) -> str:
        return amount if bound is None else f"{amount} / {bound}"

    def share(milli: int, what: str) -> str:
        return of(show_share(milli), show_share(bounds[what]) if what in bounds else None)

    hours = quota.gpu_hours
    return (
        shown(view.account),
        of(str(view.tasks), None if quota.tasks is None else str(quota.tasks)),
        share(held.cpu, "cpu"),
        share(held.gpu, "gpu"),
        of(show_size(held.memory), show_size(bounds["memory"]) if "memory" in bounds else None),
        of(f"{view.gpu_hours:.1f}", None if hours is None else f"{hours:g}"),
        f"{view.had:.0%} / {view.due:.0%}",
    )


def workers_line(task: Task) -> str:
    """Of an elastic training, how many it has and may have."""
    spec = task.spec
    if not spec.is_elastic:
        return ""
    bounds = f"{spec.workers} to {spec.workers_max}"
    return f"{task.workers} of {bounds}" if task.allocation is not None else bounds


def history_lines(events: Sequence[TaskEvent]) -> str:
    """A line for each of the latest events."""
    shown = events[-HISTORY_LINES_MAX:]
    lines = [f"… and {len(events) - len(shown)} before"] if len(events) > len(shown) else []
    for event in shown:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(event.at))
        detail = " ".join(event.detail.split())
        if len(detail) > HISTORY_CHARS_MAX:  # GET /api/tasks/ID/history has all of it
            detail = detail[: HISTORY_CHARS_MAX - 1] + "…"
        lines.append(f"{when}  {event.type}" + (f": {detail}" if detail else ""))
    return "\n".join(lines)


def model_row(model: ModelVersion) -> tuple[Any, ...]:
    """One version of a model."""
    loss = model.metrics.get("eval_loss")
    measured = model.metrics.get("eval_loss_at_step")
    # Of a version that was published on the way between two evaluations: of weights before its own.
    is_older = measured is not None and measured != model.metrics.get("published_at_step")
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(model.created))
    return (
        model.ref,
        ", ".join(model.aliases),
        model.arch or model.family,
        show_count(model.parameters),
        show_size(model.bytes),
        f"{loss:.4f}{f' at step {measured}' if is_older else ''}"
        if isinstance(loss, int | float)
        else "",
        created if model.created else "",
    )


def answering(deployment: Deployment, replicas: list[TaskView]) -> str:
    """Which of its replicas answer: "now" as deployed now, "before" as before alone, or "" none."""
    spec, turns = replica_spec(deployment), takes_turns(deployment)
    tasks = [view.task for view in replicas]
    ready = [holds(t.spec, spec, turns) for t in tasks if t.ready and not t.stopping]
    if any(ready):
        return "now"
    return "before" if ready else ""


def deployment_row(deployment: Deployment, replicas: dict[str, TaskView]) -> tuple[Any, ...]:
    """One deployment; replicas: tasks by id, those of this one among them."""
    spec = deployment.spec
    views = [replicas[name] for name in deployment.replicas if name in replicas]
    if deployment.stopping:
        state = "stopping"
    elif (answers := answering(deployment, views)) == "before":
        new = "the new one loads"
        if deployment.error is not None or deployment.failures:
            new = deployment.error or f"the new one has failed {deployment.failures} times"
        state = clipped(f"served as before: {new}")
    elif deployment.error is not None:
        state = clipped(deployment.error)
    elif answers:
        state = "served"
    elif views:
        state = next((view.waits for view in views if view.waits), None) or "loading"
    else:
        state = "loads with the next request"
    running = sum(view.task.state == "running" for view in views)
    asked = len(deployment.replicas)
    count = str(asked) if running == asked else f"{running} of {asked}"
    return (
        deployment.name,
        deployment.version,
        f"{count} ({spec.min_replicas} to {spec.max_replicas})",
        spec.priority,
        state,
    )


def topic_row(topic: TopicInfo) -> tuple[Any, ...]:
    """One durable topic."""
    return (
        topic.name,
        topic.waiting,
        topic.leased,
        topic.dead,
        show_size(topic.bytes),
        show_seconds(topic.oldest_s),
        topic.receivers,
    )


def message_row(message: MessageInfo) -> tuple[Any, ...]:
    """One message that waits, or is being worked on."""
    return (
        show_seconds(max(0.0, time.time() - message.sent)),
        message.id,
        message.priority,
        message.sender,
        message.receiver,
        message.failures or "",
        body_text(message),
    )


def dead_row(message: MessageInfo) -> tuple[Any, ...]:
    """One message that was given up."""
    age_s = max(0.0, time.time() - message.sent)
    reason = clipped(message.reason or "")
    return (show_seconds(age_s), message.id, message.failures, reason, body_text(message))


def body_text(message: MessageInfo) -> str:
    """A body's beginning, of a value as JSON; of bytes that are no text, how many."""
    from zenos.core.contents import CONTENT_TYPE, described

    if CONTENT_TYPE in message.headers:
        value = described(message.headers, message.content)
        return counted(len(message.content), "byte") if value is None else clipped(value)
    if message.body is None:
        return counted(len(message.content), "byte")
    return clipped(message.body)
