"""Rows of the tables: one function for each thing that is listed."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any

from zenos.cli.output import coloured
from zenos.client.display import COLOURS, show_count, show_progress, show_seconds, summary, took_s
from zenos.core.resources import show_share, show_size
from zenos.core.specs import CreateSpec, ProgramSpec, ServeSpec, TrainSpec, Work

if TYPE_CHECKING:
    from zenos.client import MessageInfo, ModelVersion, NodeView, TaskView, TopicInfo
    from zenos.core.task import Deployment, Task

TASKS = ("ID", "NAME", "KIND", "STATE", ">PRIO", ">CPU", ">GPU", ">MEMORY", ">TIME", "PROGRESS")
NODES = ("NODE", ">CPU", ">GPU", ">MEMORY", "LIMITS BY")
MODELS = ("MODEL", "ALIASES", "ARCHITECTURE", ">PARAMETERS", ">SIZE", ">HELD-OUT LOSS", "CREATED")
CELL_CHARS_MAX = 160
TOPICS = ("TOPIC", ">WAITING", ">WORKED ON", ">DEAD", ">SIZE", ">OLDEST", ">RECEIVERS")
MESSAGES = (">AGE", "ID", ">PRIO", "SENDER", "RECEIVER", ">FAILED", "BODY")
DEAD = (">AGE", "ID", ">FAILED", "REASON", "BODY")
DEPLOYMENTS = ("DEPLOYMENT", "VERSION", ">REPLICAS", ">PRIO", "STATE")


def task_row(view: TaskView) -> tuple[Any, ...]:
    """One task."""
    task = view.task
    wants = task.spec.resources
    return (
        task.id,
        task.label,
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
            line = shlex.join(work.argv)
            return line if len(line) <= 60 else line[:59] + "…"
        case TrainSpec():
            return f"{work.arch or work.base} → {work.model}"
        case CreateSpec():
            return f"{work.arch} → {work.name}"
        case ServeSpec():
            return work.model


def node_row(view: NodeView) -> tuple[Any, ...]:
    """One node: in use of capacity."""
    node, used = view.node, view.used
    gpus = f"{show_share(used.gpu)} / {show_share(node.capacity.gpu)}" if node.gpus else "-"
    return (
        node.name,
        f"{show_share(used.cpu)} / {show_share(node.capacity.cpu)}",
        gpus + (" (virtual)" if node.virtual_gpus else ""),
        f"{show_size(used.memory)} / {show_size(node.capacity.memory)}",
        ", ".join(f"{what}: {how}" for what, how in node.enforcement.items()),
    )


def model_row(model: ModelVersion) -> tuple[Any, ...]:
    """One version of a model."""
    loss = model.metrics.get("eval_loss")
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(model.created))
    return (
        model.ref,
        ", ".join(model.aliases),
        model.arch or model.family,
        show_count(model.parameters),
        show_size(model.bytes),
        f"{loss:.4f}" if isinstance(loss, int | float) else "",
        created if model.created else "",
    )


def deployment_row(deployment: Deployment, replicas: dict[str, TaskView]) -> tuple[Any, ...]:
    """One deployment; replicas: tasks by id, those of this one among them."""
    spec = deployment.spec
    views = [replicas[name] for name in deployment.replicas if name in replicas]
    if deployment.stopping:
        state = "stopping"
    elif deployment.error is not None:
        state = clipped(deployment.error)
    elif any(view.task.ready for view in views):
        state = "served"
    elif views:
        state = next((view.waits for view in views if view.waits), None) or "loading"
    else:
        state = "loads with the next request"
    return (
        deployment.name,
        deployment.version,
        f"{len(deployment.replicas)} ({spec.min_replicas} to {spec.max_replicas})",
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
    """A body's beginning; of bytes that are no text, how many."""
    if message.body is None:
        return f"{message.size} bytes"
    return clipped(message.body)
