"""Serving: serve, stop, run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zenos.cli.common import (
    Json,
    client,
    complete_deployments,
    complete_models,
    complete_priorities,
    end_with,
    for_each,
)

if TYPE_CHECKING:
    from zenos.client import Client
    from zenos.core.task import Deployment

READY_LOOK_S = 0.1
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="NAME, NAME:VERSION or NAME:ALIAS.", autocompletion=complete_models
    ),
]

Precision = Annotated[
    Literal["auto", "float32", "bfloat16"] | None,
    typer.Option(
        help="Arithmetic; auto: bfloat16 where the device has units for it. In float32 the "
        "same seed gives the same text, whatever else is asked; in bfloat16 up to a near-tie."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    panel = "Serving"
    app.command("serve", rich_help_panel=panel)(serve)
    app.command("stop", rich_help_panel=panel)(stop)
    app.command("rollback", rich_help_panel=panel)(rollback)
    app.command("run", rich_help_panel=panel)(run)


def serve(
    model: ModelName,
    min_replicas: Annotated[
        int,
        typer.Option(
            help="Replicas that always stand. Typed here: 1, so that it is loaded now; "
            "0, as in Python and files: loaded by the first request."
        ),
    ] = 1,
    max_replicas: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    keep_alive: Annotated[
        str | None, typer.Option(help="How long an idle one above the minimum stays, e.g. 5m.")
    ] = None,
    priority: Annotated[
        str,
        typer.Option(help="low, normal, high or 0 to 100.", autocompletion=complete_priorities),
    ] = "high",
    cpu: Annotated[float, typer.Option(help="Cores for each replica.")] = 1.0,
    gpu: Annotated[float, typer.Option(help="GPUs, or a share, for each replica.")] = 0.0,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory of each replica; by default enough for one request at a time."),
    ] = None,
    dtype: Precision = None,
    slots: Annotated[int | None, typer.Option(help="Sequences decoded together.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per sequence.")] = None,
    on_update: Annotated[
        Literal["finish", "restart"] | None,
        typer.Option(help="Begun answers, when a new version comes; restart: those not streamed."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until a replica answers.")
    ] = True,
    json: Json = False,
) -> None:
    """Deploy a model, or change how it is deployed.

    Example: zenos serve shakespeare --max-replicas 2 --memory 2GiB
    """
    from zenos.cli.output import put, put_json, say
    from zenos.client.build import parse_duration

    with client() as made:
        before = [r for d in made.deployments() if d.name == model for r in d.replicas]
        deployment = made.serve(
            model,
            min_replicas=min_replicas,
            max_replicas=max_replicas if max_replicas is not None else max(min_replicas, 1),
            keep_alive_s=parse_duration(keep_alive, "keep-alive"),
            priority=priority,
            cpu=cpu,
            gpu=gpu,
            memory=memory,
            dtype=dtype,
            slots=slots,
            context=context,
            on_update=on_update,
        )
        if deployment.warning:
            say(f"note: {deployment.warning}")
        if wait and min_replicas > 0:
            deployment = _until_ready(made, deployment, before)
        if json:
            put_json(deployment)
            return
        url = made.address.url
    state = "is served" if wait and min_replicas > 0 else "is deployed"
    put(f"{deployment.name} {state} at {url}/v1; 'zenos run {deployment.name}' asks it")


def _until_ready(made: Client, deployment: Deployment, before: list[str]) -> Deployment:
    """Until one replica as deployed now has loaded its model; raises what keeps it from that.

    before: those replicas that were there already.
    """
    import time

    from zenos.cli.output import say
    from zenos.cli.rows import answering
    from zenos.cli.waiting import room
    from zenos.core.errors import NotFoundError, WorkerError
    from zenos.core.replicas import holds, replica_spec, takes_turns
    from zenos.core.task import Kind

    name, said = deployment.name, False
    while True:
        found = next((d for d in made.deployments() if d.name == name), None)
        if found is None or found.stopping:
            raise NotFoundError(f"cannot wait for {name}: it was stopped")
        replicas = set(found.replicas)
        views = [v for v in made.tasks(kind=Kind.SERVE) if v.task.id in replicas]
        answers = answering(found, views)
        ended = [] if answers else [made.task(old).task.stopping for old in before]
        if "replaced" in ended or "gives way" in ended:
            before = []
            say(f"no room for both: {name} answers again when its new replica has loaded")
        if found.error is not None:
            kept = f"{name} answers as before" if answers else f"nothing answers for {name} now"
            raise WorkerError(f"{found.error}; {kept}; serve it with other settings")
        if answers == "now":
            return found
        spec, turns = replica_spec(found), takes_turns(found)
        waits = room(name, [v for v in views if holds(v.task.spec, spec, turns)])
        if waits is not None and not said:
            said = True
            say(f"{waits}; Ctrl-C leaves it deployed")
        time.sleep(READY_LOOK_S)


def stop(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="As deployed.", autocompletion=complete_deployments
        ),
    ],
    json: Json = False,
) -> None:
    """Stop serving models; requests that are being answered are finished.

    Example: zenos stop shakespeare
    """
    from zenos.cli.output import put_json, say

    with client() as made:
        stopped, failed = for_each(names, made.stop)
    if json:
        put_json(stopped)
    for deployment in [] if json else stopped:
        say(f"{deployment.name} is being stopped")
    end_with(failed)


def rollback(
    name: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="As deployed.", autocompletion=complete_deployments),
    ],
    to: Annotated[
        int | None, typer.Option(help="Version's number; by default the one before.")
    ] = None,
    json: Json = False,
) -> None:
    """Serve an earlier version of a model, and stay there until 'zenos serve' follows again.

    Example: zenos rollback shakespeare --to 3
    """
    from zenos.cli.output import put, put_json

    with client() as made:
        deployment = made.roll_back(name, to)
    if json:
        put_json(deployment)
        return
    put(
        f"{deployment.name} serves {deployment.version}, whatever is published; "
        f"'zenos serve {deployment.spec.model}' follows again"
    )


def run(
    model: ModelName,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Without one: interactive, or stdin.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-n", help="At most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose within this probability.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="The same seed, the same text (in bfloat16 up to a near-tie): a whole number of "
            "64 bits."
        ),
    ] = None,
    stop_at: Annotated[
        list[str] | None, typer.Option("--stop", help="Text to stop at; may be repeated.")
    ] = None,
    priority: Annotated[
        str | None,
        typer.Option(help="low, normal, high or 0 to 100.", autocompletion=complete_priorities),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of a chat.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--complete", help="By default chat if the model has a template."),
    ] = None,
    json: Json = False,
) -> None:
    """Ask a model: streams the answer; loads the model when needed.

    Without a prompt and a terminal it is read from stdin; nothing there is refused.

    Example: zenos run shakespeare "To be, or" --max-tokens 40
    """
    import sys

    from zenos.cli.conversation import Conversation
    from zenos.cli.output import say
    from zenos.client.build import parse_priority
    from zenos.core.errors import InvalidError

    settings = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop_at or None,
        "priority": None if priority is None else parse_priority(priority),
    }
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
        if not prompt.strip():
            raise InvalidError(
                "cannot ask with nothing: no text came on stdin; to have it begin by itself give "
                "'' as the prompt"
            )
    if prompt is None and json:
        raise InvalidError("cannot be interactive with --json: give a prompt")
    with client() as made:
        chats = made.model(model).has_chat_template if chat is None else chat
        if system and not chats:
            say(f"note: --system is left out: {model} has no chat template; see --chat")
        talk = Conversation(made, model, settings, chat=chats, system=system)
        if prompt is None:
            talk.interact()
        else:
            talk.ask_once(prompt, json=json)
