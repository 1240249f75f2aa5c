"""The worked case: two tasks on one machine."""

import pytest

from examples.two_tasks import run
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
