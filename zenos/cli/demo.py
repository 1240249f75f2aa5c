"""`zenos demo`: boot, train, register, deploy, ask. Everything real, in a home of its own.

1. A daemon boots in a fresh home.
2. The corpus is the source of this Python's standard library: real text, on every machine.
3. A tokenizer and a model of Llama's shape are trained on it and registered as `pycoder`.
4. The model is deployed, and the official openai client streams a completion of `def `.
5. A second training takes all CPUs, and gives way to requests for that model; it must end
   in the same weights as one that nobody disturbed (`demo_yielding.py`).
6. A table says what was measured; the model must beat a bigram model over the same tokens.
7. The daemon ends, and the home goes, unless `--keep`.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from zenos.core import limits
from zenos.core.errors import InvalidError, WorkerError
from zenos.core.free import free_bytes
from zenos.core.resources import show_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zenos.cli.demo_yielding import Outcome
    from zenos.client import Client
    from zenos.core.task import Task

MODEL: Final = "pycoder"
PROMPT: Final = "def "
NEEDED: Final = ("openai", "matplotlib")  # of the extra `demo`
# Tests are left out, as are generated tables, which are no prose of programmers.
EXCLUDED: Final = (
    "**/test/**", "**/tests/**", "**/idle_test/**", "**/site-packages/**", "**/dist-packages/**",
    "**/encodings/**", "**/pydoc_data/**", "**/__pycache__/**", "**/lib2to3/tests/**",
    "**/_sysconfigdata*",
)  # fmt: skip


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How large the demo is. train_s: seconds of training; a slow machine takes fewer steps, but no
    fewer than `steps_min`, with which the bigram model is beaten.

    second_steps: of each of the two trainings of the second act; second_requests: how often the
    second of them gives way. disk: bytes, over twice what its home was seen to take.
    """

    arch: str
    vocab_size: int
    sequence_length: int
    batch_size: int
    learning_rate: float
    train_s: float
    steps_min: int
    second_steps: int
    second_requests: int
    disk: int
    parts: tuple[str, ...]
    settings: dict[str, int] = {}


# In so short a time tokens seen count for more than depth: two wide layers learn more than six.
# With a head of its own the embedding leads straight to the next token, and small batches, which
# are many steps, go further than large ones.
FULL: Final = Plan(
    arch="llama-micro",
    settings={
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 896,
        "tie_word_embeddings": False,
    },
    vocab_size=768,
    sequence_length=128,
    batch_size=4,
    learning_rate=2.5e-3,
    train_s=120,
    steps_min=800,
    second_steps=150,
    second_requests=3,
    disk=200 * limits.MIB,
    parts=("**/*.py",),
)
QUICK: Final = Plan(
    arch="llama-nano",
    settings={"num_hidden_layers": 1, "tie_word_embeddings": False},
    vocab_size=320,
    sequence_length=128,
    batch_size=2,
    learning_rate=3e-3,
    train_s=15,
    steps_min=600,
    second_steps=30,
    second_requests=1,
    disk=100 * limits.MIB,
    parts=("*.py",),
)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the client saw: cold start and first token in seconds from the request."""

    text: str
    tokens: int
    cold_s: float
    first_s: float


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", rich_help_panel="The daemon")(demo)


def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="A smaller model on fewer files: half a minute.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the daemon and its home when done.")
    ] = False,
    output: Annotated[
        str,
        typer.Option(
            "--output", metavar="PATH", help="Directory for loss.png; is made where needed."
        ),
    ] = ".",
) -> None:
    """Train a language model on this machine, serve it and ask it: about three minutes.

    Example: zenos demo --quick
    """
    from zenos.cli.output import say
    from zenos.core.home import Home

    console = _console()
    plan = QUICK if quick else FULL
    _check_extra()
    directory = _make_directory(output)
    failed = ""
    # Told to end, it takes its daemon with it: by the same way out as an error.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    home = Home(_make_home(plan))
    try:
        failed = _run(plan, home.root, directory / "loss.png", console, keep=keep)
        if keep:
            console.print(
                f"\nThe daemon runs on. Type:\n  export ZENOS_HOME={home.root}\n"
                f"  zenos run {MODEL} 'class '\n  zenos show {MODEL} --plot\n  zenos down\n"
                "Its home stays after that, until you remove it: rm -r $ZENOS_HOME",
                soft_wrap=True,
            )
        else:
            first = "" if shutil.which("zenos") else f"[bold]. {sys.prefix}/bin/activate[/], then "
            console.print(
                f"\nNext: {first}[bold]zenos up[/], then [bold]zenos train --help[/]; "
                "docs/tutorial takes it from here.",
                soft_wrap=True,
            )
    except BaseException as error:
        if not keep and isinstance(error, KeyboardInterrupt | SystemExit):
            say("Interrupted: its daemon is being ended, and its home removed.")
        if keep:
            with suppress(OSError):  # the terminal may be gone
                say(
                    f"What was begun is left: 'ZENOS_HOME={home.root} zenos down' ends its daemon, "
                    f"and 'rm -r {home.root}' then removes it."
                )
        raise
    finally:
        if not keep:
            _end(home.root)
    if failed:
        raise WorkerError(f"cannot call this a success: {failed}")


def _console() -> Any:
    """Where the demo tells what it does; in a pipe each sentence is one line, however long."""
    from rich.console import Console

    from zenos.cli.output import UNBOUNDED

    made = Console()
    if not made.is_terminal:
        made.width = UNBOUNDED
    return made


def _make_directory(output: str) -> Path:
    """InvalidError where the picture could not be written in the end: said before the training."""
    if not output:
        raise InvalidError("cannot write loss.png into '': give --output a directory, such as .")
    directory = Path(output)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):  # also root may not everywhere
            return directory
    except (FileExistsError, NotADirectoryError):
        raise InvalidError(
            f"cannot write loss.png into {output}: there is a file; give a directory"
        ) from None
    except OSError as error:
        raise InvalidError(
            f"cannot write loss.png into {output}: {error.strerror}; give another directory"
        ) from None


def _make_home(plan: Plan) -> Path:
    """InvalidError where its disk has no room: a training would wait there for some, for ever."""
    other = "set TMPDIR to a directory on another disk"
    try:
        place = Path(tempfile.gettempdir())
        free = free_bytes(place)
        if free is not None and free < plan.disk:
            raise InvalidError(
                f"cannot run the demo: {place} has {show_size(free)} free, and it takes up to "
                f"{show_size(plan.disk)} there; make room, or {other}"
            )
        return Path(tempfile.mkdtemp(prefix="zenos-demo-"))
    except OSError as error:
        why = f"no directory for temporary files can be written ({error.strerror})"
        raise InvalidError(f"cannot run the demo: {why}; {other}") from None


def _check_extra() -> None:
    """InvalidError when what comes after the training could not be done."""
    missing = []
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise InvalidError(
            f"cannot run the demo: {' and '.join(missing)} cannot be imported; "
            "type: pip install 'zenos[demo]'"
        )


def _run(plan: Plan, root: Path, picture: Path, console: Any, *, keep: bool) -> str:
    """Both acts. What went wrong, empty where nothing did.

    keep: the daemon outlives this process. Else it ends with it, even where that is killed.
    """
    from zenos.cli import daemon_process, demo_yielding, plot
    from zenos.client import connect
    from zenos.core.home import Home

    begun = time.monotonic()
    flags = ["--port", "0", *demo_yielding.SETTINGS]
    if not keep:
        flags += ["--ends-with", str(os.getpid())]
    daemon = daemon_process.start(Home(root), flags)
    console.print(
        f"[bold]1[/] a kernel booted in {time.monotonic() - begun:.2f} s: process {daemon.pid}, "
        f"{daemon.url}"
    )
    with connect(home=root) as client:
        task = _train(client, plan, console)
        result: dict[str, Any] = (task.outcome.result if task.outcome else None) or {}
        version = client.model(MODEL)
        console.print(f"[bold]3[/] registered as {version.ref}, {version.parameters:,} parameters")
        token = (root / "token").read_text().strip()
        answer = _ask(client, daemon.url, token, console)
        yielded = demo_yielding.show(
            client,
            lambda: _first_token(daemon.url, token),
            MODEL,
            data=_data(plan),
            steps=plan.second_steps,
            requests=plan.second_requests,
            console=console,
        )
        _table(result, answer, yielded, console)
        plot.write_picture(version, picture)
        console.print(f"The loss curve is in {picture}")
    return _verdict(result, same=yielded.same)


def _verdict(result: dict[str, Any], *, same: bool) -> str:
    """What went wrong, empty where nothing did."""
    if not same:
        return "the training that gave way ended in other weights"
    return "" if result.get("beats_bigram") else "the model did not beat the bigram baseline"


def _train(client: Client, plan: Plan, console: Any) -> Task:
    capacity = client.nodes()[0].node.capacity
    cores = max(capacity.cpu // 1000, 1) if capacity.cpu >= 1000 else capacity.cpu / 1000
    text = f"the standard library of Python {platform.python_version()}"
    console.print(
        f"[bold]2[/] training a small Llama on {text}: about {plan.train_s:.0f} s, {cores:g} CPUs"
    )
    handle = client.train(
        model=MODEL,
        arch=plan.arch,
        settings=plan.settings,
        data=_data(plan),
        vocab_size=plan.vocab_size,
        sequence_length=plan.sequence_length,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        learning_rate_min=plan.learning_rate / 20,
        epochs=1000,
        time_budget_s=plan.train_s,
        steps_min=plan.steps_min,
        eval_every=200,
        checkpoint_every=500,
        cpu=cores,
        memory=min(4 * limits.GIB, capacity.memory),
    )
    task = handle.wait(progress=True)
    if task.state != "succeeded":
        why = task.outcome.describe() if task.outcome else task.state
        raise WorkerError(f"cannot go on: the training {task.state}: {why}")
    return task


def _data(plan: Plan) -> dict[str, Any]:
    """The corpus, as a training takes it."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = [str(library / part) for part in plan.parts]
    return {"paths": paths, "exclude": list(EXCLUDED), "format": "text"}


def _ask(client: Client, url: str, token: str, console: Any) -> Answer:
    """Deploy, and stream through the official client. The first request waits for the load."""
    from zenos.cli.output import clean

    begun = time.monotonic()
    client.serve(MODEL)
    _first_token(url, token)
    cold_s = time.monotonic() - begun
    console.print(f"[bold]4[/] deployed; the official openai client asks for {PROMPT!r}:\n")
    begun, first_s, pieces = time.monotonic(), 0.0, []
    console.file.write(PROMPT)
    for piece in _stream(url, token, 120):
        first_s = first_s or time.monotonic() - begun
        pieces.append(piece)
        console.file.write(clean(piece, lines=True) if console.is_terminal else piece)
        console.file.flush()
    console.file.write("\n\n")
    return Answer(text="".join(pieces), tokens=len(pieces), cold_s=cold_s, first_s=first_s)


def _first_token(url: str, token: str) -> float:
    """Seconds from a request to its first token."""
    begun = time.monotonic()
    next(_stream(url, token, 1))
    return time.monotonic() - begun


def _stream(url: str, token: str, limit: int) -> Iterator[str]:
    from openai import OpenAI

    with OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as official:
        for chunk in official.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=limit, temperature=0.7, seed=1, stream=True
        ):
            yield chunk.choices[0].text if chunk.choices else ""


def _table(result: dict[str, Any], answer: Answer, yielded: Outcome, console: Any) -> None:
    from rich.table import Table

    from zenos.cli import demo_yielding

    table = Table(title="What was measured", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")

    def pair(loss: str, bits: str) -> str:
        a, b = result.get(loss), result.get(bits)
        return f"{a:.3f} nats per token, {b:.3f} bits per byte" if a and b else "not measured"

    table.add_row("corpus", f"{result.get('corpus_bytes', 0):,} bytes")
    table.add_row("parameters", f"{result.get('parameters', 0):,}")
    table.add_row("held-out loss", pair("eval_loss", "bits_per_byte"))
    table.add_row("bigram baseline", pair("bigram_loss", "bigram_bits_per_byte"))
    table.add_row("unigram baseline", pair("unigram_loss", "unigram_bits_per_byte"))
    table.add_row("training", f"{result.get('tokens_per_s') or 0:,.0f} tokens/s")
    table.add_row("cold start to first token", f"{answer.cold_s:.2f} s")
    table.add_row("time to first token, loaded", f"{answer.first_s * 1000:.0f} ms")
    for name, value in demo_yielding.rows(yielded):
        table.add_row(name, value)
    console.print(table)


def _end(root: Path) -> None:
    from zenos.cli import daemon_process
    from zenos.client import connect
    from zenos.core.home import Home

    daemon = daemon_process.running(Home(root))
    if daemon is not None:
        with connect(home=root) as client:
            client.shut_down("suspend")
        daemon_process.wait_gone(daemon, 60)
    shutil.rmtree(root, ignore_errors=True)
