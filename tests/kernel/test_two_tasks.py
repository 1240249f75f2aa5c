"""The worked case: two tasks on one machine."""

import re

import pytest

from examples.two_tasks import main, run
from zenos.core.resources import Resources


def test_both_run_at_once_where_both_fit() -> None:
    case = run(Resources.of(cpu=2, gpu=2, memory="4GB"))
    both = case.lines[1]
    assert (both.cpu, both.gpu, both.memory) == (0.75, 0.75, 0.375)
    assert case.order == ["B", "A"]


def test_ties_go_to_the_shorter_which_has_the_higher_p_a_second_later() -> None:
    case = run(Resources.of(cpu=2, gpu=2, memory="4GB"))
    assert case.lines[1].p == {"A": 0.0, "B": 0.0}
    later = case.lines[2].p
    assert later["B"] == pytest.approx(1 / 11)
    assert later["A"] == pytest.approx(1 / 61)


def test_exactly_the_share_of_b_returns_when_it_ends() -> None:
    case = run(Resources.of(cpu=2, gpu=2, memory="4GB"))
    after_b = case.lines[3]
    assert after_b.event == "B ends"
    assert (after_b.cpu, after_b.gpu, after_b.memory) == (0.5, 0.5, 0.25)
    assert (case.lines[4].cpu, case.lines[4].gpu, case.lines[4].memory) == (0, 0, 0)


def test_b_then_a_where_only_one_fits() -> None:
    case = run(Resources.of(cpu=1, gpu=1, memory="1GB"))
    assert case.order == ["B", "A"]
    assert [(line.at, line.event) for line in case.lines[3:]] == [
        (10.0, "B ends, A starts"),
        (70.0, "A ends"),
    ]


def test_the_timeline_is_printed_as_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    main()
    large, small = capsys.readouterr().out.split("1 CPU, 1 GPU, 1 GB: one fits at a time")
    assert large.startswith("2 CPUs, 2 GPUs, 4 GB: both fit")
    assert cells(large)[0] == ["time", "what happens", "CPU", "GPU", "memory", "P(A)", "P(B)"]
    # P(T) = waited / (waited + expected): A takes 60 s, B 10 s.
    assert cells(large)[3:6] == [
        ["1 s", "a second later", "75.0 %", "75.0 %", "37.5 %", "0.016", "0.091"],
        ["10 s", "B ends", "50.0 %", "50.0 %", "25.0 %", "0.143", ""],
        ["60 s", "A ends", "0.0 %", "0.0 %", "0.0 %", "", ""],
    ]
    assert cells(small)[4] == [
        *("10 s", "B ends, A starts", "100.0 %", "100.0 %", "100.0 %", "0.143", "")
    ]


def cells(table: str) -> list[list[str]]:
    """The lines of a printed table, the titles first."""
    lines = [line for line in table.splitlines() if line[:1] in "┃│" and line]
    return [[cell.strip() for cell in re.split("[┃│]", line)[1:-1]] for line in lines]
