"""The loss curve of a model: in the terminal by plotext, into a file by matplotlib."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zenos.cli.streams import can_show
from zenos.core import pictures
from zenos.core.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from zenos.client import ModelVersion

Line = tuple[list[float], list[float]]
WIDTH_MAX, HEIGHT = 100, 20
# In less there is a frame and no room for a curve.
WIDTH_MIN, HEIGHT_MIN = 40, 12
TICKS: Final = 7
BRAILLE: Final = "\u28ff"
LETTERS: Final = ("*", "o")  # of the lines, where there are no dots


def lines(model: ModelVersion) -> dict[str, Line]:
    """Steps and losses to draw, `training` and `held out`; NotFoundError without any."""
    found: dict[str, Line] = {}
    for place, name in ((1, "training"), (2, "held out")):
        points = [
            (float(point[0]), float(value))
            for point in model.curve
            if (value := point[place]) is not None and math.isfinite(value)
        ]
        if points:
            found[name] = ([step for step, _ in points], [loss for _, loss in points])
    if not found:
        raise NotFoundError(f"cannot find a loss curve of {model.ref}: it was not trained here")
    return found


def draw(model: ModelVersion) -> None:
    """On stdout; without colours where that is no terminal, of letters where it has no dots."""
    dots, colours = can_show(BRAILLE), sys.stdout.isatty()
    sys.stdout.write(f"{rendered(model, colours=colours, dots=dots)}\n")


def rendered(model: ModelVersion, *, colours: bool, dots: bool = True) -> str:
    """The curve as text. dots: of eight to a character; else of letters, one for each line.

    Where the terminal is too small for a curve, its numbers.
    """
    found = lines(model)
    size = shutil.get_terminal_size()
    columns, rows = min(size.columns, WIDTH_MAX), min(size.lines - 1, HEIGHT)
    if columns < WIDTH_MIN or rows < HEIGHT_MIN:
        return _numbers(model, found)
    try:
        import plotext
    except ImportError as error:
        raise InvalidError(f"cannot draw here: {error}; write --plot FILE.png instead") from None
    figure = plotext.figure
    figure.clear()
    figure.plot_size(columns, rows)
    # The terminal's own background; the legend where a falling curve is not.
    figure.theme("simple" if colours else "colorless")
    last = max(steps[-1] for steps, _ in found.values())
    highest = max(max(losses) for _, losses in found.values())
    figure.legend(x=last, y=highest, ha="right", relative=True)
    for letter, (name, (steps, losses)) in zip(LETTERS, found.items(), strict=False):
        marker = "braille" if dots else letter
        signal = figure.signal(steps, losses, marker=marker).lines().label(name)
        figure.draw(signal)
    figure.title(f"{model.ref}: loss over steps")
    whole = step_ticks(min(steps[0] for steps, _ in found.values()), last)
    figure.ruler("x").ticks(whole, [f"{step:,}" for step in whole])
    text = str(figure.build())
    return text if colours else str(plotext.uncolorize(text))


def _numbers(model: ModelVersion, found: dict[str, Line]) -> str:
    """The loss at the first step, at its lowest and at the last."""
    told = [f"{model.ref}: loss over steps"]
    for name, (steps, losses) in found.items():
        low = losses.index(min(losses))
        told.append(f"{name}:")
        told += [f"{steps[at]:,.0f} {losses[at]:.3f}" for at in sorted({0, low, len(steps) - 1})]
    return "\n".join(told)


def step_ticks(first: float, last: float) -> list[int]:
    """Some steps between both, evenly spread: whole numbers, each once."""
    spread = (first + (last - first) * part / (TICKS - 1) for part in range(TICKS))
    return sorted({round(step) for step in spread})


def write_picture(model: ModelVersion, path: Path) -> None:
    """As a picture; the ending says of which kind. Raises InvalidError, StorageError."""
    pictures.check_kind(path)
    found = lines(model)
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, (steps, losses) in found.items():
        axes.plot(steps, losses, label=name, marker="o" if len(steps) < 3 else None)
    axes.set_title(model.ref)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss (nats per token)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    pictures.save(figure, path)
