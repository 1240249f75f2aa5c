"""Points in time as people write them, and what the nearness of a deadline adds."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenos.core import limits, priority
from zenos.core.errors import InvalidError
from zenos.core.times import parse_time

NOON = dt.datetime(2026, 7, 1, 12, tzinfo=dt.UTC).timestamp()  # 14:00 in Berlin


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as given_:
        given_.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("18:00", "2026-07-01T16:00+00:00"),
        ("14:00", "2026-07-02T12:00+00:00"),  # that is now: the next one
        (" 9:30:15 ", "2026-07-02T07:30:15+00:00"),
        ("2026-12-01T18:00", "2026-12-01T17:00+00:00"),
        ("2026-12-01 18:00", "2026-12-01T17:00+00:00"),
        ("2026-12-01", "2026-11-30T23:00+00:00"),
        ("2026-12-01T18:00Z", "2026-12-01T18:00+00:00"),
        ("2026-12-01T18:00-05:00", "2026-12-01T23:00+00:00"),
        ("+2h", "2026-07-01T14:00+00:00"),
        ("+90s", "2026-07-01T12:01:30+00:00"),
        ("+1.5d", "2026-07-03T00:00+00:00"),
        # Clocks go from 2:00 to 3:00, and back from 3:00 to 2:00: then the first 2:30 is meant.
        ("2026-03-29T02:30", "2026-03-29T01:30+00:00"),
        ("2026-10-25T02:30", "2026-10-25T00:30+00:00"),
    ],
)
def test_times_are_meant_where_they_are_written(text: str, utc: str) -> None:
    assert parse_time(text, "the time", NOON) == dt.datetime.fromisoformat(utc).timestamp()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "25:00",
        "12:60",
        "12",
        "noon",
        "+2",
        "2h",
        "-1h",
        "+nanh",
        "2026-13-01",
        "1" * 65,
        "\u0663:00",
    ],
)
def test_others_are_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="write 18:00, 2026-12-01T18:00 or"):
        parse_time(text, "the time", NOON)


moments = st.floats(0, 1e9)


@given(st.integers(0, 100), st.floats(1e-3, 1e7), moments, moments, moments)
def test_a_deadline_raises_more_the_nearer_it_is_and_never_beyond_the_highest(
    base: int, expected_s: float, deadline: float, one: float, other: float
) -> None:
    early, late = sorted((one, other))
    before = priority.raised(base, deadline, expected_s, early)
    after = priority.raised(base, deadline, expected_s, late)
    assert 0 <= before <= after <= limits.PRIORITY_MAX - base
    if late >= deadline - expected_s:
        assert base + after == limits.PRIORITY_MAX
    assert priority.raised(base, None, expected_s, late) == 0


@given(st.integers(0, 100), st.floats(1, 1e6), st.floats(1e6, 1e9), st.floats(0, 1))
def test_it_is_raised_when_that_was_said(
    base: int, expected_s: float, deadline: float, share: float
) -> None:
    now = deadline * share
    points = priority.raised(base, deadline, expected_s, now)
    then = priority.raised_next(base, deadline, expected_s, points)
    if points == limits.PRIORITY_MAX - base:
        assert then == float("inf")
        return
    assert now <= then + 1e-3
    assert priority.raised(base, deadline, expected_s, then + 1e-3) > points
    assert priority.raised(base, deadline, expected_s, max(now, then - 1)) == points
