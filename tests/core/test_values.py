"""Resources, names, clocks, configuration: what people write, and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenos.core.clock import SystemClock, VirtualClock
from zenos.core.config import Config, resolve
from zenos.core.errors import BusyError, InvalidError, ZenosError, from_code
from zenos.core.home import Home
from zenos.core.messages import TopicSettings, settings_for
from zenos.core.names import ModelRef, check_name
from zenos.core.resources import Resources, parse_share, parse_size, show_size
from zenos.core.specs import DeploymentSpec

amounts = st.builds(
    Resources,
    cpu=st.integers(0, 10**6),
    gpu=st.integers(0, 10**6),
    memory=st.integers(0, 2**50),
    gpu_memory=st.integers(0, 2**50),
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2**31),
        ("2GB", 2 * 10**9),
        ("512m", 512 * 10**6),
        ("1.5 KiB", 1536),
        (7, 7),
        ("1PB", 10**15),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "-1", "2 GiBs", "1e3", "NaN", math.nan, math.inf, -1, True, "9" * 100, "99999TiB"]
)
def test_absurd_sizes_are_refused(text: str | float) -> None:
    with pytest.raises(InvalidError, match="cannot"):
        parse_size(text)


@pytest.mark.parametrize("text", ["1PiB1", "1.1PiB", "1EiB", "2 EB", "99999TiB", 2**60])
def test_too_large_a_size_is_told_from_one_that_cannot_be_read(text: str | int) -> None:
    says = "cannot read memory" if text == "1PiB1" else "more than any machine has"
    with pytest.raises(InvalidError, match=says):
        parse_size(text)


@pytest.mark.parametrize("memory", ["0.5", "0.0001MB", 0.5, "1", "3.9MiB", "0.001KiB", 1])
def test_memory_below_the_least_is_refused_however_written(memory: str | float) -> None:
    """0 is no limit: nothing above it may become that."""
    with pytest.raises(InvalidError, match="cannot use"):
        Resources.of(cpu=1, memory=memory).check()
    with pytest.raises(InvalidError, match="cannot use"):
        DeploymentSpec(model="m", memory=str(memory)).check()


def test_no_memory_is_no_limit() -> None:
    for none in ("0", "0.0GiB", 0, 0.0):
        Resources.of(cpu=1, memory=none).check()
    DeploymentSpec(model="m", memory="4MiB").check()


@pytest.mark.parametrize("value", ["x", -0.1, math.nan, math.inf, 10**9, True, 0.0001])
def test_absurd_shares_are_refused(value: float | str) -> None:
    with pytest.raises(InvalidError, match="cannot"):
        parse_share(value, "cpu", 4096_000)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: parse_size(math.inf), "memory inf: a size is a number of 0 or more bytes"),
        (lambda: parse_size(-(10**5000)), "memory that small: a size is a number of 0 or more"),
        (lambda: parse_share(math.inf, "cpu", 4096_000), "cpu inf: at most 4096 are allowed"),
        (lambda: parse_share(10**5000, "cpu", 4096_000), "cpu inf: at most 4096 are allowed"),
        (lambda: parse_share("0" * 9000 + "5000", "cpu", 4096_000), "cpu 5000: at most 4096"),
        (lambda: parse_share("-inf", "cpu", 4096_000), "cpu -inf: give a number of 0 or more"),
    ],
)
def test_what_is_wrong_with_a_number_is_said_shortly(ask: Callable[[], int], says: str) -> None:
    with pytest.raises(InvalidError) as caught:
        ask()
    assert caught.value.message.startswith(f"cannot use {says}")
    assert len(caught.value.message) < 100


@given(a=amounts, b=amounts)
def test_what_is_added_comes_back_exactly(a: Resources, b: Resources) -> None:
    assert (a + b) - b == a
    assert a.fits_in(a + b)
    assert (a - b).is_valid == b.fits_in(a)


@given(st.integers(0, 2**50))
def test_shown_sizes_are_near_what_they_show(size: int) -> None:
    assert parse_size(show_size(size).replace(" ", "")) == pytest.approx(size, rel=0.06, abs=1)


@given(st.text(max_size=80))
def test_a_name_that_is_allowed_is_one_safe_path_component(text: str) -> None:
    try:
        name = check_name(text)
    except InvalidError:
        return
    assert 1 <= len(name) <= 64
    assert "/" not in name
    assert name not in {".", ".."}
    assert not any(ord(c) < 32 or ord(c) == 127 for c in name)


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".hidden", "a\0b", "a\nb", "a\n", "😀", "a b", "x" * 10_000, "-x"]
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidError, match="cannot"):
        check_name(name)


def test_a_refused_name_is_shown_as_it_was_typed_where_it_can_be() -> None:
    with pytest.raises(InvalidError, match="the name '🦊'"):
        check_name("🦊")
    for name, shown in (("a\x1b[2J", r"'a\\x1b\[2J'"), ("a\u202eb", r"'a\\u202eb'")):
        with pytest.raises(InvalidError, match=shown):
            check_name(name)


def test_names_are_compared_in_nfc() -> None:
    assert check_name("mode\u0301le") == "mod\u00e9le"
    assert check_name("模型") == "模型"


def test_model_references_have_a_version_or_an_alias() -> None:
    assert ModelRef.parse("m:3").version == 3
    assert ModelRef.parse("m:prod").version is None
    assert str(ModelRef.parse("m")) == "m"
    for text in ("m:", ":3", "m:a/b", "m:../x"):
        with pytest.raises(InvalidError):
            ModelRef.parse(text)


def test_kernel_time_never_goes_back() -> None:
    future = SystemClock().now() + 1000
    assert SystemClock(floor=future).now() >= future
    clock = VirtualClock(5.0)
    assert clock.advance(2.0) == 7.0
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1.0)


def test_settings_come_from_defaults_file_environment_and_flags_in_that_order() -> None:
    assert resolve().port == 8642
    assert resolve({"port": 1}).port == 1
    assert resolve({"port": 1}, {"ZENOS_PORT": "2"}).port == 2
    assert resolve({"port": 1}, {"ZENOS_PORT": "2"}, {"port": "3", "gpus": None}).port == 3
    assert resolve({}, {"ZENOS_CPUS": "1.5"}).cpus == 1.5
    assert resolve({}, {"ZENOS_ALLOWED_HOSTS": "a.b, c.d"}).allowed_hosts == ["a.b", "c.d"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"prot": 1}, "did you mean 'port'"),
        ({"port": "x"}, "port"),
        ({"port": 70000}, "port"),
        ({"gpus": -1}, "GPUs"),
        ({"memory": "lots"}, "memory"),
        ({"cpus": 0}, "cannot run with cpus 0: give at least 0.001"),
        ({"cpus": -1}, "cannot run with cpus -1: give at least 0.001"),
        ({"cpus": math.nan}, "cannot run with cpus nan: give at least 0.001"),
        ({"ageing": math.nan}, "ageing"),
        ({"node": "a/b"}, "node"),
        ({"message_order": ["data"]}, "message_order .* each of command, state and data once"),
        ({"message_order": "data,state,news"}, "message_order"),
        ({"message_ageing": 0}, "message_ageing"),
    ],
)
def test_wrong_settings_say_which_and_what(file: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        resolve(file)


def test_a_misspelt_variable_of_the_environment_is_refused() -> None:
    with pytest.raises(InvalidError, match=r"'ZENOS_AGEIN' .*did you mean 'ZENOS_AGEING'"):
        resolve({}, {"ZENOS_AGEIN": "3"})
    others = (
        "ZENOS_SVC_PORT_80_TCP_ADDR",
        "ZENOS_FOO",
        "ZENOS_HOME",
        "ZENOS_TOKEN",
        "ZENOS_DEBUG",
        "ZENOS_TASK",
        "_ZENOS_COMPLETE",
        "ZEN",
    )
    assert resolve({}, dict.fromkeys(others, "x")) == Config()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"log_level": "nope"}, "cannot use log_level 'nope': give one of 'debug', 'info'"),
        ({"cpus": "nope"}, "cannot use cpus 'nope': give a number or nothing, not text"),
        ({"enforcement": ["x"]}, "cannot use enforcement ['x']: "),
    ],
)
def test_a_wrong_setting_s_value_is_said_once(file: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidError) as caught:
        resolve(file)
    assert caught.value.message.startswith(message)
    assert caught.value.message.count(str(next(iter(file.values())))) == 1


def test_errors_keep_their_kind_over_a_socket() -> None:
    error = from_code("busy", "cannot now", retry_after_s=2)
    assert isinstance(error, BusyError)
    assert error.retry_after_s == 2
    assert type(from_code("nonsense", "cannot")) is ZenosError
    assert str(BusyError()).startswith("cannot")


def test_a_home_has_short_socket_paths(tmp_path: object) -> None:
    home = Home.default()
    assert len(str(home.bus).encode()) < 100
    assert Config() == resolve()


def test_topics_are_told_by_name_or_by_the_longest_prefix() -> None:
    given = {
        "jobs/*": {"lease_s": 300},
        "jobs/resize": {"deliveries": 3},
        "jobs/small/*": {"when_full": "refuse"},
        "*": {"messages": 10},
    }
    topics = resolve({"topics": given}).topics
    assert settings_for("jobs/resize", topics) == TopicSettings(deliveries=3)
    assert settings_for("jobs/other", topics) == TopicSettings(lease_s=300)
    assert settings_for("jobs/small/a", topics) == TopicSettings(when_full="refuse")
    assert settings_for("jobs", topics) == TopicSettings(messages=10)
    assert settings_for("jobs", {}) == TopicSettings()
    assert resolve(environment={"ZENOS_TOPICS": '{"a": {"lease_s": 5}}'}).topics == {
        "a": TopicSettings(lease_s=5)
    }


@pytest.mark.parametrize(
    ("topics", "says"),
    [
        ({"jobs/*": {"leas_s": 3}}, "did you mean 'lease_s'?"),
        ({"jobs": {"lease_s": -1}}, "cannot use lease_s -1"),
        ({"jobs": {"deliveries": 0}}, "cannot use these deliveries"),
        ({"jobs": {"when_full": "wait"}}, "'block', 'refuse', 'drop_oldest'"),
        ({"../x": {}}, "cannot use"),
        ({"a/*/b": {}}, "cannot use"),
        ({"jobs": 5}, "cannot use"),
        ("jobs", "give a JSON object here"),
    ],
)
def test_topics_that_cannot_be_so_are_refused(topics: object, says: str) -> None:
    with pytest.raises(InvalidError, match=re.escape(says)):
        resolve({"topics": topics})
