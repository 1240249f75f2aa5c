"""`zenos demo`: boot, train, register, deploy, ask. Everything real, in a home of its own.

1. A daemon boots in a fresh home.
2. The corpus is the source of this Python's standard library: real text, on every machine.
3. A tokenizer and a model of Llama's shape are trained on it and registered as `pycoder`.
4. The model is deployed, and the official openai client streams a completion of `def `.
5. A table says what was measured; the model must beat a bigram model over the same tokens.
6. The daemon ends, and the home goes, unless `--keep`.
"""

from __future__ import annotations

import importlib
import platform
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from zenos.core import limits
from zenos.core.errors import InvalidError, WorkerError

if TYPE_CHECKING:
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
    """How large the demo is. train_s: seconds of training; a slow machine takes fewer steps."""

    arch: str
    vocab_size: int
    sequence_length: int
    batch_size: int
    learning_rate: float
    train_s: float
    parts: tuple[str, ...]
    settings: dict[str, int] = {}


FULL: Final = Plan(
    arch="llama-micro",
    # Narrower than the preset: in three minutes tokens seen count for more than width.
    settings={
        "hidden_size": 192,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "intermediate_size": 512,
    },
    vocab_size=768,
    sequence_length=256,
    batch_size=4,
    learning_rate=4e-3,
    train_s=175,
    parts=("**/*.py",),
)
QUICK: Final = Plan(
    arch="llama-nano",
    vocab_size=320,
    sequence_length=128,
    batch_size=8,
    learning_rate=4e-3,
    train_s=15,
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
        Path, typer.Option("--output", help="Directory for loss.png; is made where needed.")
    ] = Path(),
) -> None:
    """Train a language model on this machine, serve it and ask it: about four minutes.

    Example: zenos demo --quick
    """
    from rich.console import Console

    from zenos.core.home import Home

    console = Console()
    plan = QUICK if quick else FULL
    _check_extra()
    _make_directory(output)
    home = Home(Path(tempfile.mkdtemp(prefix="zenos-demo-")))
    beaten = False
    # Told to end, it takes its daemon with it: by the same way out as an error.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        beaten = _run(plan, home.root, output / "loss.png", console)
        if keep:
            console.print(
                f"\nThe daemon runs on. Type:\n  export ZENOS_HOME={home.root}\n"
                f"  zenos run {MODEL} 'class '\n  zenos show {MODEL} --plot\n  zenos down"
            )
        else:
            first = "" if shutil.which("zenos") else f"[bold]. {sys.prefix}/bin/activate[/], then "
            console.print(
                f"\nNext: {first}[bold]zenos up[/], then [bold]zenos train --help[/]; "
                "docs/tutorial takes it from here."
            )
    finally:
        if not keep:
            _end(home.root)
    if not beaten:
        raise WorkerError("cannot call this a success: the model did not beat the bigram baseline")


def _make_directory(output: Path) -> None:
    """InvalidError where the picture could not be written in the end: said before the training."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InvalidError(
            f"cannot write loss.png into {output}: there is a file; give a directory"
        ) from None
    except OSError as error:
        raise InvalidError(
            f"cannot write loss.png into {output}: {error.strerror}; give another directory"
        ) from None


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


def _run(plan: Plan, root: Path, picture: Path, console: Any) -> bool:
    from zenos.cli import daemon_process, plot
    from zenos.client import connect
    from zenos.core.home import Home

    begun = time.monotonic()
    daemon = daemon_process.start(Home(root), ["--port", "0"])
    console.print(
        f"[bold]1[/] a kernel booted in {time.monotonic() - begun:.2f} s: process {daemon.pid}, "
        f"{daemon.url}"
    )
    with connect(home=root) as client:
        task = _train(client, plan, console)
        result: dict[str, Any] = (task.outcome.result if task.outcome else None) or {}
        version = client.model(MODEL)
        console.print(f"[bold]3[/] registered as {version.ref}, {version.parameters:,} parameters")
        answer = _ask(client, daemon.url, (root / "token").read_text().strip(), console)
        _table(result, answer, console)
        plot.write_picture(version, picture)
        console.print(f"The loss curve is in {picture}")
        return bool(result.get("beats_bigram"))


def _train(client: Client, plan: Plan, console: Any) -> Task:
    library = Path(sysconfig.get_paths()["stdlib"])
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
        data={
            "paths": [str(library / part) for part in plan.parts],
            "exclude": list(EXCLUDED),
            "format": "text",
        },
        vocab_size=plan.vocab_size,
        sequence_length=plan.sequence_length,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        learning_rate_min=plan.learning_rate / 20,
        epochs=1000,
        time_budget_s=plan.train_s,
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


def _ask(client: Client, url: str, token: str, console: Any) -> Answer:
    """Deploy, and stream through the official client. The first request waits for the load."""
    from openai import OpenAI

    begun = time.monotonic()
    client.serve(MODEL)
    with OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as official:

        def stream(limit: int) -> tuple[str, int, float]:
            start, first, pieces = time.monotonic(), 0.0, []
            for chunk in official.completions.create(
                model=MODEL, prompt=PROMPT, max_tokens=limit, temperature=0.7, seed=1, stream=True
            ):
                first = first or time.monotonic() - start
                text = chunk.choices[0].text if chunk.choices else ""
                pieces.append(text)
                if limit > 1:
                    console.file.write(text)
                    console.file.flush()
            return "".join(pieces), len(pieces), first

        stream(1)
        cold_s = time.monotonic() - begun
        console.print(f"[bold]4[/] deployed; the official openai client asks for {PROMPT!r}:\n")
        console.file.write(PROMPT)
        text, tokens, first_s = stream(120)
        console.file.write("\n\n")
    return Answer(text=text, tokens=tokens, cold_s=cold_s, first_s=first_s)


def _table(result: dict[str, Any], answer: Answer, console: Any) -> None:
    from rich.table import Table

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
