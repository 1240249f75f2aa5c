"""Models: create, list, show, cp, rm, pull, export, alias."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zenos.cli.common import (
    Json,
    client,
    complete_architectures,
    complete_models,
    end_with,
    finish,
    for_each,
    parse_settings,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zenos.client import Client, ModelVersion, TaskView
    from zenos.core.task import TaskEvent

Ref = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="NAME, NAME:VERSION or NAME:ALIAS.", autocompletion=complete_models
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    panel = "Models"
    app.command("create", rich_help_panel=panel)(create)
    app.command("list", rich_help_panel=panel)(list_)
    app.command("show", rich_help_panel=panel)(show)
    app.command("cp", rich_help_panel=panel)(cp)
    app.command("rm", rich_help_panel=panel)(rm)
    app.command("pull", rich_help_panel=panel)(pull)
    app.command("export", rich_help_panel=panel)(export)
    app.command("alias", rich_help_panel=panel)(alias)


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name in the registry.")],
    arch: Annotated[
        str,
        typer.Option(
            help="A short name (llama-nano) or a model type (llama, gpt2, bert, t5).",
            autocompletion=complete_architectures,
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A field of its configuration; repeat."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights, 0 to 2**63 - 1.")] = 0,
    tokenizer: Annotated[
        str | None, typer.Option(help="Registered model whose tokenizer it gets.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory for making it.")] = "1GiB",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is there.")] = True,
    json: Json = False,
) -> None:
    """Create a new, untrained model.

    Example: zenos create tiny --arch llama-nano --set hidden_size=256
    """
    from zenos.cli.output import put, put_json, say
    from zenos.cli.waiting import naming, until_end

    settings = parse_settings(set_)
    with client() as made:
        handle = made.create(name, arch, settings, seed=seed, tokenizer=tokenizer, memory=memory)
        if wait:
            with naming(handle):
                until_end(handle)
            finish(handle.task)
    result = (handle.task.outcome.result if handle.task.outcome else None) or {}
    if json:
        put_json(handle.task)
    elif wait:
        put(str(result.get("model", name)))
    else:
        put(handle.id)
        say(f"{name} is being made; 'zenos logs -f {handle.id}' follows it")


def list_(json: Json = False) -> None:
    """List all versions of all models.

    What is wrong with damaged ones is said on stderr, and the exit code is 1 then.

    Example: zenos list
    """
    from zenos.cli.output import put_json, table
    from zenos.cli.rows import MODELS, model_row
    from zenos.core.errors import StorageError

    with client() as made:
        models, damaged = made.models(), made.damaged_models()
    hint = "no models; 'zenos train' and 'zenos create' make one, 'zenos pull' imports one"
    if json:
        put_json(models)
    elif models or not damaged:
        table(MODELS, (model_row(model) for model in models), empty=hint)
    end_with([StorageError(why) for why in damaged.values()])


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|TASK",
            help="NAME, NAME:VERSION, NAME:ALIAS, or a task's id.",
            autocompletion=complete_models,
        ),
    ],
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="With --plot: a picture's file.")
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw the loss curve here, or into FILE.png.")
    ] = False,
    json: Json = False,
) -> None:
    """Show a model with its lineage and metrics, or a task.

    Example: zenos show shakespeare --plot loss.png
    """
    from zenos.cli.output import facts, put_json, say
    from zenos.core.errors import InvalidError

    if file is not None and not plot:
        raise InvalidError("cannot tell what the file is for: write --plot FILE.png")
    if file is not None:
        name, file = _model_and_picture(name, file)
    with client() as made:
        model, task = _model_or_task(made, name)
        canceller = _canceller(made, task)
        past = made.history(task.task.id).events if task is not None and not json else []
    if task is not None:
        if plot:
            raise InvalidError(f"cannot plot the task {task.task.id}: give the model that it made")
        if json:
            put_json(task)
        else:
            facts(_task_facts(task, canceller, past))
        return
    assert model is not None  # noqa: S101 - one of the two was found
    if plot:
        from zenos.cli import plot as drawing

        if file is not None:
            drawing.write_picture(model, file)
            say(f"wrote {file}")
        elif not json:
            drawing.draw(model)
            return
    if json:
        put_json(model)
    elif not plot:
        facts(_model_facts(model))


def _model_and_picture(first: str, second: Path) -> tuple[str, Path]:
    """`MODEL --plot FILE.png`, or the picture first, as in `--plot FILE.png MODEL`."""
    from zenos.core.pictures import ENDINGS

    if first.lower().endswith(ENDINGS) and second.suffix.lower() not in ENDINGS:
        return str(second), Path(first)
    return first, second


def _model_or_task(made: Client, name: str) -> tuple[ModelVersion | None, TaskView | None]:
    from zenos.core.errors import InvalidError, NotFoundError

    try:
        return made.model(name), None
    except (NotFoundError, InvalidError) as error:
        try:
            return None, made.task(name).view
        except NotFoundError:
            if re.fullmatch(r"t[0-9]+", name):  # so a task's id looks
                raise
            if ":" in name or isinstance(error, InvalidError):  # no task has such a name
                raise error from None
            raise NotFoundError(
                f"cannot find {name!r}: there is no model and no task of that name; 'zenos list' "
                "shows all models, 'zenos ps --all' all tasks"
            ) from None
        except InvalidError:
            raise error from None


def _model_facts(model: ModelVersion) -> list[tuple[str, object]]:
    import time

    from zenos.client.display import show_count
    from zenos.core.resources import show_size

    known = {name: value for name, value in model.metrics.items() if value is not None}
    metrics = "\n".join(f"{name}  {_short(value)}" for name, value in known.items())
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(model.created))
    return [
        ("model", model.ref),
        ("aliases", ", ".join(model.aliases)),
        ("architecture", " / ".join(dict.fromkeys(filter(None, (model.family, model.arch))))),
        ("parameters", show_count(model.parameters)),
        ("size", show_size(model.bytes)),
        ("created", created if model.created else ""),
        ("parent", model.lineage.parent),
        ("task", model.lineage.task),
        ("project", model.lineage.project),
        ("data", model.lineage.data_hash),
        ("code", model.lineage.code_version),
        ("left out", "\n".join(_left_out(model))),
        ("metrics", metrics),
        ("files", "\n".join(f"{name}  {show_size(f.size)}" for name, f in model.files.items())),
    ]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _canceller(made: Client, view: TaskView | None) -> str:
    """Who cancelled a task, and when; nothing of others, or where no row tells of it any more."""
    import time

    if view is None or view.task.stopping != "cancel":
        return ""
    for row in made.audit.rows(action="cancel", subject=view.task.id, limit=10):
        if row.accepted:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.at))
            return f"{row.principal.user}, {when}"
    return ""


def _task_facts(
    view: TaskView, canceller: str = "", past: Sequence[TaskEvent] = ()
) -> list[tuple[str, object]]:
    import time

    from zenos.cli.rows import (
        history_lines,
        owner_name,
        prediction_facts,
        work_line,
        workers_line,
    )
    from zenos.client.display import again, show_progress, show_seconds, summary, took_s

    task = view.task
    # How a generation before has ended is nothing of a task that runs again.
    outcome = task.outcome if task.is_ended or again(task) else None
    return [
        ("task", f"{task.id} ({task.name})" if task.name != task.id else task.id),
        ("kind", task.kind),
        ("user", "" if task.principal.is_operator else owner_name(task.principal)),
        ("does", work_line(task.spec.work)),
        ("state", task.state),
        ("because", view.waits or (summary(task) if summary(task) != task.state else "")),
        ("cancelled by", canceller),
        ("progress", show_progress(view.progress)),
        ("priority", task.spec.priority),
        ("wants", task.spec.resources),
        ("workers", workers_line(task)),
        ("node", task.allocation.node if task.allocation else ""),
        ("submitted", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(task.submitted))),
        ("ran", show_seconds(took_s(task, time.time()))),
        *prediction_facts(view.prediction),
        ("generation", task.generation),
        ("history", history_lines(past)),
        ("exit code", "" if outcome is None else outcome.exit_code),
        ("log ends", outcome.log_tail[-1000:].strip() if outcome else ""),
    ]


def cp(
    source: Ref,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The other name.")],
    json: Json = False,
) -> None:
    """Register a version under another name too; its files are shared.

    Example: zenos cp shakespeare:3 bard
    """
    from zenos.cli.output import put, put_json

    with client() as made:
        model = made.copy(source, target)
    put_json(model) if json else put(model.ref)


def rm(
    refs: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="NAME:VERSION, or NAME.", autocompletion=complete_models
        ),
    ],
    all_: Annotated[
        bool, typer.Option("--all", help="All versions, where a bare NAME has several.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove models; files that no other version has are freed. Their aliases go with them.

    Of several names those that are there and may go are removed; the others are named, and the
    exit code is that of the first of them.

    Example: zenos rm shakespeare:2
    """
    from zenos.cli.output import put_json, say
    from zenos.core.errors import InvalidError
    from zenos.core.resources import show_size

    with client() as made:
        models = made.models()
        known = [model.ref for model in models] + list(made.damaged_models())
        for ref in [] if all_ else refs:
            count = sum(one.rpartition(":")[0] == ref for one in known)
            if ":" not in ref and count > 1:
                raise InvalidError(
                    f"cannot tell which of the {count} versions of {ref} to remove: "
                    f"write {ref}:VERSION, or --all"
                )
        aliases = {m.ref: [f"{m.name}:{alias}" for alias in m.aliases] for m in models}
        removed, failed = for_each(_all_versions(refs, known) if all_ else refs, made.remove)
    if json:
        put_json(
            [
                {
                    "removed": one.removed,
                    "freed_bytes": one.freed_bytes,
                    "aliases": aliases.get(one.removed, []),
                }
                for one in removed
            ]
        )
    for one in [] if json else removed:
        gone = ", ".join(aliases.get(one.removed, []))
        more = f"; with it went {gone}" if gone else ""
        say(f"{one.removed} is removed, {show_size(one.freed_bytes)} freed{more}")
    end_with(failed)


def _all_versions(refs: list[str], known: list[str]) -> list[str]:
    """Each bare name replaced by all versions that it has; unknown names stay, to be told of."""
    return [
        version
        for ref in refs
        for version in [one for one in known if one.rpartition(":")[0] == ref] or [ref]
    ]


def pull(
    source: Annotated[
        str, typer.Argument(metavar="DIRECTORY|HUB_ID", help="A directory, or ORG/NAME.")
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Default: the last part of the source.")
    ] = None,
    json: Json = False,
) -> None:
    """Import a Hugging Face directory, or a model of the Hub; safetensors only.

    What of the directory is not taken, such as pickles and program code, is said.

    Example: zenos pull ./my-model my-model
    """
    from zenos.cli.hub import fetched, size_of
    from zenos.cli.output import put, put_json, say
    from zenos.cli.waiting import at_work
    from zenos.core.resources import show_size

    if name is None:
        name = _name_of(source)
    with client() as made, fetched(source) as directory:
        size = show_size(size_of(directory))
        with at_work(f"checking and copying {size} of {source}"):
            model = made.import_model(directory, name)
    for line in _left_out(model):
        say(f"left out: {line}")
    put_json(model) if json else put(model.ref)


def _name_of(source: str) -> str:
    """What a source is called by itself: its last part, of a directory as it is in full."""
    from zenos.client.build import absolute
    from zenos.core.errors import InvalidError

    path = source.rstrip("/")
    if Path(source).is_dir():
        path = os.path.normpath(absolute(source))
    name = Path(path).name
    if not name:
        raise InvalidError(
            f"cannot tell what to call the model: {source!r} has no last part; give a NAME after it"
        )
    return name


def _left_out(model: ModelVersion) -> list[str]:
    """What an import has not taken, a line for each reason."""
    reasons: dict[str, list[str]] = {}
    for file, why in model.lineage.left_out.items():
        reasons.setdefault(why, []).append(file)
    return [f"{', '.join(files)} ({why})" for why, files in reasons.items()]


def export(
    ref: Ref,
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Is made.")],
    json: Json = False,
) -> None:
    """Write a model as a directory that transformers reads.

    Repeated, it leaves a directory that holds exactly this version as it is, and succeeds;
    anything else that is there is refused, never overwritten.

    Example: zenos export shakespeare ./shakespeare
    """
    from zenos.cli.output import put, put_json

    with client() as made:
        path = made.export_model(ref, directory)
    put_json({"path": str(path)}) if json else put(str(path))


def alias(
    ref: Ref,
    word: Annotated[str, typer.Argument(metavar="ALIAS", help="E.g. prod.")],
    json: Json = False,
) -> None:
    """Let an alias name a version, or move it there.

    Example: zenos alias shakespeare:3 prod
    """
    from zenos.cli.output import put, put_json

    with client() as made:
        model = made.model(ref)
        made.alias(model.name, word, model.version)
    if json:
        put_json({"model": model.ref, "alias": f"{model.name}:{word}"})
    else:
        put(f"{model.name}:{word} is {model.ref}")
