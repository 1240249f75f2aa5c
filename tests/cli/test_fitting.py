"""Tables in a narrow terminal: what is shortened, what is left out, what stays."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from zenos.cli import fitting, output
from zenos.cli.rows import NODES, TASKS

LONG = "sweep-" + "x" * 52 + "-seed-"
ROWS = [
    (
        *(f"t{n}", f"{LONG}{n}", "train", output.coloured("running", "green"), 50),
        *("1", "", "512 MiB", "2:10", "training 120/400, loss 3.21, 1,249 tok/s, 2:10 left"),
    )
    for n in (1, 2)
]
NODE = (
    *("a-node-with-a-long-name.example.org", "1 / 2", "-", "1.5 GiB / 7.6 GiB", "512 MiB"),
    "memory: cgroup v2, cpu: cgroup v2",
)


def lines(
    monkeypatch: pytest.MonkeyPatch, width: int, columns: tuple[str, ...], *rows: tuple[object, ...]
) -> list[str]:
    """A table on a terminal of that width."""
    file = io.StringIO()
    screen = Console(file=file, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(output, "console", lambda: screen)
    output.table(columns, rows)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 32, 40, 60, 80, 120, 200])
def test_a_row_is_one_line_whatever_the_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    made = lines(monkeypatch, width, TASKS, *ROWS)
    assert len(made) == 3
    assert all(cell_len(line.rstrip()) <= width for line in made)
    assert "ID" in made[0]
    assert "STATE" in made[0]
    assert ["running" in line for line in made] == [False, True, True]
    assert "seed-1"[-3:] in made[1]  # told apart by the end of its name
    assert "seed-2"[-3:] in made[2]


def test_at_40_columns_progress_and_state_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    head, first, _ = lines(monkeypatch, 40, TASKS, *ROWS)
    assert head.split() == ["ID", "NAME", "STATE", "PROGRESS"]
    assert re.fullmatch(r"t1  sweep…\S*seed-1  running  training [0-9]+…\s*", first)


def test_what_tells_least_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    head = lines(monkeypatch, 80, TASKS, *ROWS)[0].split()
    assert set(TASKS) - {f">{name}" for name in head} - set(head) == {">GPU", ">CPU"}
    assert lines(monkeypatch, 200, TASKS, *ROWS)[0].split() == [n.lstrip(">") for n in TASKS]


def test_a_node_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    head, node = lines(monkeypatch, 40, NODES, NODE)
    assert head.split() == ["NODE", "CPU", "MEMORY"]
    assert re.match(r"a-no\S*…\S*org +1 / 2 ", node)


def test_in_a_pipe_nothing_is_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    row = (*ROWS[0][:-1], "waits for " + "room " * 100 + "at last")
    output.table(TASKS, [row])
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == [name.lstrip(">") for name in TASKS]
    assert f"{LONG}1" in line
    assert line.endswith("at last")


def test_a_line_separator_in_a_cell_begins_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("NAME", "BODY"), [("a\u2028b", "c"), ("d", "e")])
    assert capsys.readouterr().out.count("\n") == 3


def test_names_stay_apart_where_they_differ_at_one_place_only() -> None:
    for cells, texts in (
        (40, ["a" * 30 + str(n) + "z" * 30 for n in range(3)]),  # in the middle
        (10, ["a" * 30 + str(n) + "z" * 30 for n in range(3)]),  # where each cut leaves it out
        (10, [str(n) + "z" * 60 for n in range(3)]),
        (10, ["z" * 60 + str(n) for n in range(3)]),
        (10, ["z" * 20 + str(n) + "y" * 3 for n in range(3)]),
    ):
        made = fitting.apart(texts, cells)
        assert len(set(made)) == 3
        assert all(cell_len(text) <= cells and "…" in text for text in made)
    assert fitting.apart(["short", "names"], 10) == ["short", "names"]


@pytest.mark.timeout(60)
def test_many_names_are_kept_apart_without_a_look_from_each_at_each() -> None:
    texts = ["a" * 30 + f"{n:05}" + "z" * 30 for n in range(20_000)]
    assert len(set(fitting.apart(texts, 10))) == len(texts)


@pytest.mark.parametrize("cells", range(12))
def test_wide_letters_are_counted_as_wide(cells: int) -> None:
    assert cell_len(fitting.shortened("日本語の名前", cells)) <= cells
    assert cell_len(fitting.shortened("日本語の名前", cells, head=cells // 2)) <= cells


def test_a_bar_keeps_its_colours_when_its_line_is_cut() -> None:
    bar = Text.assemble(("███", "green"), " 30% training, a long way to go")
    found = fitting.fit(["TASK", "PROGRESS"], [[Text("t1"), bar]], [False, False], 16, 2)
    assert found.rows[0][1].spans[0].style == "green"
    assert found.rows[0][1].plain.startswith("███ 30% t")


@pytest.mark.parametrize("width", [8, 10, 16, 22, 40])
def test_values_stand_below_their_names_where_both_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    file = io.StringIO()
    screen = Console(file=file, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(output, "console", lambda: screen)
    output.facts([("going down", ""), ("zenos", "1.0 at http://x"), ("would start now by", "t1")])
    made = [line.strip() for line in file.getvalue().splitlines()]
    assert all(cell_len(line) <= width for line in made)
    words = "".join(made).replace(" ", "")
    assert "1.0athttp://x" in words
    assert words.endswith("t1")
    beside = width == 40
    assert made[0].startswith("zenos") is True
    assert ("http" in made[0]) is beside
    assert len(made) <= 6, "no letter stands alone on a line"
